"""One job of a study, run here for a moment: whether it works, how long it takes, what it needs."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.jobs.progress import EPOCHS
from kdsteps.study.part_imports import own_frame, shown_path

LOOK = 0.4  # seconds of epochs after which a training is stopped
FEWEST, MOST = 3, 60  # epochs of it
_PATIENCE = 10.0  # seconds beyond its limit in which an epoch has to end
_LONGEST = 300  # characters of an error that is not ours
_LIVE = "computing teacher logits on the fly"


class TrialError(Exception):
    """Why a job would fail, as one sentence."""


@dataclass
class Trial:
    """What was seen of a job.

    Attributes:
        seconds: All of it, on few images.
        epochs: Seconds of each epoch.
        live: Whether the teacher ran on every batch because nothing may be cached in a trial.
        memory: The largest memory of the process during it, in bytes; 0: not known.
        gpu_memory: Likewise of the GPU.
    """

    seconds: float = 0.0
    epochs: list[float] = field(default_factory=list)
    live: bool = False
    memory: int = 0
    gpu_memory: int = 0

    @property
    def epoch(self) -> float:
        """Seconds of an epoch; the first one is a warm-up."""
        return median(self.epochs[1:] or self.epochs or [0.0])

    @property
    def setup(self) -> float:
        """Seconds of what is done once."""
        return max(0.0, self.seconds - sum(self.epochs) + max(0.0, self._warmup))

    @property
    def _warmup(self) -> float:
        return self.epochs[0] - self.epoch if len(self.epochs) > 1 else 0.0


class _Enough(BaseException):
    """Ends a training whose epochs were timed; no error, and not caught as one."""


class _Watch(logging.Handler):
    """Times epochs, and ends the training after enough of them."""

    def __init__(self, trial: Trial, limit: float) -> None:
        super().__init__()
        self.trial, self.limit = trial, limit
        self.started = self.last = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != EPOCHS.name:
            self.trial.live |= str(record.msg).startswith(_LIVE)
            return
        now = time.perf_counter()
        self.trial.epochs.append(now - self.last)
        self.last = now
        timed = self.trial.epochs[1:]
        enough = len(timed) >= FEWEST - 1 and (sum(timed) > LOOK or len(timed) >= MOST)
        if self.limit < inf and (enough or now - self.started > self.limit):
            raise _Enough


def attempt(rule: str, job: Job[Any], limit: float) -> Trial:
    """Run a stage on a few images.

    Args:
        limit: Seconds after which a training ends with its epoch; infinity: it is not stopped.

    Raises:
        TrialError: The job would fail.
    """
    trial = Trial()
    for path in job.outputs.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    stage = import_module(f"kdsteps.stages.{graph.stage_of(rule)}")
    with _measured(trial), _quiet(_Watch(trial, limit)) as watch, _explained(job):
        watch.last = time.perf_counter()
        with contextlib.suppress(_Enough), _at_most(limit + _PATIENCE):
            stage.run(job)
    return trial


def timed(job: Job[Any], batch_size: int, **options: Any) -> float:
    """Seconds of a forward pass of the checkpoint of a job; see `stages.passes`.

    Raises:
        TrialError: The network cannot be built or run.
    """
    passes = import_module("kdsteps.stages.passes")
    with _quiet(_Watch(Trial(), 0.0)), _explained(job):
        found: float = passes.forward_seconds(job, batch_size, **options)
        return found


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End a block after some time, even in the middle of an epoch."""
    if seconds == inf:
        yield
        return

    def stop(*_: object) -> None:
        raise _Enough

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def failure(error: Exception) -> str:
    """`fails with ERROR: text`, and the last line of the user's own code that led to it."""
    text = " ".join(str(error).split())[:_LONGEST]
    frame = own_frame(error)
    file = shown_path(frame.filename).removeprefix("./") if frame else ""
    where = f" in {file}, line {frame.lineno}" if frame else ""
    return f"fails with {type(error).__name__}{where}: {text}"


@contextlib.contextmanager
def _explained(job: Job[Any]) -> Iterator[None]:
    """Turn what a stage raises into one sentence."""
    try:
        yield
    except KdstepsError as error:
        raise TrialError(str(error)) from error
    except (MemoryError, SystemExit) as error:
        raise TrialError("the memory ran out") from error
    except Exception as error:  # of the user's own code, or a bug: the check goes on
        if isinstance(error, RuntimeError):
            explain = import_module("kdsteps.training.out_of_memory").out_of_memory
            if sentence := explain(error, job):
                raise TrialError(sentence) from error
        raise TrialError(failure(error)) from error


@contextlib.contextmanager
def _quiet(watch: _Watch) -> Iterator[_Watch]:
    """Send what a stage logs to `watch` instead of the terminal."""
    log = logging.getLogger("kdsteps")
    before = log.propagate, log.level, EPOCHS.level
    log.addHandler(watch)
    log.propagate = False
    log.setLevel(logging.INFO)
    EPOCHS.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield watch
    finally:
        log.removeHandler(watch)
        log.propagate = before[0]
        log.setLevel(before[1])
        EPOCHS.setLevel(before[2])


@contextlib.contextmanager
def _measured(trial: Trial) -> Iterator[None]:
    """Note the time and the memory of a block."""
    import torch

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the largest memory so far
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        trial.seconds = time.perf_counter() - started
        trial.memory = _largest_memory()
        gc.collect()  # the networks of a training refer to each other
        if torch.cuda.is_initialized():
            trial.gpu_memory = torch.cuda.max_memory_reserved()
            torch.cuda.empty_cache()


def _largest_memory() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0
