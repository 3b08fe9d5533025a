"""The command `verify`: check that the files of a stage were made as params.yaml describes.

DVC runs it after Snakemake, so that it never records a file under settings it was not made with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.accepted import Entry, entry_for, read_accepted, settings_digest
from kdsteps.jobs.recorded import carried_settings, first_difference
from kdsteps.study.study import Study, load_study


def verify(study: Study, stage: str) -> int:
    """Check that the files of a stage carry the study's settings; return the number of jobs.

    Raises:
        KdstepsError: A file is missing, or carries other settings.
    """
    jobs = [(rule, names) for rule in graph.rules_of(stage) for names in graph.jobs(study, rule)]
    accepted = read_accepted()
    for rule, names in jobs:
        settings, outputs = graph.settings_text(study, rule, names), graph.outputs(rule, names)
        entry = entry_for(accepted, outputs.values(), settings)
        wanted = json.loads(settings)
        carried = [_carries_settings(Path(path), wanted, entry) for path in outputs.values()]
        assert any(carried), f"no file of {rule} carries the settings it was made with"
    return len(jobs)


def _carries_settings(path: Path, wanted: Mapping[str, Any], entry: Entry | None) -> bool:
    """Whether a file carries settings; raise KdstepsError if they are not the wanted ones."""
    if not path.is_file():
        raise KdstepsError(f"{path}: not found; run snakemake first")
    found = carried_settings(path)
    taken_over = entry is not None and entry.carried == settings_digest(found)
    if not found or found == wanted or taken_over:
        return bool(found)
    said, meant = first_difference(found, wanted)
    raise KdstepsError(
        f"{path}: was made with {said}, but params.yaml has {meant}; delete the file and run "
        "snakemake"
    )


def check_stages(given: argparse.Namespace) -> None:
    """Check the stages that the command line names, and create their folders for DVC."""
    study = load_study(given.params)
    for stage in given.stages:
        print(f"{stage}: {verify(study, stage)} jobs match params.yaml")
        Path("results", stage).mkdir(parents=True, exist_ok=True)
