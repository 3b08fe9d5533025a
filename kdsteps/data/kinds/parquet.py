"""Images in Parquet files, one image per row, as Hugging Face data sets have them.

The image column holds the bytes of image files (PNG, JPEG, WebP, ...), or Hugging Face's struct of
bytes and path. Labels are whole numbers or names. Class names come from the schema's metadata (as
Hugging Face's ClassLabel, or as a JSON list under `<label>_names`), or are the labels themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from kdsteps.data.class_labels import classes_of, label_column, numbered
from kdsteps.data.decoding import Content
from kdsteps.data.encoded import encoded_source
from kdsteps.data.form import size_problem
from kdsteps.data.overlaps import check_once
from kdsteps.data.source import SPLITS, Source
from kdsteps.data.subset import matching, thinned
from kdsteps.errors import KdstepsError
from kdsteps.files.manifest import check_column

_AT_A_TIME = 256  # rows whose images are in memory before they are decoded

options_problem = size_problem  # no other options contradict each other


def load(
    *,
    train: str | tuple[str, ...],
    validation: str | tuple[str, ...] | None = None,
    test: str | tuple[str, ...] | None = None,
    image: str = "image",
    label: str = "label",
    channels: Literal[1, 3] | None = None,
    store: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    per_class: PositiveInt | None = None,
    labeled: bool = True,
) -> Source:
    """The images of some Parquet files.

    Args:
        train, validation, test: Files, patterns such as `data/train-*.parquet`, or folders, each
            one or a list. A missing split is taken from train, as the section `prepare` says.
        image: Column with images.
        label: Column with labels.
        channels: 1 for gray, 3 for color; by default gray if all images are.
        store: Height and width that images are stored at: resized to cover it, center crop.
        image_size: Height and width that networks see; by default all of the stored image.
        resize: Pixels of the shorter side after resizing, or exactly [height, width].
        crop: Height and width of the center crop after `resize`.
        per_class: At most this many images of each class in each split.
        labeled: Whether the column with labels is read.

    Raises:
        KdstepsError: A file or column is missing, a file is named twice, or a column has another
            type.
    """
    given = dict(zip(SPLITS, (train, validation, test), strict=True))
    files = [
        _File(path, _open(path, image, label if labeled else None), name)
        for name, patterns in given.items()
        if patterns is not None
        for path in matching(patterns, ".parquet", f"datasets: {name}")
    ]
    check_once((file.split, file.path) for file in files)
    unlabeled = np.full(sum(map(len, files)), "")
    labels, class_names = _labels(files, label) if labeled else classes_of(unlabeled)
    splits = [file.split if validation or test else "" for file in files]
    split = np.repeat(np.array(splits, dtype="<U10"), [len(file) for file in files])
    rows = thinned(labels, split, per_class)
    names = [f"{file.path.name} row {row}" for file in files for row in range(len(file))]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[rows] = True

    def contents() -> Iterator[Content]:
        start = 0
        for file in files:
            yield from _images(file, image, chosen[start : start + len(file)])
            start += len(file)

    return encoded_source(
        contents,
        labels=labels[rows],
        class_names=class_names,
        split=split[rows],
        names=[names[row] for row in rows],
        channels=channels,
        resize=resize,
        crop=crop,
        store=store,
        image_size=image_size,
    )


@dataclass(frozen=True)
class _File:
    path: Path
    content: pq.ParquetFile
    split: str

    def __len__(self) -> int:
        return int(self.content.metadata.num_rows)


def _open(path: Path, image: str, label: str | None) -> pq.ParquetFile:
    """Open a file and check its columns; `label` is None for images without labels."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise KdstepsError(
            f"{path}: is not a readable Parquet file ({error}); use a complete one"
        ) from error
    schema = file.schema_arrow
    for option, name in (("image", image), ("label", label)):
        if name is not None:
            check_column(path, option, name, schema.names)
    kind = schema.field(image).type
    if not (_is_bytes(kind) or _is_struct(kind)):
        raise KdstepsError(
            f"{path}: column {image!r} has the type {kind}; it should hold the bytes of image "
            "files, or a struct of bytes and path (kind `table` reads lists of paths)"
        )
    return file


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _images(file: _File, image: str, chosen: np.ndarray) -> Iterator[Content]:
    """The images of the `chosen` rows, a mask (rows,), before decoding."""
    start = 0
    for batch in file.content.iter_batches(_AT_A_TIME, columns=[image]):
        wanted = np.flatnonzero(chosen[start : start + len(batch)])
        start += len(batch)
        if len(wanted):
            for value in batch.column(0).take(pa.array(wanted)).to_pylist():
                yield _content(value, file.path.parent)


def _content(value: Any, folder: Path) -> Content:
    content: Content = value["bytes"] if isinstance(value, dict) else value
    if content is not None or not isinstance(value, dict):
        return content
    path = value.get("path")
    return None if path is None else folder / path


def _labels(files: Sequence[_File], label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) over all files in order, and the names of the classes."""
    columns = [
        label_column(file.content.read(columns=[label])[label], label, str(file.path))
        for file in files
    ]
    named = [isinstance(column[0], str) for column in columns if len(column)]
    if any(named) and not all(named):
        raise KdstepsError(
            f"{files[0].path}: column {label!r} has names in some files and numbers in others"
        )
    values = np.concatenate(columns)
    if any(named):
        return classes_of(values)
    stated = {_stated_names(file, label): file.path for file in files} | {(): None}
    stated.pop(())
    if len(stated) > 1:
        one, other = list(stated.values())[:2]
        raise KdstepsError(
            f"{one} and {other}: name the classes of {label!r} differently; use the same names"
        )
    return values.astype(np.int64), next(iter(stated)) if stated else numbered(values)


def _stated_names(file: _File, label: str) -> tuple[str, ...]:
    """Class names in the schema's metadata, if there are any."""
    metadata = file.content.schema_arrow.metadata or {}
    try:
        if f"{label}_names".encode() in metadata:
            return tuple(map(str, json.loads(metadata[f"{label}_names".encode()])))
        features = (
            json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        )
        return tuple(map(str, features.get(label, {}).get("names", ())))
    except (ValueError, TypeError, AttributeError) as error:
        raise KdstepsError(
            f"{file.path}: the class names in its metadata cannot be read ({error}); "
            "write the file again"
        ) from error
