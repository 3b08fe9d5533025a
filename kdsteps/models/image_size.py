"""The size of images as settings name it: one number for square images, or height and width."""

from __future__ import annotations

from collections.abc import Sequence

ImageSize = int | Sequence[int]
"""Pixels: one number for square images, or (height, width)."""


def height_width(size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        ValueError: A sequence does not hold two numbers.
    """
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def plain_size(size: ImageSize) -> int | tuple[int, int]:
    """One number for square images, which every library takes, else (height, width)."""
    height, width = height_width(size)
    return height if height == width else (height, width)


def as_text(size: ImageSize) -> str:
    """`32` for square images, else `16 x 32`: height before width."""
    height, width = height_width(size)
    return str(height) if height == width else f"{height} x {width}"
