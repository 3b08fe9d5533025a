"""Kills at random moments of a run: all of it, its main process alone, or one of its jobs.

A study is run from nothing and killed again and again, each time after a random number of seconds.
Half of the signals that can be handled are sent twice, as by somebody who presses Ctrl-C again.
Then at most two runs have to finish it with the results of the reference. A kill has failed if the
killed run does not end, or if a run prints a traceback or ends with an unexpected status.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from outcomes import Failed, NotTried, Outcomes
from studies import RUN, Folder, heal, last_line, last_traceback, problems

VICTIMS = ("whole group", "main process", "one job")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST = 60.0  # seconds from the start of a run to the kill
LONGEST_PAUSE = 1.0  # seconds from a signal to the second one
A_STUDY = 10  # kills, before it may finish


@dataclass(frozen=True)
class Kill:
    victim: str
    signal: signal.Signals
    after: float  # seconds
    again: float | None  # seconds from the signal to a second one

    def __str__(self) -> str:
        again = "" if self.again is None else f" and {self.again:.2f} s later"
        return f"{self.signal.name} to {self.victim} after {self.after:.1f} s{again}"


def kills(
    reference: Folder, workplace: Path, outcomes: Outcomes, rng: random.Random, count: int
) -> None:
    """Kill `count` runs, of as many studies as that needs."""
    planned = _planned(rng, count)
    number = 0
    while planned:
        number += 1
        study = reference.copy(workplace / f"kills-{number}")
        for name in ("results", ".snakemake", ".jobcache", ".kdsteps/outputs", "logs"):
            shutil.rmtree(study.path / name, ignore_errors=True)
        done: list[Kill] = []
        while planned and len(done) < A_STUDY:
            kill, killed = planned.pop(), True
            with outcomes.trial(f"kills: {kill.victim}", f"study {number}, {kill}"):
                killed = _run_and_kill(study, kill)
                if not killed:
                    raise NotTried
            if not killed:  # earlier, in another study
                planned.append(replace(kill, after=kill.after / 2))
                break
            done.append(kill)
        with outcomes.trial("kills: results afterwards", "; ".join(map(str, done))):
            if wrong := heal(study)[0] or problems(study, reference):
                raise Failed("; ".join(wrong))
        print(f"  study {number}: {'; '.join(map(str, done))}", file=sys.stderr, flush=True)
        shutil.rmtree(study.path)


def _planned(rng: random.Random, count: int) -> list[Kill]:
    """Every victim with every signal, sent once and twice in turn, at random moments."""
    every = [
        (victim, number, twice)
        for victim in VICTIMS
        for number in SIGNALS
        for twice in ((False,) if number == signal.SIGKILL else (False, True))
    ]
    kinds = [every[number % len(every)] for number in range(count)]
    rng.shuffle(kinds)
    planned = []
    for victim, number, twice in kinds:
        after = rng.uniform(1, LONGEST)
        planned.append(
            Kill(victim, number, after, rng.uniform(0, LONGEST_PAUSE) if twice else None)
        )
    return planned


def _run_and_kill(study: Folder, kill: Kill) -> bool:
    """Begin a run and kill it; return whether it had not ended before."""
    log = study.path / "run.txt"
    run = study.begin(list(RUN), log)
    try:
        ends = time.monotonic() + kill.after
        while time.monotonic() < ends and run.poll() is None:
            time.sleep(0.05)
        victim = _job_of(run.pid) if kill.victim == "one job" else run.pid
        if run.poll() is not None:
            _check(log, (0,), run.returncode)
            return False
        if victim is None:
            raise Failed("no job works for ten seconds")
        with suppress(ProcessLookupError):
            send = os.killpg if kill.victim == "whole group" else os.kill
            send(victim, kill.signal)
            if kill.again is not None:
                time.sleep(kill.again)
                send(victim, kill.signal)
        _wait(run, log)
        _check(log, (0, 1) if kill.victim == "one job" else (), run.returncode)
        return True
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def _check(log: Path, right: tuple[int, ...], status: int) -> None:
    """Check what a run printed, and its status if only some are `right`."""
    said = log.read_text()
    if traceback := last_traceback(said):
        raise Failed(f"status {status}, with a traceback: {traceback}")
    if right and status not in right:
        raise Failed(f"status {status}: {last_line(said)}")


def _wait(run: subprocess.Popen[bytes], log: Path) -> None:
    try:
        run.wait(300)
    except subprocess.TimeoutExpired:
        left = "; ".join(" ".join(command[:4]) for command in _commands(run.pid).values())
        said = last_line(log.read_text())
        raise Failed(f"does not end within 300 s ({left}): {said}") from None


def _job_of(run: int) -> int | None:
    """The process of a job that works at the moment, or that begins within ten seconds."""
    for _ in range(100):
        for process, command in _commands(run).items():
            if command[1:3] == ["-m", "kdsteps"]:
                return process
        time.sleep(0.1)
    return None


def _commands(run: int) -> dict[int, list[str]]:
    """The processes of a run and their command lines (Linux)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == run:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                found[int(folder.name)] = line.rstrip("\0").split("\0")
    return found
