"""Two commands in one folder: the second says that the first is using it, and ends.

The first is paused (SIGSTOP) as soon as it holds the folder, and continues when all others have
been tried; it has to finish as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from outcomes import Failed, Outcomes
from studies import RUN, Folder, last_line

from kdsteps.jobs.run_lock import LOCK

COMMANDS = {
    "snakemake": list(RUN),
    "snakemake distil_all": ["snakemake", "distil_all", *RUN[1:]],
    "snakemake -n": [*RUN, "--dry-run"],
    "dvc repro": ["dvc", "repro"],
    "dvc exp run": ["dvc", "exp", "run"],
    "kdsteps by hand": ["python", "-m", "kdsteps", "score", "--dataset=digits", "--teacher=big"],
}
_SAYS_SO = re.compile(
    r"another run is using this folder \(process \d+|works? in this folder \(process"
    r"|another process is making this file|nother DVC process|is busy, it is being blocked"
)


def pairs(
    reference: Folder, workplace: Path, outcomes: Outcomes, rng: random.Random, count: int
) -> None:
    """Try `count` pairs, each first command with its seconds; in full there are 36."""
    base = reference.copy(workplace / "pairs")
    base.dvc("repro")
    base.commit()
    every = [(first, second) for first in COMMANDS for second in COMMANDS]
    chosen = set(rng.sample(every, min(count, len(every))))
    for number, first in enumerate(COMMANDS):
        seconds = [second for second in COMMANDS if (first, second) in chosen]
        if not seconds:
            continue
        study = base.copy(workplace / f"pairs-{number}")
        shutil.rmtree(study.path / ".jobcache")  # a job by hand takes a while
        study.change(report={"title": f"Number {number}"})
        with outcomes.trial("pairs: the first goes on", first), _stopped(study, first):
            for second in seconds:
                with outcomes.trial("pairs: the second ends", f"{second} during {first}"):
                    _check_second(*study.attempt(COMMANDS[second]), second)


def _check_second(status: int, said: str, second: str) -> None:
    dvc = second.startswith("dvc")
    if "Traceback" in said or "--unlock" in said:
        raise Failed(f"traceback or advice to unlock: {last_line(said)}")
    if status not in ((1, 255) if dvc else (2,)):
        raise Failed(f"status {status}: {last_line(said)}")
    if not _SAYS_SO.search(said):
        raise Failed(f"does not say what is in its way: {last_line(said)}")


@contextmanager
def _stopped(study: Folder, first: str) -> Iterator[None]:
    """A command that is stopped while it uses the folder; it must succeed in the end."""
    log = study.path / "first.txt"
    process = study.begin(COMMANDS[first], log)
    try:
        holder = _holder(study, process, by_hand="hand" in first)
        os.kill(holder, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(holder, signal.SIGCONT)
        status = process.wait(300)
        if status and first == "dvc exp run":  # DVC forgets it when another one begins
            status = study.attempt(COMMANDS[first])[0]
        if status:
            raise Failed(f"ends with status {status}: {last_line(log.read_text())}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _holder(study: Folder, process: subprocess.Popen[Any], by_hand: bool) -> int:
    """The process that has locked the folder."""
    lock = study.path / LOCK
    before = lock.stat().st_ino if lock.exists() else 0
    for _ in range(6000):
        if process.poll() is not None:
            raise Failed(f"ends with {process.returncode} before it uses the folder")
        for pid in _locked_by(lock):
            if by_hand or _says(lock) == pid:
                return pid
        time.sleep(0.01)
    raise Failed(f"does not lock {LOCK} ({before})")


def _locked_by(lock: Path) -> list[int]:
    """The processes that hold a lock on a file (Linux)."""
    with suppress(OSError):
        inode = f":{lock.stat().st_ino}"
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return [int(line[4]) for line in lines if line[5].endswith(inode) and "->" not in line]
    return []


def _says(lock: Path) -> int:
    with suppress(OSError, ValueError):
        return int(json.loads(lock.read_text())["process"])
    return 0
