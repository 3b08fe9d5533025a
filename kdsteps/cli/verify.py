"""`kdsteps verify STAGE`: are the files of a stage what params.yaml describes?

DVC runs it after Snakemake, so that a file is never recorded under values it was not made with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.tables import table_metadata
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.study.study import Study, load_study


def verify(study: Study, stage: str) -> int:
    """How many jobs of a stage left files with the very settings that the study gives them.

    Raises:
        KdstepsError: A file is missing, or carries other settings.
    """
    jobs = [(rule, names) for rule in graph.rules_of(stage) for names in graph.jobs(study, rule)]
    for rule, names in jobs:
        wanted = json.loads(graph.settings_text(study, rule, names))
        paths = [Path(path) for path in graph.outputs(rule, names).values()]
        carried = [_carries_settings(path, wanted) for path in paths]
        assert any(carried), f"no file of {rule} says what it was made with"
    return len(jobs)


def _carries_settings(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a file carries settings; raise a sentence if they are not the wanted ones."""
    if not path.is_file():
        raise KdstepsError(f"{path}: not found; run snakemake first")
    reader = _READERS.get(path.suffix)
    found = reader(path) if reader else None
    if not found or found == wanted:
        return bool(found)
    said, meant = _first_difference(found, wanted)
    raise KdstepsError(
        f"{path}: was made with {said}, params.yaml says {meant}; delete the file and run snakemake"
    )


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: read_json(path).get("settings"),
    ".parquet": lambda path: table_metadata(path)["settings"],
    ".safetensors": lambda path: read_checkpoint_header(path)["settings"],
}


def _first_difference(found: Any, wanted: Any, place: str = "") -> tuple[str, str]:
    """The first value that two settings do not share, as `section.key: value` each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                inner = f"{place}.{key}" if place else key
                return _first_difference(found.get(key), wanted.get(key), inner)
    name = place or "settings"
    return f"{name}: {json.dumps(found)}", f"{name}: {json.dumps(wanted)}"


def check_stages(given: argparse.Namespace) -> None:
    """Check the stages that the command line names, and create their folders for DVC."""
    study = load_study(given.params)
    for stage in given.stages:
        Path("results", stage).mkdir(parents=True, exist_ok=True)
        print(f"{stage}: {verify(study, stage)} jobs match params.yaml")
