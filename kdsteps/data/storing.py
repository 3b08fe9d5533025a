"""One pass over the images of a source: each is decoded, checked, summarized and passed on.

Only sums and hashes of an image stay in memory, so that a data set of any size can be prepared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kdsteps.data.hashes import pixel_hash
from kdsteps.data.source import Broken, Picture, Source, as_uint8
from kdsteps.errors import KdstepsError

_CHUNK = 1024  # images written at a time, at most
_CHUNK_BYTES = 64 * 2**20  # and what they may take
_NAMED = 3  # examples in a message


@dataclass
class Survey:
    """Statistics of the images so far.

    Attributes:
        stored: Number in the source of each image that was passed on.
        hashes: Of the pixels of each of them.
        sums, squares: (C,) over the pixels of each of them, whole numbers: exact in any order.
        sizes: How many images had each height and width before resizing.
        modes: How many images had each mode of pixels.
        broken: The images that could not be read, one sentence each.
        shape: (C, H, W) of every image.
    """

    stored: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    sums: list[list[int]] = field(default_factory=list)
    squares: list[list[int]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None

    @property
    def seen(self) -> int:
        """How many images of the source were read, or found broken."""
        return len(self.stored) + len(self.broken)

    def note(self, number: int, picture: Picture) -> None:
        """Add an image that is passed on."""
        flat = picture.pixels.reshape(len(picture.pixels), -1)
        wide = flat.astype(np.uint32)
        self.stored.append(number)
        self.hashes.append(pixel_hash(picture.pixels))
        self.sums.append(wide.sum(axis=1, dtype=np.int64).tolist())
        self.squares.append((wide * wide).sum(axis=1, dtype=np.int64).tolist())
        self.sizes[picture.size] += 1
        self.modes[picture.mode] += 1

    def mean_and_std(self, rows: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
        """Of each channel over the images `rows`, on the scale 0 to 1.

        Args:
            rows: Which of the images that were passed on.
            pixels: Of one channel of one image.
        """
        count = 255 * pixels * len(rows)
        total = np.array(self.sums, dtype=np.int64)[rows].sum(axis=0)
        square = np.array(self.squares, dtype=np.int64)[rows].sum(axis=0)
        mean = total / count
        variance = square / (255 * count) - mean**2
        return mean.tolist(), np.sqrt(variance.clip(min=0)).tolist()


def decoded(
    source: Source, survey: Survey, *, broken: Literal["refuse", "skip"], threads: int = 1
) -> Iterator[np.ndarray]:
    """The images as uint8 in pieces of (n, C, H, W), while `survey` is filled in.

    Args:
        survey: Of the images that were stored before; they are not read again.
        broken: Whether images that cannot be read stop the run once all of them are known, or are
            left out.

    Raises:
        KdstepsError: Images cannot be read and are not to be skipped, none can be read, or
            sizes differ.
    """
    waiting: list[np.ndarray] = []
    for number, picture in enumerate(_pictures(source, threads, survey.seen), survey.seen):
        name = source.names[number]
        if isinstance(picture, Broken):
            survey.broken.append(f"{name}: {picture.reason}")
            continue
        survey.shape = survey.shape or picture.pixels.shape
        if picture.pixels.shape != survey.shape:
            first = source.names[(survey.stored or [number])[0]]
            raise KdstepsError(_sizes_differ(first, survey.shape, name, picture.pixels.shape))
        survey.note(number, picture)
        waiting.append(picture.pixels)
        if len(waiting) >= min(_CHUNK, _CHUNK_BYTES // picture.pixels.nbytes):
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
    _refuse_broken(survey, len(source.labels), skip=broken == "skip")


def _pictures(source: Source, threads: int, start: int) -> Iterator[Picture | Broken]:
    if not isinstance(source.images, np.ndarray):
        yield from source.images.pictures(threads, start)
        return
    mode = {1: "L", 3: "RGB"}.get(source.images.shape[1], f"{source.images.shape[1]} channels")
    for image in source.images[start:]:
        try:
            yield Picture(as_uint8(image), image.shape[1:], mode)
        except ValueError as error:
            yield Broken(str(error))


def _sizes_differ(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> str:
    return (
        f"images differ in size: {first} is {shape[1]} x {shape[2]}, {name} is {other[1]} x "
        f"{other[2]}; set `store` (or `resize` and `crop`) in the data set, so that all become "
        "one size"
    )


def _refuse_broken(survey: Survey, count: int, *, skip: bool) -> None:
    if not survey.stored:
        why = f": {survey.broken[0]}" if survey.broken else ""
        raise KdstepsError(f"none of the {count} images can be read{why}")
    if survey.broken and not skip:
        examples = "; ".join(survey.broken[:_NAMED])
        more = len(survey.broken) - _NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise KdstepsError(
            f"{len(survey.broken)} of {count} images cannot be read: {examples}{rest}; repair or "
            "remove them, or set prepare.broken to `skip`"
        )
