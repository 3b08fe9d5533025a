"""A random sample of a data set: whether its images can be read, and how long that takes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from kdsteps.data.encoded import EncodedImages
from kdsteps.data.source import Source
from kdsteps.data.storing import Survey, decoded
from kdsteps.errors import KdstepsError

SEED = 0
SECONDS = 10.0  # after which no further image is read


@dataclass(frozen=True)
class Sample:
    """Some images of a data set.

    Attributes:
        pixels: (n, C, H, W), uint8, of those that can be read.
        labels: (n,).
        names: (n,) where each image came from.
        broken: What is wrong with the others, one sentence each.
        seconds: The time to read one image, on the threads that were used.
        modes: Of the pixels as they were read; none for images that are prepared.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    broken: tuple[str, ...]
    seconds: float
    modes: tuple[str, ...] = ()


def sample_of(source: Source, count: int, threads: int) -> Sample:
    """Read some images of every class, chosen at random by a fixed seed.

    Args:
        count: Of images; more if there are more classes.

    Raises:
        KdstepsError: None of them can be read, or their sizes differ.
    """
    rows = sample_rows(source.labels, count)
    with suppress(KdstepsError):  # imports what decoding needs, which is not timed
        list(decoded(_restricted(source, rows[:1]), Survey(), broken="skip"))
    chosen, started, survey = _restricted(source, rows), time.perf_counter(), Survey()
    pixels = np.concatenate(list(decoded(chosen, survey, broken="skip", threads=threads)))
    seen = max(1, survey.seen)
    return Sample(
        pixels,
        chosen.labels[survey.stored],
        tuple(chosen.names[number] for number in survey.stored),
        tuple(survey.broken),
        (time.perf_counter() - started) / seen,
        tuple(survey.modes),
    )


def sample_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Numbers of images, in order: at least one of each class, the others at random.

    Args:
        labels: (N,) of all images.
        count: Of images; more if there are more classes.
    """
    order = np.random.default_rng(SEED).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), first, assume_unique=True)
    return np.sort(order[np.concatenate([first, rest[: max(0, count - len(first))]])])


def _restricted(source: Source, rows: np.ndarray) -> Source:
    """The source with some of its images alone."""
    images = source.images
    if isinstance(images, np.ndarray):
        chosen: np.ndarray | EncodedImages = images[rows]
    elif isinstance(images, EncodedImages):
        chosen = images.subset(rows, SECONDS)
    else:  # of the user's own kind of data: those that come first
        rows = np.arange(min(len(rows), len(source.labels)))
        return replace(source, labels=source.labels[rows], names=source.names[: len(rows)])
    names = tuple(source.names[row] for row in rows)
    return replace(
        source, images=chosen, labels=source.labels[rows], split=source.split[rows], names=names
    )
