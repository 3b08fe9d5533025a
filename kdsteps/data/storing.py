"""One pass over the images of a source: each is decoded, checked, measured and handed on.

Only sums and hashes of an image stay in memory, so that a set of any size can be prepared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import numpy as np

from kdsteps.data.source import Broken, Picture, Source, as_uint8
from kdsteps.errors import KdstepsError

CHUNK = 1024  # images written at a time
_NAMED = 3  # examples in a message


@dataclass
class Survey:
    """What was seen while the images went by.

    Attributes:
        kept: Number in the source of each image that was handed on.
        hashes: Of the pixels of each of them.
        sums, squares: (C,) over the pixels of each of them, whole numbers: exact in any order.
        sizes: How many images had each height and width before resizing.
        modes: How many images had each kind of pixels.
        broken: What could not be read, a sentence each.
    """

    kept: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    squares: list[np.ndarray] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def mean_and_std(self, rows: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
        """Of each channel over the images `rows`, on the scale 0 to 1.

        Args:
            rows: Which of the images that were kept.
            pixels: Of one channel of one image.
        """
        count = 255 * pixels * len(rows)
        total = np.stack([self.sums[row] for row in rows]).sum(axis=0)
        square = np.stack([self.squares[row] for row in rows]).sum(axis=0)
        mean = total / count
        variance = square / (255 * count) - mean**2
        return mean.tolist(), np.sqrt(variance.clip(min=0)).tolist()


def decoded(
    source: Source, survey: Survey, *, broken: Literal["refuse", "skip"], threads: int = 1
) -> Iterator[np.ndarray]:
    """The images as uint8 in pieces of (n, C, H, W), while `survey` is filled in.

    Args:
        broken: Whether one image that cannot be read stops everything, once all of them are known.

    Raises:
        KdstepsError: Images cannot be read and are not to be skipped, none can be read, or
            sizes differ.
    """
    waiting: list[np.ndarray] = []
    first: tuple[int, tuple[int, ...]] | None = None
    for number, picture in enumerate(_pictures(source, threads)):
        name = source.names[number]
        if isinstance(picture, Broken):
            survey.broken.append(f"{name}: {picture.reason}")
            continue
        first = first or (number, picture.pixels.shape)
        if picture.pixels.shape != first[1]:
            raise KdstepsError(_sizes_differ(source.names[first[0]], first[1], name, picture))
        _note(survey, number, picture)
        waiting.append(picture.pixels)
        if len(waiting) == CHUNK:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
    _refuse_broken(survey, len(source.labels), skip=broken == "skip")


def _pictures(source: Source, threads: int) -> Iterator[Picture | Broken]:
    if not isinstance(source.images, np.ndarray):
        yield from source.images.pictures(threads)
        return
    mode = {1: "L", 3: "RGB"}.get(source.images.shape[1], f"{source.images.shape[1]} channels")
    for image in source.images:
        try:
            yield Picture(as_uint8(image), image.shape[1:], mode)
        except ValueError as error:
            yield Broken(str(error))


def _note(survey: Survey, number: int, picture: Picture) -> None:
    flat = picture.pixels.reshape(len(picture.pixels), -1)
    wide = flat.astype(np.uint32)
    survey.kept.append(number)
    survey.hashes.append(blake2b(flat.tobytes(), digest_size=16).hexdigest())
    survey.sums.append(wide.sum(axis=1, dtype=np.int64))
    survey.squares.append((wide * wide).sum(axis=1, dtype=np.int64))
    survey.sizes[picture.size] += 1
    survey.modes[picture.mode] += 1


def _sizes_differ(first: str, shape: tuple[int, ...], name: str, picture: Picture) -> str:
    return (
        f"images differ in size: {first} is {shape[1]} x {shape[2]}, {name} is "
        f"{picture.pixels.shape[1]} x {picture.pixels.shape[2]}; "
        "give the dataset `resize` and `crop`, so that all become one size"
    )


def _refuse_broken(survey: Survey, count: int, *, skip: bool) -> None:
    if not survey.kept:
        why = f": {survey.broken[0]}" if survey.broken else ""
        raise KdstepsError(f"none of the {count} images can be read{why}")
    if survey.broken and not skip:
        examples = "; ".join(survey.broken[:_NAMED])
        more = len(survey.broken) - _NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise KdstepsError(
            f"{len(survey.broken)} of {count} images cannot be read: {examples}{rest}; mend or "
            "remove them, or let prepare.broken be `skip`"
        )
