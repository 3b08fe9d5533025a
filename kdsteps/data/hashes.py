"""Hashes of the pixels of stored images, to find duplicates and damaged images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from kdsteps.errors import KdstepsError
from kdsteps.files.damaged import refused


def pixel_hash(image: np.ndarray) -> str:
    """32 hexadecimal digits for an image (C, H, W) of uint8."""
    return blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Hashes:
    """What the images of a data set were when they were prepared.

    Attributes:
        file: That holds the images, for messages.
        hashes: (N,) of all images, as bytes of text.
        names: (N,) where each image came from.
    """

    file: str
    hashes: np.ndarray
    names: Sequence[str]

    def damaged(self, images: np.ndarray, rows: np.ndarray) -> int | None:
        """The first row whose image differs from what was prepared; None: all are as they were.

        Args:
            images: (n, C, H, W), uint8.
            rows: (n,) number of each of them in the data set.
        """
        for image, row in zip(images, rows.tolist(), strict=True):
            if pixel_hash(image).encode() != self.hashes[row]:
                return int(row)
        return None

    def refuse(self, row: int) -> KdstepsError:
        """Mark the file with a damaged image, and return the error that says so."""
        problem = f"image {row} ({self.names[row]}) does not match its hash in the index"
        return refused(Path(self.file), problem)
