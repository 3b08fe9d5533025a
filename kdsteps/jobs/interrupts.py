"""An interrupt (Ctrl-C, SIGINT) ends Snakemake without a traceback, also while it plans."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

STATUS = 128 + signal.SIGINT  # as a shell reports it


def end_at_interrupt() -> None:
    """From now on, an interrupt ends this process with status 130.

    Python raises KeyboardInterrupt instead, which Snakemake handles only while jobs run, exactly as
    it handles the SystemExit that is raised here. Nothing changes where interrupts are ignored.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(STATUS)
