"""Labels in tables, as whole numbers or names, and the classes that follow from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdsteps.errors import KdstepsError

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # those that int64 holds


def label_column(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """Labels (N,) of one column: int64, or str where they are names.

    Args:
        name: Of the column.
        where: Of the file, for messages.

    Raises:
        KdstepsError: A label is missing, or labels are neither whole numbers nor names.
    """
    column = column.combine_chunks()
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise KdstepsError(f"{where}: row {row} has no {name!r}; every image needs a label")
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        try:
            return np.asarray(column.cast(pa.int64()))
        except pa.ArrowInvalid as error:
            raise KdstepsError(f"{where}: column {name!r} has a label out of range") from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=str)
    raise KdstepsError(
        f"{where}: column {name!r} has the type {kind}; labels are whole numbers from 0, or names"
    )


def classes_of(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (N,) from 0 and the names of the classes: names in alphabetical order, or numbers."""
    if values.dtype.kind == "U":
        class_names, labels = np.unique(values, return_inverse=True)
        return labels.astype(np.int64), tuple(class_names.tolist())
    return values.astype(np.int64), numbered(values)


def numbered(values: np.ndarray) -> tuple[str, ...]:
    """Names for classes that only have numbers.

    Raises:
        KdstepsError: There are more numbers than images, so some classes would have none.
    """
    count = int(values.max(initial=-1)) + 1
    if count > len(values):
        raise KdstepsError(
            f"datasets: labels go up to {count - 1}, and there are {len(values)} images; number "
            "the classes from 0 without gaps, or use names"
        )
    return tuple(map(str, range(count)))


def whole_numbers(texts: Sequence[str]) -> np.ndarray | None:
    """Labels as int64 where every text is a whole number, as in a CSV file; None: they are names.

    `007` is a name: as a number it would not be written with zeros in front.
    """
    if not all(_NUMBER.fullmatch(text) for text in texts):
        return None
    return np.array([int(text) for text in texts], dtype=np.int64)
