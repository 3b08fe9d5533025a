"""Live metrics: for each logger of a study, a process that follows a job while it trains.

A job writes its epochs to its progress file whether there are loggers or not. A logger is a process
of its own that reads this file, so a training does nothing for it and waits for nothing: a logger
that raises, hangs, is killed or has a full disk cannot reach the job, one that is slow has all
epochs in the file, and one that starts again finds them there. (A thread would share the
interpreter, its memory and its exit with the job; a queue would need a bound, and a rule for what
to drop.) A logger is 60 MiB (TensorBoard) to 190 MiB (MLflow) of memory and some seconds of
one core, at low priority.

The job waits for its loggers once, after its results are in place: `GRACE` seconds, and a few more
until their processes have ended.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdsteps.jobs.progress import progress_file
from kdsteps.study.loggers import LoggerSettings
from kdsteps.study.part_imports import PACKAGE

log = logging.getLogger("kdsteps")

RULES = ("train", "tune", "distil")
"""The rules whose jobs train a network."""
GRACE = 10.0
"""Seconds after a job in which loggers can write its last epochs."""
_MORE = 5.0  # seconds in which a process should notice that this time is over

_PROGRAM = "import sys; sys.path[:] = {path!r}; from kdsteps.loggers._process import main; main()"


@contextmanager
def logged_live(target: Path, loggers: Sequence[LoggerSettings]) -> Iterator[None]:
    """Have loggers follow the job that runs in the block, which writes its progress file.

    Args:
        target: The first of the job's files, which identifies it.
    """
    processes = {}
    for settings in loggers:
        try:
            processes[settings.name] = _started(settings, target)
        except OSError as error:
            log.warning("loggers: %s: cannot be started (%s)", settings.name, error)
    try:
        yield
    finally:
        _end(processes)


def job_name(target: Path) -> str:
    """Stage and names of a job, such as `distil/pair/kd/0`, from the first of its files."""
    folders = target.parent.parts
    if "results" in folders:
        last = len(folders) - folders[::-1].index("results")
        folders = folders[last:]
    return "/".join(folder for folder in folders[-5:] if folder.strip("./"))


def _started(settings: LoggerSettings, target: Path) -> subprocess.Popen[bytes]:
    given = settings.model_dump() | {"job": job_name(target), "grace": GRACE}
    program = _PROGRAM.format(path=[str(PACKAGE.parent), *sys.path])
    # for libraries that would compute: the cores and the GPU are the job's
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with progress_file(target).open("rb") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", program, json.dumps(given), str(file.fileno())],
            stdin=subprocess.PIPE,  # never written: its end is that of the job
            pass_fds=[file.fileno()],
            env=environment,
        )


def _end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until all loggers have written the last epochs, or their time is over."""
    for process in processes.values():
        stdin: IO[bytes] | None = process.stdin
        assert stdin is not None
        stdin.close()
    until = time.monotonic() + GRACE + _MORE
    try:
        for name, process in processes.items():
            try:
                status = process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("loggers: %s: its process does not end and was killed", name)
                continue
            if status < 0 or status > 1:  # 1: it has said why
                log.warning("loggers: %s: its process ended with status %d", name, status)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
