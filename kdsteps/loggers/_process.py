"""The process of one logger: it reads what a job writes down about its epochs, and logs it.

Its arguments are JSON text that describes the logger (`jobs.live`), and the number of an open file,
the job's progress file. Its standard input ends when the job ends, however it does. Standard error
gets the first problem in one line; whatever libraries print is discarded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import IO, Any

from kdsteps.jobs.progress import parsed
from kdsteps.loggers.base import Epoch, Logger, Training
from kdsteps.study.part_imports import load

_EVERY = 0.5  # seconds between two looks at the file
_PAUSE = 60.0  # seconds after a problem before the logger is made again


def main() -> None:
    """Log epochs until the job has ended."""
    given, file = json.loads(sys.argv[1]), int(sys.argv[2])
    os.nice(10)  # the training goes first
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes: this one ends later
        signal.signal(number, signal.SIG_IGN)
    problems = _Problems(given["name"])
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(ended, given["grace"], problems), daemon=True)
    watching.start()
    make = partial(_logger, given["logger"], given["options"])
    with os.fdopen(file, "rb") as lines:
        _follow(lines, Curve(make, given["job"]), ended, problems)
    os._exit(0)  # threads of a library may wait for a server that is gone


class Curve:
    """The epochs of a training, and the logger that writes them."""

    def __init__(self, make: Callable[[Training], Logger], job: str) -> None:
        self._make, self._job = make, job
        self._epochs: dict[int, Epoch] = {}
        self._total = 0
        self._goes_on = False  # whether this attempt has an epoch; it decides which others count
        self._logger: Logger | None = None
        self._logged = 0

    def add(self, contents: Iterable[Mapping[str, Any]]) -> None:
        """Add what lines of the progress file say.

        An attempt that continues from a saved state may repeat epochs of the one before.
        """
        for content in contents:
            if "started" in content:
                self._goes_on = False
            elif "epoch" in content:
                number, self._total = int(content["epoch"]), int(content["epochs"])
                self._epochs = {n: there for n, there in self._epochs.items() if n < number}
                self._epochs[number] = Epoch(number, content["time"], content["values"])
                self._goes_on = True

    def log(self) -> None:
        """Log the epochs that the logger does not have yet."""
        if not self._goes_on:
            return
        if self._logger is None:
            began = next(iter(self._epochs.values())).time
            self._logger = self._make(Training(self._job, began, self._total))
        for number, epoch in self._epochs.items():
            if number > self._logged:
                self._logger.log(epoch)
                self._logged = number

    def close(self) -> None:
        """Close the logger; another one is made, and given all epochs, if `log` is called again."""
        logger, self._logger, self._logged = self._logger, None, 0
        if logger is not None:
            logger.close()


class _Problems:
    """Takes the outputs of this process, and writes the first problem to standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._output: int | None = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    def say(self, problem: str) -> None:
        output, self._output = self._output, None
        if output is not None:
            line = f"loggers: {self._name}: {problem}; the job goes on without it\n"
            with suppress(OSError):  # a full disk
                os.write(output, line.encode())


def _follow(lines: IO[bytes], curve: Curve, ended: threading.Event, problems: _Problems) -> None:
    """Log epochs as they are written, until the job has ended and all are logged."""
    text, paused_until = b"", 0.0
    over = False
    while not over:
        over = ended.wait(_EVERY)
        *whole, text = (text + lines.read()).split(b"\n")
        curve.add(map(parsed, whole))
        if not over and time.monotonic() < paused_until:
            continue
        try:
            curve.log()
            if over:
                curve.close()
        except (Exception, SystemExit) as error:  # of a library, a server, a disk, the user's code
            message = str(error).strip().partition("\n")[0]
            problems.say(f"{type(error).__name__}: {message}"[:300])
            paused_until = time.monotonic() + _PAUSE
            with suppress(Exception):
                curve.close()


def _watch(ended: threading.Event, grace: float, problems: _Problems) -> None:
    """Wait for the end of the job; end this process some time after it, whatever it is doing."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    ended.set()
    time.sleep(grace)
    problems.say(f"the last epochs were not written within {grace:g} s after the job")
    os._exit(1)


def _logger(reference: str, options: Mapping[str, Any], training: Training) -> Logger:
    made: Logger = load("loggers", reference)(training, **options)
    return made


if __name__ == "__main__":
    main()
