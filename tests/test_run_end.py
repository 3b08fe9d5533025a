"""A run of Snakemake does not wait for timers after its last job."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from snakemake.scheduling.job_scheduler import JobScheduler

from kdsteps.jobs.run_end import end_with_last_job


class Scheduler(JobScheduler):
    """Snakemake's, of which only one method is changed."""


def test_a_timer_of_the_scheduler_looks_again_and_does_not_delay_the_end():
    assert callable(JobScheduler._schedule_reevalutation), "what Snakemake calls"
    end_with_last_job(Scheduler)
    scheduler = SimpleNamespace(_open_jobs=threading.Semaphore(0))
    Scheduler._schedule_reevalutation(scheduler, 0)
    assert scheduler._open_jobs.acquire(timeout=60)
    before = set(threading.enumerate())
    Scheduler._schedule_reevalutation(scheduler, 60)
    (timer,) = set(threading.enumerate()) - before
    assert timer.daemon, "Python does not wait for it"
    timer.cancel()
