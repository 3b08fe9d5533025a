"""The file `images.npy` while it is being written; interrupted runs resume.

Pixels are in a hidden file next to the final one, and a journal has the findings about them. Both
are removed when the run ends, with or without an error; if it is killed, they remain.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kdsteps.data.storing import Survey
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import HEADER_BYTES, write_array_header
from kdsteps.files.atomic import DISK_FULL, atomic
from kdsteps.files.journal import journal_line, read_journal

log = logging.getLogger("kdsteps")

SAVE_SECONDS = 10.0  # between two entries of the journal
_LISTS = ("stored", "hashes", "sums", "squares")  # of a survey, an element for each image

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}


class ImageStore:
    """Images (N, C, H, W) of uint8 that are being written to disk.

    Attributes:
        survey: Of the stored images, among them those that an interrupted run recorded.
    """

    def __init__(self, target: Path, key: str, count: int, final: Path) -> None:
        """Args:
        target: The file that the images become.
        key: Of everything they depend on; files of a run with another key are not used.
        count: How many images there will be, at most.
        final: Where `target` ends up; it names the files that a later run resumes from.
        """
        self.target, self.count = target, count
        self.pixels, self.journal = _unfinished(final)
        self.survey = self._resumed(key)
        self._recorded = len(self.survey.stored), len(self.survey.broken)
        self._saved_at = time.monotonic()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.pixels.open("r+b" if self.survey.seen else "wb")
        if self.survey.seen:
            log.info("resuming after %d of %d images", self.survey.seen, count)
            self._file.truncate(self._bytes_before(len(self.survey.stored)))
            self._file.seek(0, os.SEEK_END)
        else:
            self._file.write(b" " * HEADER_BYTES)
        lines = [{"key": key}, _entry(self.survey, 0, 0)]  # without a line that was being written
        self.journal.write_text("".join(map(journal_line, lines)))
        self._space_checked = False

    def add(self, images: np.ndarray) -> None:
        """Append (n, C, H, W); `survey` already includes them.

        Raises:
            KdstepsError: The disk has too little space for all images.
        """
        if not self._space_checked:
            self._check_space(images[0].nbytes)
            self._space_checked = True
        self._file.write(np.ascontiguousarray(images).data)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all images so far."""
        assert self.survey.shape is not None, "there is at least one image"
        return (len(self.survey.stored), *self.survey.shape)

    def finish(self) -> None:
        """Move the finished file to the target."""
        self._file.seek(0)
        write_array_header(self._file, np.dtype(np.uint8), self.shape)
        self.close()
        with atomic(self.target) as part:
            os.replace(self.pixels, part)

    def close(self) -> None:
        self._file.close()

    def _check_space(self, one: int) -> None:
        needed = HEADER_BYTES + self.count * one
        free = shutil.disk_usage(self.target.parent).free
        log.info("the images need %s of disk space; %s are free", _size(needed), _size(free))
        if needed - self._file.tell() > free:
            raise KdstepsError(
                f"{self.target}: {self.count:,} images of {self.survey.shape} need "
                f"{_size(needed)}, and the disk has {_size(free)} free; free some space, store "
                "smaller images (`store`) or fewer (`per_class`)"
            )

    def _bytes_before(self, image: int) -> int:
        one = int(np.prod(self.survey.shape)) if self.survey.shape else 0
        return HEADER_BYTES + image * one

    def _save(self) -> None:
        """Record the images so far; their pixels are on the disk before."""
        self._file.flush()
        os.fsync(self._file.fileno())
        with self.journal.open("a") as journal:
            journal.write(journal_line(_entry(self.survey, *self._recorded)))
        self._recorded = len(self.survey.stored), len(self.survey.broken)
        self._saved_at = time.monotonic()

    def _resumed(self, key: str) -> Survey:
        """What an interrupted run recorded under the same key; empty if nothing matches."""
        survey = Survey()
        try:
            first, *entries = read_journal(self.journal)
        except (OSError, ValueError):  # there is none, or not even its first line is whole
            return survey
        if first != {"key": key}:
            return survey
        for entry in entries:
            _extend(survey, entry)
        size = self.pixels.stat().st_size if self.pixels.is_file() else 0
        one = int(np.prod(survey.shape)) if survey.shape else 0
        return survey if size >= HEADER_BYTES + len(survey.stored) * one else Survey()


@contextmanager
def image_store(
    target: Path, key: str, count: int, final: Path | None = None
) -> Iterator[ImageStore]:
    """An `ImageStore` that leaves nothing behind when the block ends, unless the run is killed.

    Raises:
        KdstepsError: The disk is full or cannot be written.
    """
    store: ImageStore | None = None
    try:
        store = ImageStore(target, key, count, final or target)
        yield store
        _discard(store, final or target)
    except Exception as error:
        _discard(store, final or target)
        if isinstance(error, OSError):
            full = error.errno in DISK_FULL
            what = "the disk is full" if full else f"cannot be written ({error.strerror})"
            hint = "free some space" if full else f"make {target.parent} writable"
            safe = " (finished results are safe)" if full else ""
            raise KdstepsError(f"{target}: {what}; {hint} and run again{safe}") from error
        raise
    finally:
        if store is not None:
            with suppress(OSError):  # what a full disk does not take
                store.close()


def _unfinished(final: Path) -> tuple[Path, Path]:
    """The pixels and the journal of images on their way to `final`."""
    pixels = final.with_name(f".{final.name}.unfinished")
    return pixels, pixels.with_name(f"{pixels.name}.jsonl")


def _discard(store: ImageStore | None, final: Path) -> None:
    """Remove what is only needed to resume."""
    if store is not None:
        with suppress(OSError):
            store.close()
    for path in _unfinished(final):
        with suppress(OSError):
            path.unlink()


def _entry(survey: Survey, stored: int, broken: int) -> dict[str, Any]:
    """What was added to a survey since it had these numbers of stored and broken images."""
    lists = {name: getattr(survey, name)[stored:] for name in _LISTS}
    return lists | {
        "broken": survey.broken[broken:],
        "sizes": [[*size, count] for size, count in survey.sizes.items()],
        "modes": survey.modes,
        "shape": survey.shape,
    }


def _extend(survey: Survey, entry: dict[str, Any]) -> None:
    for name in (*_LISTS, "broken"):
        getattr(survey, name).extend(entry[name])
    survey.sizes = Counter({(height, width): count for height, width, count in entry["sizes"]})
    survey.modes = Counter(entry["modes"])
    survey.shape = tuple(entry["shape"]) if entry["shape"] else None


def _size(count: int) -> str:
    """Bytes in readable form."""
    unit, size = next(
        (unit, size) for unit, size in _UNITS.items() if count >= size or unit == "bytes"
    )
    return f"{count / size:,.1f} {unit}" if size > 1 else f"{count} {unit}"
