"""Cache a teacher's outputs for every view of every training image, if that saves time.

A forecast of size and time decides. Outputs are written shard by shard: an interrupted job
resumes after its last shard, and a file with its final name is complete.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdsteps.data.images import ImageSplit, Order, Views
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import DISK_FULL
from kdsteps.files.text import write_json
from kdsteps.teachers.logits import (
    CachedOutputs,
    LiveTeacher,
    checksum,
    description_path,
    sample_of,
    shards,
)

log = logging.getLogger("kdsteps")

GPU_BATCH = 1024  # images at a time, where the batch size does not matter
SHARD = 4096  # outputs that a kill may cost
TIMED = 3  # batches for the forecast of the time


@dataclass(frozen=True)
class Terms:
    """When outputs are cached.

    Attributes:
        keep: "auto" (if that is cheaper), "always" or "never".
        passes: Passes over the training images that would use the cache.
        budget_mib: Largest size of the file.
    """

    keep: str
    passes: int
    budget_mib: int


@dataclass(frozen=True)
class Forecast:
    """What a cache would cost.

    Attributes:
        num_images, num_views: N and V.
        size_mib: Size of the file.
        seconds: Time to write it.
    """

    num_images: int
    num_views: int
    size_mib: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.num_images} images x {self.num_views} views, {_size(self.size_mib)}, "
            f"{_duration(self.seconds)} to write, the time of {self.num_views} teacher passes"
        )


def teacher_outputs(
    path: Path, live: LiveTeacher, part: ImageSplit, views: Views, terms: Terms
) -> CachedOutputs | LiveTeacher:
    """The teacher's outputs: from the file if it exists or is worth writing, else computed.

    Args:
        path: Named after everything the outputs depend on.
        live: The frozen teacher.
        part: The training images.
        views: The views that crops and flips make.
        terms: When outputs are cached.

    Raises:
        KdstepsError: The file has to be written and exceeds the budget, or what was written is not
            what the teacher computes.
    """
    if terms.keep == "never":
        log.info("computing teacher logits on the fly: cache.outputs is never")
        return live
    if path.exists():
        try:
            found = CachedOutputs(path, live, part, views)
            log.info("reading teacher logits from %s", path)
            return found
        except KdstepsError as error:
            log.warning("%s", error)
            path.unlink(missing_ok=True)
    expected = forecast(live, part, views)
    wanted, why = decide(expected, terms)
    log.info("%s: %s", expected, why)
    if not wanted:
        return live
    with alone(path):
        if not path.exists():
            write_outputs(path, live, part, views)
    log.info("reading teacher logits from %s", path)
    return CachedOutputs(path, live, part, views)


def forecast(live: LiveTeacher, part: ImageSplit, views: Views) -> Forecast:
    """Size and time of all outputs, estimated from a few batches."""
    size = _batch_size(live, part)
    index, view = sample_of(len(part), views.count, size)
    width = live.compute(part.take(index, views, view).images).shape[1]
    started = time.perf_counter()
    for _ in range(TIMED):
        live.compute(part.take(index, views, view).images).cpu()
    each = (time.perf_counter() - started) / (TIMED * size)
    count = len(part) * views.count
    return Forecast(len(part), views.count, 2 * count * width / 2**20, count * each)


def decide(expected: Forecast, terms: Terms) -> tuple[bool, str]:
    """Whether to write the cache, and why.

    Raises:
        KdstepsError: It has to be written and exceeds the budget.
    """
    if expected.size_mib > terms.budget_mib:
        over = f"more than the budget of {_size(terms.budget_mib)}"
        if terms.keep == "always":
            raise KdstepsError(
                f"cache.outputs: always, but {expected} is {over}; raise cache.budget_gib or set "
                "cache.outputs to auto"
            )
        return False, f"not cached, {over}"
    if terms.keep == "always":
        return True, "cached, since cache.outputs is always"
    uses = f"{terms.passes} passes would use it"
    if terms.passes <= expected.num_views:
        return False, f"not cached, only {uses}"
    return True, f"cached, {uses}"


def write_outputs(path: Path, live: LiveTeacher, part: ImageSplit, views: Views) -> None:
    """Write all outputs, or those that an earlier job did not finish.

    Raises:
        KdstepsError: An output is not finite or too large for float16, or the disk is full.
    """
    part_path, progress = path.with_suffix(".npy.part"), path.with_suffix(".progress")
    index, view = sample_of(len(part), views.count)
    width = live.compute(part.take(index, views, view).images).shape[1]
    images_each = max(1, SHARD // views.count)
    with cannot_be_written(path):
        rows = _opened(part_path, progress, (len(part), views.count, width))
        done = _finished(progress, rows, images_each)
        if done:
            log.info("resuming after %d of %d shards", len(done), -(-len(part) // images_each))
        with progress.open("a") as noted:
            for number, images in shards(len(part), images_each):
                if number in done:
                    continue
                rows[images] = _compute_all(live, part, views, images)
                done[number] = checksum(rows[images])
                noted.write(f"{number} {done[number]}\n")
                noted.flush()
        publish(part_path, path, rows, images_each, [done[number] for number in sorted(done)])
        progress.unlink()


@contextmanager
def cannot_be_written(path: Path) -> Iterator[None]:
    """Raise KdstepsError about a cache file if the disk is full, or fails in another way."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in DISK_FULL else error.strerror
        raise KdstepsError(
            f"{path}: cannot be written ({reason}); free some space, or set cache.outputs to never"
        ) from error


def reserved(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new float16 array in a file, whose space is reserved at once.

    Raises:
        OSError: The disk is full; the file is removed, and takes no space.
    """
    try:
        fresh = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        _reserve(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return fresh


def _reserve(path: Path) -> None:
    """Reserve the space of a file: a full disk is noticed here, and not by a crash later."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def publish(draft: Path, path: Path, rows: np.memmap, images_each: int, sums: list[int]) -> None:
    """Give a complete file its final name, after it and its description are on the disk.

    Args:
        rows: The array in `draft`, (N images, V views, width).
        images_each: Of a shard.
        sums: Of each shard.
    """
    rows.flush()
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    content = {"row": rows.shape[2], "images_each": images_each, "checksums": sums}
    write_json(description_path(path), content)
    os.replace(draft, path)


def _opened(path: Path, progress: Path, shape: tuple[int, ...]) -> np.memmap:
    """The unfinished array of that shape, or a new one; the space of either is reserved."""
    if (there := _unfinished(path, shape)) is not None:
        _reserve(path)  # of a job that was killed before it had done so, or of a copy
        return there
    progress.unlink(missing_ok=True)
    return reserved(path, shape)


def _unfinished(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    with suppress(OSError, ValueError, EOFError):
        there = np.load(path, mmap_mode="r+", allow_pickle=False)
        if isinstance(there, np.memmap) and there.shape == shape and there.dtype == np.float16:
            return there
    return None


def _finished(progress: Path, rows: np.ndarray, images_each: int) -> dict[int, int]:
    """Verified checksums of the shards that an earlier job finished, by number."""
    noted: dict[int, int] = {}
    with suppress(FileNotFoundError):
        for line in progress.read_text().splitlines():
            numbers = line.split()
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                noted[int(numbers[0])] = int(numbers[1])
    return {
        number: noted[number]
        for number, images in shards(len(rows), images_each)
        if number in noted and checksum(rows[images]) == noted[number]
    }


def _compute_all(live: LiveTeacher, part: ImageSplit, views: Views, images: slice) -> np.ndarray:
    """(images, V, R) float16."""
    place = torch.arange(images.start * views.count, images.stop * views.count)
    index, view = place // views.count, place % views.count
    size = _batch_size(live, part)
    pieces = zip(index.split(size), view.split(size), strict=True)
    orders = [Order(*piece, seed=0) for piece in pieces]
    rows = torch.cat([live.compute(batch.images) for batch in part.batches(orders, views)])
    if not rows.isfinite().all():
        raise KdstepsError(
            "the teacher's outputs contain NaN, infinity or numbers above 65504 (the limit of "
            "float16); check its weights, or train it with a lower learning_rate"
        )
    return rows.cpu().numpy().reshape(images.stop - images.start, views.count, -1)


def _batch_size(live: LiveTeacher, part: ImageSplit) -> int:
    return GPU_BATCH if part.device.type == "cuda" else live.batch_size


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other job writes this file, and let others wait until the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(mib: float) -> str:
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
