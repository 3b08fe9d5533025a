"""The command `resolve`: write what every job reads from params.yaml, so that DVC can follow it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kdsteps.files.text import write_json
from kdsteps.jobs import code_identity, graph
from kdsteps.study.study import load_study


def resolve(given: argparse.Namespace) -> None:
    """Write one JSON file per stage: the settings and the code digest of each of its jobs.

    All defaults are filled in, so a section that params.yaml leaves out counts as its defaults, and
    a stage becomes stale only when something changes that its jobs depend on.
    """
    study = load_study(given.params)
    for stage in graph.STAGES:
        jobs = {
            " ".join([rule, *names.values()]): {
                "settings": json.loads(graph.settings_text(study, rule, names)),
                "code": code_identity.code(study, rule, names),
            }
            for rule in graph.rules_of(stage)
            for names in graph.jobs(study, rule)
        }
        write_json(Path(given.folder, f"{stage}.json"), {"jobs": jobs})
