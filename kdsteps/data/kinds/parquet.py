"""Images in Parquet files, one row an image, as Hugging Face and many others keep them.

The image column holds the bytes of image files (PNG, JPEG, WebP, ...), or Hugging Face's struct of
bytes and path. Labels are whole numbers or names. Class names stand in the schema's metadata (as
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import PositiveInt

from kdsteps.data.decoding import Content, EncodedImages, form_of
from kdsteps.data.source import PARTS, Source
from kdsteps.data.subset import matching, thinned
from kdsteps.errors import KdstepsError, nearest

_AT_A_TIME = 256  # rows whose images are held before they are decoded


def load(
    *,
    train: str | tuple[str, ...],
    validation: str | tuple[str, ...] | None = None,
    test: str | tuple[str, ...] | None = None,
    image: str = "image",
    label: str = "label",
    channels: Literal[1, 3] | None = None,
    resize: PositiveInt | None = None,
    crop: PositiveInt | None = None,
    per_class: PositiveInt | None = None,
) -> Source:
    """The images of some Parquet files.

    Args:
        train, validation, test: Files, patterns such as `data/train-*.parquet`, or folders, each
            one or a list; a part that is not given is taken from train by the section `prepare`.
        image: Name of the column with images.
        label: Name of the column with labels.
        channels: 1 for grey, 3 for colour; None: grey if all images are.
        resize: Pixels of the shorter side that images are resized to.
        crop: Height and width of the middle that is kept.
        per_class: At most so many images of each class in each part.

    Raises:
        KdstepsError: A file or column is missing, or a column has another type.
    """
    given = dict(zip(PARTS, (train, validation, test), strict=True))
    files = [
        _File(path, _open(path, image, label), part)
        for part, patterns in given.items()
        if patterns is not None
        for path in matching(patterns, ".parquet", f"datasets: {part}")
    ]
    labels, class_names = _labels(files, label)
    parts = [file.part if validation or test else "" for file in files]
    split = np.repeat(np.array(parts, dtype="<U10"), [len(file) for file in files])
    rows = thinned(labels, split, per_class)
    names = [f"{file.path.name} row {row}" for file in files for row in range(len(file))]
    kept = np.zeros(len(labels), dtype=bool)
    kept[rows] = True

    def contents() -> Iterator[Content]:
        start = 0
        for file in files:
            yield from _images(file, image, kept[start : start + len(file)])
            start += len(file)

    return Source(
        images=EncodedImages(contents, len(rows), form_of(contents, channels, resize, crop)),
        labels=labels[rows],
        class_names=class_names,
        split=split[rows],
        names=tuple(names[row] for row in rows),
    )


@dataclass(frozen=True)
class _File:
    path: Path
    content: pq.ParquetFile
    part: str

    def __len__(self) -> int:
        return int(self.content.metadata.num_rows)


def _open(path: Path, image: str, label: str) -> pq.ParquetFile:
    """The file, once it is sure that its columns can be used."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise KdstepsError(
            f"{path}: is no readable Parquet file ({error}); give a whole one"
        ) from error
    schema = file.schema_arrow
    for key, name in (("image", image), ("label", label)):
        if name not in schema.names:
            hint = nearest(name, schema.names)
            raise KdstepsError(f"{path}: has no column {name!r} for the option `{key}`{hint}")
    kind = schema.field(image).type
    if not (_is_bytes(kind) or _is_struct(kind)):
        raise KdstepsError(
            f"{path}: column {image!r} holds {kind}; it should hold the bytes of image files, or a "
            "struct of bytes and path"
        )
    return file


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _images(file: _File, image: str, kept: np.ndarray) -> Iterator[Content]:
    """The images of the rows that are `kept` (rows,), before decoding."""
    start = 0
    for batch in file.content.iter_batches(_AT_A_TIME, columns=[image]):
        wanted = np.flatnonzero(kept[start : start + len(batch)])
        start += len(batch)
        if len(wanted):
            for value in batch.column(0).take(pa.array(wanted)).to_pylist():
                yield _content(value, file.path.parent)


def _content(value: Any, folder: Path) -> Content:
    if not isinstance(value, dict):
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    path = value.get("path")
    return None if path is None else folder / path


def _labels(files: Sequence[_File], label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) over all files in order, and the names of the classes."""
    columns = [_label_column(file, label) for file in files]
    named = [isinstance(column[0], str) for column in columns if len(column)]
    if any(named) and not all(named):
        raise KdstepsError(
            f"{files[0].path}: column {label!r} holds names in some files, numbers in others"
        )
    values = np.concatenate(columns)
    if any(named):
        class_names, labels = np.unique(values, return_inverse=True)
        return labels.astype(np.int64), tuple(class_names.tolist())
    stated = {_stated_names(file, label): file.path for file in files} | {(): None}
    stated.pop(())
    if len(stated) > 1:
        one, other = list(stated.values())[:2]
        raise KdstepsError(f"{one} and {other}: name the classes of {label!r} differently")
    count = int(values.max(initial=-1)) + 1
    names = next(iter(stated), tuple(map(str, range(count))))
    return values.astype(np.int64), names


def _label_column(file: _File, label: str) -> np.ndarray:
    """Labels of one file, whole numbers or names."""
    column = file.content.read(columns=[label])[label].combine_chunks()
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise KdstepsError(f"{file.path}: row {row} has no {label!r}; every image needs a label")
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return np.asarray(column.cast(pa.int64()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=str)
    raise KdstepsError(
        f"{file.path}: column {label!r} holds {kind}; labels are whole numbers from 0, or names"
    )


def _stated_names(file: _File, label: str) -> tuple[str, ...]:
    """Class names in the schema's metadata; none where it has none."""
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
