"""Jobs that failed, named with the reason when the run ends."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterable
from functools import cache

from kdsteps.jobs import local_failures, slurm_failures
from kdsteps.jobs.failed_jobs import failed_jobs
from kdsteps.jobs.kubernetes_status import KUBERNETES_JOBS

_NAMED = 20  # at most


@cache
def name_failures_at_end(logs: Callable[[], Iterable[str]]) -> None:
    """Print a sentence for each job that failed when this process ends.

    Below what Snakemake says, which repeats the whole command of each. Once, although Snakemake may
    read the workflow twice; and not by `onerror`, which it ignores in a workflow that a study uses
    as a module.

    Args:
        logs: The paths of Snakemake's logs, which are known once it runs jobs.
    """
    atexit.register(_name_failures, logs)


def _name_failures(logs: Callable[[], Iterable[str]]) -> None:
    failed = failed_jobs(logs())
    on_a_cluster = [*slurm_failures.failures(failed), *KUBERNETES_JOBS.failures()]
    sentences = on_a_cluster or local_failures.failures(failed)
    if len(sentences) > _NAMED:
        left = len(sentences) - _NAMED
        sentences[_NAMED:] = [f"and {left:,} more; `kdsteps status` names them"]
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)
