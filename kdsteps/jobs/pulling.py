"""Results that DVC has and this folder has not, as after a pull that was interrupted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.study.study import Study
from kdsteps.study.yaml_text import read_yaml

_LOCK = Path("dvc.lock")


def advice(study: Study) -> list[str]:
    """One sentence for each folder of results that has fewer files than dvc.lock lists.

    dvc.lock is read only if the results of a job are missing.
    """
    missing = {stage for stage in graph.STAGES if _lacks_results(study, stage)}
    if not missing or not _LOCK.is_file():
        return []
    said = []
    for stage, out in _outs():
        there = _count(Path(out["path"]))
        if stage in missing and there < out.get("nfiles", 1):
            said.append(
                f"{out['path']}: has {there} of the {out.get('nfiles', 1)} files that dvc.lock "
                "lists; `dvc pull` fetches the others, and they need not be computed"
            )
    return said


def _lacks_results(study: Study, stage: str) -> bool:
    return not all(map(os.path.isfile, graph.all_outputs(study, stage)))


def _outs() -> list[tuple[str, dict[str, Any]]]:
    """The folders and files in dvc.lock by stage; none if the file cannot be read."""
    try:
        stages = read_yaml(_LOCK.read_text())["stages"]
        return [
            (name, out)
            for name, stage in stages.items()
            for out in stage.get("outs", [])
            if str(out["path"]).startswith("results/") and isinstance(out.get("nfiles", 1), int)
        ]
    except (KdstepsError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _count(path: Path) -> int:
    if path.is_file():
        return 1
    return sum(len(files) for _, _, files in os.walk(path))
