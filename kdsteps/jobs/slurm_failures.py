"""Why jobs that a run submitted to Slurm failed: one sentence each, when the run ends.

Snakemake's log says which jobs failed. Why Slurm ended a job is in the job's own output, where
Slurm's daemon writes it, whether or not the cluster has accounting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kdsteps.jobs.failed_jobs import FailedJob, number_of, text_of

_AGAIN = "run again, and training continues where it was stopped"
_REASONS = {
    r"exceeded memory limit|oom.kill|Out Of Memory": (
        "ran out of memory; raise memory_percent in the profile"
    ),
    r"CANCELLED AT \S+ DUE TO TIME LIMIT": (
        f"reached its time limit; {_AGAIN}, or raise time_percent in the profile"
    ),
    r"CANCELLED AT \S+ DUE TO PREEMPTION": f"had to give way to another job; {_AGAIN}",
    r"CANCELLED AT \S+ DUE TO NODE FAILURE": f"lost its node; {_AGAIN}",
    r"CANCELLED AT": f"was canceled; {_AGAIN}",
}
"""By what Slurm writes into the output of a job; the first that is found counts."""


def failures(failed: Iterable[FailedJob]) -> list[str]:
    """What happened to the jobs that failed on Slurm, those of one submission together."""
    names: dict[str, list[str]] = {}
    for job in failed:
        if job.slurm:
            names.setdefault(job.slurm, []).append(job.name)
    return [f"{' and '.join(each)}: {_reason(output)}" for output, each in names.items()]


def _reason(output: str) -> str:
    number, text = number_of(output), text_of(output)
    if not text:
        return f"Slurm job {number} has no output; it may have been canceled before it began"
    for pattern, reason in _REASONS.items():
        if re.search(pattern, text):
            return f"Slurm job {number} {reason}"
    return f"Slurm job {number} failed; its log, and {output}, say why"
