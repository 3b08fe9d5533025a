"""Image files named by a list: a CSV, TSV or Parquet file with a path and a label per row."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from pydantic import PositiveInt

from kdsteps.data.class_labels import classes_of, label_column, whole_numbers
from kdsteps.data.decoding import Content
from kdsteps.data.encoded import encoded_source
from kdsteps.data.form import Size, size_problem
from kdsteps.data.source import SPLITS, Source
from kdsteps.data.split_names import SPELLINGS
from kdsteps.data.subset import thinned
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.home import expanded
from kdsteps.files.manifest import check_column

log = logging.getLogger("kdsteps")

_TEXT = (".csv", ".tsv", ".tab", ".txt")


def load(
    *,
    path: str,
    image: str = "path",
    label: str = "label",
    split: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    channels: Literal[1, 3] | None = None,
    store: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    per_class: PositiveInt | None = None,
    labeled: bool = True,
) -> Source:
    """The images that a list names, in its order.

    Args:
        path: The list: a CSV or TSV file with a header, or a Parquet file.
        image: Column with the path of each image, relative to the folder of the list.
        label: Column with labels: whole numbers from 0, or names.
        split: Column that says which split an image belongs to; by default the section `prepare`
            splits them.
        train, validation, test: What the column `split` calls each split. Where none is set, the
            usual names are used; where some are, rows of other splits are left out.
        channels: 1 for gray, 3 for color; by default gray if all images are.
        store: Height and width that images are stored at: resized to cover it, center crop.
        image_size: Height and width that networks see; by default all of the stored image.
        resize: Pixels of the shorter side after resizing, or exactly [height, width].
        crop: Height and width of the center crop after `resize`.
        per_class: At most this many images of each class in each split.
        labeled: Whether the column with labels is read.

    Raises:
        KdstepsError: The list cannot be read, lacks a column or a value, or names a split that
            does not exist; or two splits have one name.
    """
    file = expanded(path)
    given = {"train": train, "validation": validation, "test": test}
    if problem := options_problem(split=split, **given, store=store, resize=resize, crop=crop):
        raise KdstepsError(f"datasets: {problem}")
    columns = {"image": image} | ({"label": label} if labeled else {})
    columns |= {} if split is None else {"split": split}
    table = _read(file, columns)
    named = {name: value for name, value in given.items() if value is not None}
    splits = _splits(table, split, named, file)
    values = _labels(table, label, file) if labeled else np.full(len(table), "")
    labels, class_names = classes_of(values)
    paths = _texts(table, image, file)
    known = np.flatnonzero(splits != "-")
    if len(known) < len(splits):
        log.info("%s: rows of other splits: %d", file, len(splits) - len(known))
    rows = known[thinned(labels[known], splits[known], per_class)]
    names = [paths[row] for row in rows]

    def contents() -> Iterator[Content]:
        return (file.parent / expanded(name) for name in names)

    return encoded_source(
        contents,
        labels=labels[rows],
        class_names=class_names,
        split=splits[rows],
        names=names,
        channels=channels,
        resize=resize,
        crop=crop,
        store=store,
        image_size=image_size,
    )


def options_problem(
    *,
    split: str | None,
    train: str | None,
    validation: str | None,
    test: str | None,
    store: Size | None,
    resize: Size | None,
    crop: Size | None,
) -> str | None:
    """What is wrong with options together, or None."""
    given = {"train": train, "validation": validation, "test": test}
    named = next((name for name, value in given.items() if value is not None), None)
    if named is not None and split is None:
        return f"{named} needs `split`, the column it is found in"
    return size_problem(store=store, resize=resize, crop=crop)


def _read(file: Path, columns: Mapping[str, str]) -> pa.Table:
    """The wanted columns of a list, by option."""
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise KdstepsError(f"datasets: path {str(file)!r} {what}; name a CSV, TSV or Parquet file")
    if file.suffix.lower() not in (*_TEXT, ".parquet"):
        raise KdstepsError(
            f"datasets: path {str(file)!r} ends in {file.suffix!r}; use .csv, .tsv or .parquet"
        )
    uneven: list[pc_csv.InvalidRow] = []
    try:
        names = _header(file) if file.suffix.lower() in _TEXT else pq.read_schema(file).names
        for option, name in columns.items():
            check_column(file, option, name, names)
            if names.count(name) > 1:
                raise KdstepsError(f"{file}: has two columns {name!r}; rename one of them")
        wanted = list(dict.fromkeys(columns.values()))
        if file.suffix.lower() not in _TEXT:
            return pq.read_table(file, columns=wanted)

        def refuse(row: pc_csv.InvalidRow) -> str:
            uneven.append(row)
            return "error"

        return pc_csv.read_csv(
            file,
            parse_options=pc_csv.ParseOptions(
                delimiter=_delimiter(file), newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=pc_csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        if uneven:
            row = uneven[0]
            raise KdstepsError(
                f"{file}: the row {row.text!r} does not have {row.expected_columns} values; put "
                "quotes around values that have commas, tabs or semicolons"
            ) from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise KdstepsError(f"{file}: cannot be read ({reason}); write it again") from error


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return next(csv.reader(lines, delimiter=_delimiter(file)), [])


def _delimiter(file: Path) -> str:
    """Tab, comma or semicolon: the most frequent one in the first line."""
    with file.open(encoding="utf-8-sig") as lines:
        first = lines.readline()
    return max("\t,;", key=first.count)


def _texts(table: pa.Table, name: str, file: Path) -> list[str]:
    """A column of strings without missing values."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        hint = (
            "; kind `parquet` reads images inside of a file" if "binary" in str(column.type) else ""
        )
        raise KdstepsError(
            f"{file}: column {name!r} has the type {column.type}; it should be text{hint}"
        )
    if column.null_count:
        row = pc.index(column.combine_chunks().is_null(), True).as_py()
        raise KdstepsError(f"{file}: row {row} has no {name!r}; every image needs one")
    texts: list[str] = column.to_pylist()
    return texts


def _labels(table: pa.Table, name: str, file: Path) -> np.ndarray:
    """Labels (N,), whole numbers or names; in a text file, numbers if all of them are."""
    values = label_column(table[name], name, str(file))
    if values.dtype.kind != "U" or file.suffix.lower() not in _TEXT:
        return values
    numbers = whole_numbers(values.tolist())
    return values if numbers is None else numbers


def _splits(
    table: pa.Table, column: str | None, named: Mapping[str, str], file: Path
) -> np.ndarray:
    """The split (N,) of each row: "" where the list does not say, "-" for unwanted rows."""
    if column is None:
        return np.full(len(table), "", dtype="<U10")
    values = _texts(table, column, file)
    if named:
        meaning: dict[str, str] = {}
        for name, value in ({"train": "train"} | dict(named)).items():
            if value in meaning:
                raise KdstepsError(
                    f"datasets: {meaning[value]} and {name} are both {value!r}; an image is in one "
                    "split, so name a value of its own for each"
                )
            meaning[value] = name
    else:
        meaning = {spelling: split for split in SPLITS for spelling in SPELLINGS[split]}
        unknown = next(
            (row for row, text in enumerate(values) if text.lower() not in meaning), None
        )
        if unknown is not None:
            raise KdstepsError(
                f"{file}: row {unknown} has the {column} {values[unknown]!r}; use train, "
                "validation and test, or set what they are called with these three options"
            )
        values = [text.lower() for text in values]
    for text, split in meaning.items():
        if named and text not in values:
            raise KdstepsError(
                f"{file}: no row has the {column} {text!r}, which `{split}` names"
                f"{nearest(text, sorted(set(values))[:20])}"
            )
    return np.array([meaning.get(text, "-") for text in values], dtype="<U10")
