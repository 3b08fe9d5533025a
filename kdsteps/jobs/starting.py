"""What happens before Snakemake plans: the lock of the run, and a look at the results."""

from __future__ import annotations

import atexit
import os
import sys
from functools import cache
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import check_kind, check_places, remove_stale_drafts
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache_folder import check_cache_folder, remove_trials
from kdsteps.jobs.early_checks import check_study
from kdsteps.jobs.inputs import GIVEN, as_text
from kdsteps.jobs.provenance import provenance_file
from kdsteps.jobs.pulling import advice
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.restoring import restore_records
from kdsteps.jobs.run_lock import begin_run
from kdsteps.jobs.snakemake_records import check_records
from kdsteps.jobs.version_lock import check_lock
from kdsteps.jobs.writable import files_of, let_jobs_write
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study


@cache
def start_run(path: str, sharing: Sharing | None = None, *, stored: bool = False) -> Study:
    """The study in `path`, after its results were compared with what they were made from.

    Once per process: where a study's Snakefile changes a rule, Snakemake reads the workflow twice.
    Findings are printed; what `dvc pull` would fetch is also printed at the end, below the plan.

    Args:
        sharing: Of the cores and GPUs that the run was given, for forecasts.
        stored: Whether results are in storage and not in this folder; jobs on other machines then
            receive the digests of images and checkpoints from this process.

    Raises:
        KdstepsError: The study has a mistake or belongs to another version of kdsteps, another run
            is using this folder, there is no record of how the results were made, or a job fails.
    """
    begin_run(sharing)
    for finding in check_lock():
        _say(finding)
    if stored:
        os.environ.pop(GIVEN, None)
        study = load_study(path)
        os.environ[GIVEN] = as_text(graph.own_inputs(study))
        _check(study)
        return study
    _check_folder("results", "results are")
    _check_folder("logs", "logs are")
    check_cache_folder()
    remove_trials()
    remove_stale_drafts(Path("results"), below=True)
    study = load_study(path)
    _check_files(study)
    check_records()
    to_pull = advice(study)
    for finding in [*restore_records(study), *to_pull]:
        _say(finding)
    _check(study, with_files=not to_pull)
    let_jobs_write(study)
    for finding in to_pull:
        atexit.register(_say, finding)
    return study


def _check_files(study: Study) -> None:
    """Refuse something else than a file where a job's files are to be; logs have to be writable.

    Snakemake writes into the logs before a job could say what is wrong.
    """
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            *files, log = files_of(graph.node(study, rule, names))
            for path in (*files, provenance_file(graph.outputs(rule, names))):
                check_kind(path)
            check_places([log])


def _check_folder(name: str, what: str) -> None:
    """Refuse something else than a folder where files of all jobs are to be.

    Args:
        what: It is put there, such as `logs are`.
    """
    if os.path.isdir(name):
        return
    if os.path.islink(name):
        raise KdstepsError(
            f"{name}: is a link to {os.readlink(name)!r}, where there is no folder; make it "
            "available, or remove the link"
        )
    if os.path.lexists(name):
        raise KdstepsError(f"{name}: is a file; move it away, since {what} put into a folder")


def _check(study: Study, *, with_files: bool = True) -> None:
    for later in check_study(study, with_files=with_files):
        _say(later)
    code_identity.read_code(study)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
