"""Signals end Snakemake: an interrupt (Ctrl-C) without a traceback, and SIGTERM in every moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGINT  # as a shell reports it
PATIENCE = 10  # seconds after the first interrupt in which others have no effect

_first: float | None = None  # when the first interrupt came


def end_at_interrupt() -> None:
    """From now on, an interrupt ends this process with status 130.

    Python raises KeyboardInterrupt instead, which Snakemake handles only while jobs run, exactly as
    it handles the SystemExit that is raised here. Nothing changes where interrupts are ignored.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """End; a second interrupt changes nothing for a while, and then ends at once.

    After the first one, Snakemake waits for its jobs, which end as well. If that wait is
    interrupted, it closes what other threads still use, which ends in tracebacks.
    """
    global _first
    now = time.monotonic()
    ended = not threading.main_thread().is_alive()  # Python waits for other threads
    if ended or (_first is not None and now - _first > PATIENCE):
        os._exit(STATUS)  # jobs that still run notice that, and end
    if _first is None:
        _first = now
        sys.exit(STATUS)


def end_at_every_sigterm(scheduler_class: Any) -> None:
    """From now on, Snakemake's scheduler handles SIGTERM in a thread.

    Its handler takes a lock that the main thread may hold, also in the handler of an earlier
    signal; in the main thread, it would wait for itself (Snakemake 9.20 and later).

    Args:
        scheduler_class: Snakemake's `JobScheduler`.
    """
    handle = scheduler_class.exit_gracefully

    def in_a_thread(scheduler: object, *given: object) -> None:
        threading.Thread(target=handle, args=(scheduler, *given), daemon=True).start()

    scheduler_class.exit_gracefully = in_a_thread
