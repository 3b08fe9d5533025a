"""Images that are decoded when they are needed, in order, on several threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from math import inf
from typing import Literal

import numpy as np

from kdsteps.data.decoding import Content, all_gray, decode
from kdsteps.data.form import Form, Size, make_form, pair
from kdsteps.data.source import Broken, Picture, Source

_AHEAD = 16  # images for each thread that are decoded before they are needed
_AHEAD_BYTES = 256 * 2**20  # and what they may take together


class EncodedImages:
    """Images before decoding."""

    def __init__(self, contents: Callable[[], Iterable[Content]], count: int, form: Form) -> None:
        """Args:
        contents: Returns the images before decoding, from the first one at each call.
        count: How many there are.
        form: What each becomes.
        """
        self._contents, self._count, self._form = contents, count, form

    def __len__(self) -> int:
        return self._count

    def subset(self, rows: Sequence[int] | np.ndarray, seconds: float = inf) -> EncodedImages:
        """Some of the images, in their order.

        Args:
            rows: Numbers of images, at least one.
            seconds: Time from the first image on after which no further one is read.
        """

        def contents() -> Iterator[Content]:
            wanted, last, end = set(map(int, rows)), max(rows), time.monotonic() + seconds
            for row, content in enumerate(self._contents()):
                if row in wanted:
                    yield content
                if row == last or time.monotonic() > end:
                    return

        return EncodedImages(contents, len(rows), self._form)

    def pictures(self, threads: int, start: int = 0) -> Iterator[Picture | Broken]:
        """Every image in order from number `start`; a few for each thread are decoded ahead."""
        ahead = _AHEAD * threads
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Picture | Broken]] = deque()
            for content in islice(self._contents(), start, None):
                waiting.append(pool.submit(decode, content, self._form))
                while len(waiting) >= ahead:
                    found = waiting.popleft().result()
                    ahead = _at_once(found, threads)
                    yield found
            while waiting:
                yield waiting.popleft().result()


def encoded_source(
    contents: Callable[[], Iterable[Content]],
    *,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    split: np.ndarray,
    names: Sequence[str],
    channels: Literal[1, 3] | None,
    resize: Size | None,
    crop: Size | None,
    store: Size | None,
    image_size: Size | None,
) -> Source:
    """A source of images that are still to be decoded.

    Args:
        contents: Returns the images before decoding, from the first one at each call.
        labels, class_names, split, names: As of `Source`.
        channels, resize, crop, store, image_size: Options of every kind of data with image files.

    Raises:
        KdstepsError: The options contradict each other.
    """
    form = make_form(resize=resize, crop=crop, store=store, image_size=image_size)
    if channels is None:
        channels = 1 if all_gray(contents()) else 3
    form = replace(form, channels=channels)
    return Source(
        images=EncodedImages(contents, len(labels), form),
        labels=labels,
        class_names=class_names,
        split=split,
        names=tuple(names),
        image_size=None if image_size is None else pair(image_size),
    )


def _at_once(found: Picture | Broken, threads: int) -> int:
    """How many images of this size may be decoded ahead."""
    size = found.pixels.nbytes if isinstance(found, Picture) else 0
    return min(_AHEAD * threads, max(threads, _AHEAD_BYTES // max(1, size)))
