"""The command `check`: what could stop a later job, and how long a study will take, in a minute."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from kdsteps.cli.resolve import check_dependencies
from kdsteps.cli.stages import jobs_per_gpu
from kdsteps.cli.whole_numbers import count, positive
from kdsteps.errors import KdstepsError
from kdsteps.jobs.findings import Finding
from kdsteps.jobs.inputs import input_paths
from kdsteps.jobs.words import plural
from kdsteps.study.loading import load_study

_MARKS = {"ok": "ok", "problem": "PROBLEM", "note": "note"}


def add_commands(commands: Any) -> None:
    """Add `check` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "check",
        help="try a study for a minute: problems, memory, disk space, and a time forecast",
        description="Check everything that could stop a later job: images, networks, checkpoints, "
        "options, layers, devices, memory and disk space. Every kind of job that is left runs for "
        "a moment on a few images, which also says how long the study takes. All problems are "
        "listed; the exit status is 2 if there is one. Results are not changed.",
    )
    parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    parser.add_argument(
        "--cores",
        type=positive,
        default=4,
        metavar="N",
        help="cores of the run, as for snakemake (%(default)s)",
    )
    parser.add_argument(
        "--gpus",
        type=count,
        metavar="N",
        help="GPUs of the run, as in `snakemake --resources gpu=N` (1 if there is one)",
    )
    parser.add_argument(
        "--jobs-per-gpu",
        type=jobs_per_gpu,
        default=1,
        metavar="N",
        help="jobs that share a GPU, as for snakemake (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=count,
        default=40,
        metavar="S",
        help="time for trials; jobs for which there is no time are listed (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=check)


def check(given: argparse.Namespace) -> None:
    """Print findings as they are made, then the forecast.

    Raises:
        KdstepsError: There are problems; it says how many.
    """
    from kdsteps.rehearsal.check import check_all

    def show(finding: Finding) -> None:
        if not given.json:
            print(f"{_MARKS[finding.status]:8} {finding.what}: {finding.text}", flush=True)

    found = check_all(
        given.params,
        cores=given.cores,
        gpus=given.gpus,
        jobs_per_gpu=given.jobs_per_gpu,
        seconds=given.seconds,
        show=show,
    )
    if (note := _dvc_note(given.params)) is not None:
        found.findings.append(note)
        show(note)
    if given.json:
        json.dump(asdict(found), sys.stdout, indent=1)
        print()
    problems = sum(finding.status == "problem" for finding in found.findings)
    if problems:
        raise KdstepsError(f"{plural(problems, 'problem')} would stop jobs of this study")


def _dvc_note(params: str) -> Finding | None:
    """What DVC would miss, which stops `dvc repro` alone; or None."""
    try:
        study = load_study(params)
    except KdstepsError:
        return None  # it is a finding already
    try:
        check_dependencies(input_paths(study), params)
    except KdstepsError as error:
        return Finding("note", "dvc", f"`dvc repro` would stop, but not Snakemake: {error}")
    return None
