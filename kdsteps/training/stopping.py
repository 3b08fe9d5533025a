"""SIGTERM ends a training run after its state is saved, so that the next attempt resumes.

Slurm sends it some seconds before it kills a job: at the time limit, after `scancel`, and when
another job takes the node. Python's own answer to it would end the process at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

STATUS = 128 + signal.SIGTERM
"""Exit status of a run that was stopped, as a shell reports a process that the signal ended."""


class Stop:
    """Whether the run has to stop.

    Attributes:
        wanted: Set by the signal; looked at once per step.
    """

    def __init__(self) -> None:
        self.wanted = False

    def _set(self, *_: Any) -> None:
        self.wanted = True


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Let SIGTERM set a flag within the block; outside the main thread it has its usual effect."""
    stop = Stop()
    with _at_sigterm(stop._set):
        yield stop


@contextmanager
def sigterm_for_children() -> Iterator[None]:
    """Within the block, SIGTERM goes to the processes that this one started, which end by it."""

    def pass_on(*_: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)

    with _at_sigterm(pass_on):
        yield


@contextmanager
def _at_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Call `handler` at SIGTERM within the block, in the main thread, which alone may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
