"""A run of Snakemake ends with its last job."""

from __future__ import annotations

import threading
from typing import Any


def end_with_last_job(scheduler_class: Any) -> None:
    """From now on, Snakemake's scheduler waits at the end for no timer of its own.

    It limits how many jobs start in a second, and so it looks again a second after it started some.
    Its timers are ordinary threads, which Python waits for: each run would end up to a second later
    than its last job, and `dvc repro` starts a run for every stage.

    Args:
        scheduler_class: Snakemake's `JobScheduler`.
    """
    scheduler_class._schedule_reevalutation = _look_again


def _look_again(scheduler: Any, delay: float) -> None:
    timer = threading.Timer(delay, scheduler._open_jobs.release)
    timer.daemon = True
    timer.start()
