"""What checking inputs costs: hashes of stored images, and the digest of a folder of 100,000."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
from _timing import Row, paired, seconds, table

from kdsteps.data.hashes import Hashes, pixel_hash
from kdsteps.files import input_digests as digests
from kdsteps.files.manifest import source_digest

_STORED, _SHAPE = 45_000, (3, 32, 32)  # the training images of CIFAR-100
_FILES, _BYTES = 100_000, 2_000
_LIMIT_S = 2


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    yield _hashes()
    yield _digest()


def _hashes() -> Row:
    """Checking every image of a split once, against copying it once, as loading does."""
    images = np.random.default_rng(0).integers(0, 256, (_STORED, *_SHAPE), dtype=np.uint8)
    every = np.arange(_STORED)
    known = np.array([pixel_hash(image) for image in images], dtype="S32")
    hashes = Hashes("images.npy", known, [""] * _STORED)
    pair = paired(lambda: images[every], lambda: hashes.damaged(images, every), repeats=3)
    return Row(
        what=f"check the hashes of {_STORED:,} stored images of CIFAR's size, once per job",
        against="copying them",
        ratio=pair.ratio,
        detail=f"{pair.second:.2f} s against {pair.first:.2f} s",
        target="<= 1 s",
        met=pair.second <= 1,
    )


def _digest() -> Row:
    """The digest of a folder in which nothing changed since the last one."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for number in range(_FILES):
            file = Path("images", f"class {number % 100}", f"{number}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(_BYTES))
        options = {"path": "images"}
        settled, digests._SETTLED_NS = digests._SETTLED_NS, 0  # as if the files were older
        try:
            first = seconds(lambda: source_digest("folder", options))
            again = seconds(lambda: source_digest("folder", options))
        finally:
            digests._SETTLED_NS = settled
    return Row(
        what=f"digest of a folder of {_FILES:,} unchanged images, while planning",
        against=f"{_LIMIT_S} s",
        ratio=again / _LIMIT_S,
        detail=f"{again:.1f} s; {first:.1f} s the first time, when contents are read",
        target="<= 1",
        met=again <= _LIMIT_S,
    )


if __name__ == "__main__":
    print(table(rows()))
