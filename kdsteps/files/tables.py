"""Parquet tables of results: declared columns, settings and provenance in the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import atomic, damage
from kdsteps.files.columns import Columns


def write_table(
    path: str | Path,
    rows: Mapping[str, Any],
    columns: Columns,
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """A table of `columns` from {column: values}, with settings and provenance in its schema."""
    schema = pa.schema(list(columns.items()), metadata=_metadata(settings, provenance))
    table = pa.table({name: rows[name] for name in columns}, schema=schema)
    with atomic(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def read_table(path: str | Path, columns: Columns) -> pa.Table:
    """A table that `write_table` wrote.

    Raises:
        KdstepsError: It is missing, damaged or not Parquet, lacks a column, or a column has another
            type.
    """
    file = open_table(path, columns)
    with whole_parquet(path):
        return file.read(columns=list(columns))


def open_table(path: str | Path, columns: Columns) -> pq.ParquetFile:
    """A Parquet file that has all of `columns`, not read yet; read it within `whole_parquet`.

    Raises:
        KdstepsError: As `read_table`.
    """
    file = _parquet(path)
    names = file.schema_arrow.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise KdstepsError(
            f"{path}: has no column {missing[0]!r} (it has {', '.join(names)}); "
            "run the stage that writes it again"
        )
    for name, kind in columns.items():
        found = file.schema_arrow.field(name).type
        if found != kind:
            raise KdstepsError(
                f"{path}: column {name!r} has the type {found}; it should be {kind}, so run the "
                "stage that writes it again"
            )
    return file


@contextmanager
def whole_parquet(path: str | Path) -> Iterator[None]:
    """Raise KdstepsError for a damaged Parquet file if reading it in the block fails.

    Raises:
        KdstepsError: It is missing, cut off, damaged or of another format.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise KdstepsError(f"{path}: {damage(error, 'Parquet file')}") from error


def table_metadata(path: str | Path) -> dict[str, dict[str, Any]]:
    """The `settings` and `provenance` that a Parquet file carries.

    Raises:
        KdstepsError: The file is damaged.
    """
    found = _parquet(path).schema_arrow.metadata or {}
    try:
        return {
            key: json.loads(found.get(f"kdsteps.{key}".encode(), b"{}"))
            for key in ("settings", "provenance")
        }
    except ValueError as error:
        raise KdstepsError(f"{path}: {damage(error, 'Parquet file')}") from error


def _parquet(path: str | Path) -> pq.ParquetFile:
    with whole_parquet(path):
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def _metadata(
    settings: Mapping[str, Any] | None, provenance: Mapping[str, Any] | None
) -> dict[str, str]:
    given = {"settings": settings, "provenance": provenance}
    return {
        f"kdsteps.{key}": json.dumps(value, sort_keys=True)
        for key, value in given.items()
        if value is not None
    }
