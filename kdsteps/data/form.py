"""The form in which the images of a data set are stored: channels and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdsteps.errors import KdstepsError

Size = int | Sequence[int]
"""One number for height and width, or [height, width], in pixels."""


@dataclass(frozen=True)
class Form:
    """How images are decoded.

    Attributes:
        channels: 1 for gray, 3 for color.
        resize: Pixels of the shorter side, or exactly [height, width]; None: not resized.
        store: Resized to cover this size, then cropped to its center; None: not done.
        crop: Size of the center crop after `resize`; None: no crop.
    """

    channels: Literal[1, 3]
    resize: Size | None = None
    store: Size | None = None
    crop: Size | None = None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop, for an image of this height and width."""
        if self.store is not None:
            wanted_height, wanted_width = pair(self.store)
            scale = max(wanted_height / height, wanted_width / width)
            height, width = round(height * scale), round(width * scale)
            return max(wanted_height, height), max(wanted_width, width)
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            scale = self.resize / min(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        return pair(self.resize)

    def decoded_side(self, height: int, width: int) -> int | None:
        """Pixels of each side to which a JPEG may be reduced while it is decoded, at most.

        None: it is decoded in full.
        """
        if self.store is None and self.resize is None:
            return None
        if self.store is None and isinstance(self.resize, int):
            return 2 * self.resize
        return 2 * max(self.resized(height, width))

    @property
    def cropped(self) -> tuple[int, int] | None:
        """Height and width of the center crop; None: no crop."""
        size = self.store if self.store is not None else self.crop
        return None if size is None else pair(size)


def pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def size_problem(*, store: Size | None, resize: Size | None, crop: Size | None) -> str | None:
    """What is wrong with options that set the stored size, or None."""
    if store is None or (resize is None and crop is None):
        return None
    other = "resize" if resize is not None else "crop"
    return (
        f"store and {other} both set the stored size; `store` alone resizes and crops to the center"
    )


def make_form(
    *,
    resize: Size | None,
    crop: Size | None,
    store: Size | None,
    image_size: Size | None,
) -> Form:
    """The form in color that the options of a data set describe.

    Images are stored at `store`, or as `resize` and `crop` say; `image_size` alone is also the
    size that is stored.

    Raises:
        KdstepsError: `store` is combined with `resize` or `crop`.
    """
    if problem := size_problem(store=store, resize=resize, crop=crop):
        raise KdstepsError(f"datasets: {problem}")
    if store is None and resize is None and crop is None:
        store = image_size
    return Form(3, resize, store, crop)
