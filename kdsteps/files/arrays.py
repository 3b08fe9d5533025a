"""NumPy arrays of results, read by memory mapping."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import atomic, damage

HEADER_BYTES = 128  # before the numbers of an array file


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as part, part.open("wb") as file:
        np.save(file, array)


def write_array_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """The first `HEADER_BYTES` of an array file, which `write_array` writes as well."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == HEADER_BYTES, "numpy pads the header of a small shape to this size"


def read_array(path: str | Path) -> np.ndarray:
    """The array in `path`, mapped rather than read; pickled objects are refused."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'array file')}") from error
    return mapped
