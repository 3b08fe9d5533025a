"""What an unfinished job has done so far, in a small file that other processes can read.

The file has one line of JSON for each attempt and for each epoch of a training; of a training in
several processes, the first one writes its epochs. The job holds a lock on the file while it runs,
which the system releases however the job ends, and removes the file when its results are written.
So the files that are left are those of jobs that run, failed or were stopped. Nothing here can stop
a job: where the file cannot be written, there is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from traceback import format_exception_only
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs.job import Job

FOLDER = Path(".kdsteps/jobs")  # a cache: it may be deleted at any time
EPOCHS = logging.getLogger("kdsteps.epochs")  # the training loop writes one record per epoch


@dataclass(frozen=True)
class Progress:
    """What an unfinished job has done so far.

    Attributes:
        running: Whether its process is alive.
        failed: Whether it ended with an error, not because it was stopped.
        why: That error in one line; "" if there is none, or it is not known.
        started: The last attempt, in seconds since 1970.
        epoch, epochs: The last epoch that ended, and how many there are; 0: not known.
        history: For each epoch from 1, its losses and metrics by name.
        epoch_seconds: The median time of an epoch; None where it is not known.
    """

    running: bool
    failed: bool
    started: float
    why: str = ""
    epoch: int = 0
    epochs: int = 0
    history: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    epoch_seconds: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """The time that the other epochs take; None where it is not known."""
        if self.epoch_seconds is None or not self.epochs:
            return None
        return (self.epochs - self.epoch) * self.epoch_seconds


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """Write down what a job does during the block.

    Args:
        target: The first of its files, which identifies it.
    """
    path = progress_file(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:  # a read-only folder
        yield
        return
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _append(handle, {"started": time.time()})
    before = EPOCHS.level, EPOCHS.propagate
    writer = _write_epochs(handle)
    try:
        yield
    except BaseException as error:
        _append(handle, {"failed": isinstance(error, Exception), "why": _said(error)})
        raise
    else:
        with suppress(OSError):  # a read-only folder
            path.unlink()
    finally:
        EPOCHS.removeHandler(writer)
        EPOCHS.setLevel(before[0])
        EPOCHS.propagate = before[1]
        os.close(handle)


def handlers_of(job: Job[Any], *, reports: bool) -> list[logging.Handler]:
    """The log handlers of one of several processes of a job: lines go to stderr.

    Args:
        reports: Whether this process writes its epochs where the job reports what it does, which is
            in the process that started this one.
    """
    target = next(iter((job.final or job.outputs).values()), None)
    if reports and target is not None:
        with suppress(OSError):  # the job could not write the file either
            _write_epochs(os.open(progress_file(target), os.O_WRONLY | os.O_APPEND))
    return [logging.StreamHandler(sys.stderr)]


def read_progress(target: Path) -> Progress | None:
    """What a job has written down; None if there is nothing.

    A line that was not written to its end is ignored.
    """
    try:
        with progress_file(target).open("rb") as file:
            lines = file.read().splitlines()
            running = _is_locked(file.fileno())
    except OSError:
        return None
    return _progress([found for line in lines if (found := parsed(line))], running)


def progress_file(target: Path) -> Path:
    digest = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    return FOLDER / f"{'-'.join(target.parts[-5:-1])[-100:]}-{target.stem[:40]}-{digest}.jsonl"


def _write_epochs(handle: int) -> _Writer:
    """Have the records of the training loop written to an open file."""
    writer = _Writer(handle)
    EPOCHS.setLevel(logging.DEBUG)
    EPOCHS.propagate = False
    EPOCHS.addHandler(writer)
    return writer


class _Writer(logging.Handler):
    """Appends the losses and metrics of each epoch."""

    def __init__(self, handle: int) -> None:
        super().__init__(logging.DEBUG)
        self._handle = handle

    def emit(self, record: logging.LogRecord) -> None:
        values = last_epoch(record)
        _append(self._handle, {**values, "time": time.monotonic()})  # clocks may be set back


def last_epoch(record: logging.LogRecord) -> dict[str, Any]:
    """The epoch that a record of the training loop is about: its number, and values by name."""
    epoch, epochs = record.args  # type: ignore[misc]
    history = record.history  # type: ignore[attr-defined]
    rows = zip(history.epoch, history.name, history.value, strict=True)
    values = {name: value for number, name, value in rows if number == epoch}
    return {"epoch": epoch, "epochs": epochs, "values": values}


def _said(error: BaseException) -> str:
    """An error as the last line of a job's log says it; "" for an interrupt."""
    if not isinstance(error, Exception):
        return ""
    text = str(error) if isinstance(error, KdstepsError) else format_exception_only(error)[-1]
    return text.strip().rpartition("\n")[2]


def _append(handle: int, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a full disk
        os.write(handle, json.dumps(content).encode() + b"\n")


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def parsed(line: bytes) -> dict[str, Any]:
    """What a line says; empty for one that was not written to its end."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _progress(lines: list[dict[str, Any]], running: bool) -> Progress | None:
    started, failed, why, epochs = 0.0, False, "", 0
    history: dict[int, Mapping[str, float]] = {}
    times: list[float] = []
    try:
        for line in lines:
            if "started" in line:
                started, failed, why, times = float(line["started"]), False, "", []
            elif "failed" in line:
                failed, why = bool(line["failed"]), str(line.get("why", ""))
            elif "epoch" in line:
                epoch, epochs = int(line["epoch"]), int(line["epochs"])
                history = {number: there for number, there in history.items() if number < epoch}
                history[epoch] = {name: float(v) for name, v in line["values"].items()}
                times.append(float(line["time"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    gaps = [after - before for before, after in pairwise(times)]
    return Progress(
        running=running,
        failed=failed and not running,
        started=started,
        why=why,
        epoch=max(history, default=0),
        epochs=epochs,
        history=history,
        epoch_seconds=median(gaps) if gaps else None,
    )
