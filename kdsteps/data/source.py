"""What every kind of data hands over: labelled images, not yet checked, split and stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read, and why."""

    reason: str


@dataclass(frozen=True)
class Picture:
    """One image as it was decoded, and what it was before.

    Attributes:
        pixels: (C, H, W), uint8.
        size: Height and width before any resizing.
        mode: Kind of pixels it had in its file, as Pillow calls it: "RGB", "L", "P", ...
    """

    pixels: np.ndarray
    size: tuple[int, int]
    mode: str


class Encoded(Protocol):
    """Images that are decoded one after the other and never stand in memory all at once."""

    def __len__(self) -> int: ...

    def pictures(self, threads: int) -> Iterator[Picture | Broken]:
        """Every image in order, decoded on `threads` threads."""
        ...


@dataclass(frozen=True)
class Source:
    """Labelled images as a kind of data gives them.

    Attributes:
        images: (N, C, H, W) as uint8 or as floats from 0 to 1, or images still to be decoded.
        labels: (N,), whole numbers from 0.
        class_names: K names, by class number.
        split: (N,) "train", "validation" or "test" for each image, or "" for all of them where
            the source does not say.
        names: (N,) where each image came from, for messages and for looking it up.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: np.ndarray
    names: tuple[str, ...]


def as_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8; floats from 0 to 1 are spread over 0 to 255.

    Raises:
        ValueError: A value is not a number, or lies outside of what its type allows; the message
            is said of the image.
    """
    if pixels.dtype == np.uint8:
        return pixels
    floating = np.issubdtype(pixels.dtype, np.floating)
    if not (floating or np.issubdtype(pixels.dtype, np.integer)):
        raise ValueError(f"holds {pixels.dtype}; pixels are numbers")
    if floating and np.isnan(pixels).any():
        raise ValueError("has pixels that are NaN; they should be numbers from 0 to 1")
    low, high, top = pixels.min(), pixels.max(), 1 if floating else 255
    if low < 0 or high > top:
        raise ValueError(f"has pixels from {low} to {high}; {pixels.dtype} goes from 0 to {top}")
    return (pixels * (255 / top)).round().astype(np.uint8)
