"""What happens before Snakemake plans: the lock of the run, and a look at the results."""

from __future__ import annotations

import atexit
import sys
from functools import cache

from kdsteps.jobs import code_identity
from kdsteps.jobs.early_checks import check_study
from kdsteps.jobs.pulling import advice
from kdsteps.jobs.restoring import restore_records
from kdsteps.jobs.run_lock import begin_run
from kdsteps.jobs.snakemake_records import check_records
from kdsteps.jobs.version_lock import check_lock
from kdsteps.study.study import Study, load_study


@cache
def start_run(path: str) -> Study:
    """The study in `path`, after its results were compared with what they were made from.

    Once per process: where a study's Snakefile changes a rule, Snakemake reads the workflow twice.
    Findings are printed; what `dvc pull` would fetch is also printed at the end, below the plan.

    Raises:
        KdstepsError: The study has a mistake or belongs to another version of kdsteps, another run
            is using this folder, nothing says how the results were made, or a job would fail.
    """
    begin_run()
    for finding in check_lock():
        _say(finding)
    check_records()
    study = load_study(path)
    to_pull = advice(study)
    for finding in [*restore_records(study), *to_pull]:
        _say(finding)
    for later in check_study(study, with_files=not to_pull):
        _say(later)
    code_identity.read_code(study)
    for finding in to_pull:
        atexit.register(_say, finding)
    return study


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
