"""The command `verify`: check that the files of a stage were made as params.yaml describes.

DVC records what it has checked, and so no file under settings that it was not made with. Only where
results do not match does it run Snakemake, whose start takes longer than the check.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from kdsteps.cli.resolve import FOLDER, resolved
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import DISK_FULL
from kdsteps.files.text import read_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.provenance import (
    Provenance,
    is_whole,
    lost_files,
    provenance_file,
    read_provenance,
)
from kdsteps.jobs.restoring import changed_inputs
from kdsteps.jobs.settings import first_difference
from kdsteps.jobs.words import plural
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study


def add_commands(commands: Any) -> None:
    """Add `verify` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "verify",
        help="check that the results of stages match params.yaml (run by `dvc repro`)",
        description="Check that the results of stages are complete, undamaged and made with the "
        "settings of params.yaml. `dvc repro` runs this before it records results.",
    )
    parser.add_argument(
        "stages", nargs="+", choices=graph.STAGES, metavar="stage", help="such as train"
    )
    parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    parser.add_argument(
        "--make",
        metavar="COMMAND",
        help="run this first where the results do not match, such as 'snakemake train_all'",
    )
    parser.set_defaults(run=check_stages)


def verify(study: Study, stage: str) -> int:
    """Check that the files of a stage are what the study's jobs wrote; return the number of jobs.

    Raises:
        KdstepsError: A file is missing or damaged, or was made with other settings or code or from
            other files.
    """
    jobs = [(rule, names) for rule in graph.rules_of(stage) for names in graph.jobs(study, rule)]
    made = [(*job, _made_as_described(study, *job)) for job in jobs]
    for rule, names, known in made:  # which reads all files, and so takes longer
        outputs = graph.outputs(rule, names)
        lost = lost_files(rule, outputs, known, thorough=True)
        for path in (*map(Path, outputs.values()), *lost):
            if not path.is_file() or not is_whole(path, known):
                raise KdstepsError(
                    f"{path}: was damaged or changed after its job wrote it; delete the file and "
                    "run snakemake"
                )
    return len(jobs)


def _made_as_described(study: Study, rule: str, names: graph.Names) -> Provenance:
    """How the files of a job were made, which has to be as the study describes it."""
    outputs = [Path(path) for path in graph.outputs(rule, names).values()]
    for path in outputs:
        if not path.is_file():
            raise KdstepsError(f"{path}: not found; run snakemake first")
    known = read_provenance(provenance_file(graph.outputs(rule, names)))
    if known is None:
        raise KdstepsError(f"{outputs[0]}: no record of how it was made; run snakemake again")
    _check_made_for(outputs[0], known, graph.settings_text(study, rule, names))
    if known.code != code_identity.code(study, rule, names):
        raise KdstepsError(f"{outputs[0]}: was made by different code; run snakemake again")
    _check_made_from(outputs[0], known, graph.node(study, rule, names))
    return known


def _check_made_for(path: Path, known: Provenance, wanted: str) -> None:
    if known.settings == wanted:
        return
    said, meant = first_difference(json.loads(known.settings), json.loads(wanted))
    raise KdstepsError(
        f"{path}: was made with {said}, but params.yaml has {meant}; run snakemake again"
    )


def _check_made_from(path: Path, known: Provenance, node: graph.JobNode) -> None:
    """Refuse files that were made from others than their job reads, such as another job's."""
    other = (known.inputs.keys() ^ node.watched) or changed_inputs(node, known, {})
    if other:
        raise KdstepsError(
            f"{path}: was made from other files than are there now ({min(other)}); run snakemake "
            "again"
        )


def _check_unchanged(study: Study, stage: str, params: str) -> None:
    """Refuse a study that was edited after `dvc repro` read it, whose results DVC would misfile."""
    file = Path(FOLDER, f"{stage}.json")
    if file.is_file() and read_json(file) != resolved(study, stage):
        raise KdstepsError(
            f"{params}: was changed, or the code was, while `dvc repro` was running; run "
            "`dvc repro` again"
        )


def check_stages(given: argparse.Namespace) -> None:
    """Check the stages that the command line names, and create their folders for DVC."""
    study = load_study(given.params)
    for stage in given.stages:
        _check_unchanged(study, stage, given.params)
        try:
            count = verify(study, stage)
        except KdstepsError:
            if given.make is None:
                raise
            _make_and_check(given)
        print(f"{stage}: {plural(count, 'job')} match{'es' * (count == 1)} params.yaml")
        _create_folder(Path("results", stage))


def _make_and_check(given: argparse.Namespace) -> NoReturn:
    """Become a shell that makes the results and checks them again; it alone receives signals."""
    begin = sys.orig_argv[: 1 - len(sys.argv)]  # `python -m kdsteps`, or the path of `kdsteps`
    again = [*begin, given.command, *given.stages, "--params", given.params]
    sys.stdout.flush()
    os.execlp("sh", "sh", "-c", f"{given.make} && exec {shlex.join(again)}")


def _create_folder(folder: Path) -> None:
    """Create the folder of a stage without jobs, unless the study can only be read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
