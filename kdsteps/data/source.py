"""The result of every kind of data: images, mostly labeled, not yet checked, split and stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

SPLITS = ("train", "validation", "test")
UNKNOWN = -1
"""The label of an image without one."""


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read, and why."""

    reason: str


@dataclass(frozen=True)
class Picture:
    """One image after decoding, and what it was before.

    Attributes:
        pixels: (C, H, W), uint8.
        size: Height and width before any resizing.
        mode: Mode of the pixels in its file, as Pillow calls it: "RGB", "L", "P", ...
    """

    pixels: np.ndarray
    size: tuple[int, int]
    mode: str


class Encoded(Protocol):
    """Images that are decoded one after the other and never all in memory."""

    def __len__(self) -> int: ...

    def pictures(self, threads: int, start: int = 0) -> Iterator[Picture | Broken]:
        """Every image in order from number `start`, decoded on `threads` threads."""
        ...


@dataclass(frozen=True)
class Source:
    """Images as a kind of data returns them.

    Attributes:
        images: (N, C, H, W) as uint8 or as floats from 0 to 1, or images still to be decoded.
        labels: (N,), whole numbers from 0; `UNKNOWN` where there are no classes.
        class_names: K names, by class number; none for images without labels, unless known.
        split: (N,) "train", "validation" or "test" for each image, or "" for all of them where
            the source does not say.
        names: (N,) where each image came from, for messages and to find it again.
        image_size: Height and width that networks see, the center of what is stored; None: all of
            it.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: np.ndarray
    names: tuple[str, ...]
    image_size: tuple[int, int] | None = None


def without_labels(source: Source, class_names: tuple[str, ...] = ()) -> Source:
    """The same images, their labels unknown.

    Args:
        class_names: Classes that they may be of.
    """
    unknown = np.full(len(source.labels), UNKNOWN, dtype=np.int64)
    return replace(source, labels=unknown, class_names=class_names)


def as_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8; floats from 0 to 1 are scaled to 0 to 255.

    Raises:
        ValueError: A value is not a number or out of range; the message follows the image's name.
    """
    if pixels.dtype == np.uint8:
        return pixels
    floating = np.issubdtype(pixels.dtype, np.floating)
    if not (floating or np.issubdtype(pixels.dtype, np.integer)):
        raise ValueError(f"has pixels of {pixels.dtype}; they should be numbers")
    if floating and np.isnan(pixels).any():
        raise ValueError("has pixels that are NaN; they should be numbers from 0 to 1")
    low, high, top = pixels.min(), pixels.max(), 1 if floating else 255
    if low < 0 or high > top:
        raise ValueError(f"has pixels from {low} to {high}; {pixels.dtype} goes from 0 to {top}")
    return (pixels * (255 / top)).round().astype(np.uint8)
