"""Jobs that failed on a cluster, named with the reason when the run ends."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterable
from functools import cache

from kdsteps.jobs import slurm_failures
from kdsteps.jobs.kubernetes_status import KUBERNETES_JOBS


@cache
def name_failures_at_end(logs: Callable[[], Iterable[str]]) -> None:
    """Print a sentence for each job that failed on a cluster when this process ends.

    Once, although Snakemake may read the workflow twice; and not by `onerror`, which it ignores in
    a workflow that a study uses as a module.

    Args:
        logs: The paths of Snakemake's logs, which are known once it runs jobs.
    """
    atexit.register(_name_failures, logs)


def _name_failures(logs: Callable[[], Iterable[str]]) -> None:
    for sentence in [*slurm_failures.failures(logs()), *KUBERNETES_JOBS.failures()]:
        print(sentence, file=sys.stderr, flush=True)
