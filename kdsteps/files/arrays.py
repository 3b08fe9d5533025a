"""NumPy arrays of results: written row by row, read by memory mapping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import atomic, damage

_HEADER = 128  # bytes before the numbers of an array file


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as part, part.open("wb") as file:
        np.save(file, array)


@contextmanager
def array_rows(path: str | Path) -> Iterator[ArrayRows]:
    """Write one array row by row; it appears at `path` when the block ends well.

    The file has the bytes that `write_array` gives.
    """
    with atomic(path) as part, part.open("wb") as file:
        file.write(b" " * _HEADER)
        rows = ArrayRows(file)
        yield rows
        file.seek(0)
        described = {"descr": rows.dtype, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(file, described)
        assert file.tell() == _HEADER, "numpy pads the header of a small shape to this size"


class ArrayRows:
    """An array on its way to the disk; it never stands in memory whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._first: np.ndarray | None = None
        self._count = 0

    def add(self, piece: np.ndarray) -> None:
        """Append the rows of `piece`, (n, ...), of the same type and row shape as all others.

        Raises:
            ValueError: They are not.
        """
        first = self._first = piece[:1] if self._first is None else self._first
        if piece.shape[1:] != first.shape[1:] or piece.dtype != first.dtype:
            raise ValueError(
                f"rows of {piece.dtype} {piece.shape} follow {first.dtype} {first.shape}"
            )
        self._file.write(np.ascontiguousarray(piece).data)
        self._count += len(piece)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows so far."""
        if self._first is None:
            raise ValueError("no rows were added")
        return (self._count, *self._first.shape[1:])

    @property
    def dtype(self) -> str:
        if self._first is None:
            raise ValueError("no rows were added")
        return str(self._first.dtype.str)


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`, mapped rather than read; pickled objects are refused."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'array file')}") from error
    return mapped
