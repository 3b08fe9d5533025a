"""The idx files of MNIST and its relatives, compressed or not.

Source of the format: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits:
two zero bytes, one for the type (8: unsigned byte), one for the number of dimensions, then each
dimension as a big-endian 32-bit number, then the values row by row.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from kdsteps.errors import KdstepsError

_STEMS = {"train": "train", "test": "t10k"}


def find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and labels of each split in `folder`; empty unless both splits are complete."""
    found = {
        split: (
            _found(folder, f"{stem}-images-idx3-ubyte"),
            _found(folder, f"{stem}-labels-idx1-ubyte"),
        )
        for split, stem in _STEMS.items()
    }
    complete = {split: (a, b) for split, (a, b) in found.items() if a is not None and b is not None}
    return complete if len(complete) == len(_STEMS) else {}


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file of unsigned bytes.

    Raises:
        KdstepsError: The file is cut off, damaged, or of another format.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise KdstepsError(f"{path}: cannot be read ({error}); download it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise KdstepsError(f"{path}: is not an idx file of bytes; download it again")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(shape) != content[3] or len(content) - start != int(np.prod(shape)):
        raise KdstepsError(
            f"{path}: has {len(content) - start} values for the shape {shape}; download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _found(folder: Path, name: str) -> Path | None:
    candidates = [folder / name, folder / f"{name}.gz"]
    return next((path for path in candidates if path.is_file()), None)
