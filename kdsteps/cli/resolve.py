"""The command `resolve`: write what every job reads from params.yaml, so that DVC can follow it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.inputs import input_paths
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

_PIPELINE = Path("dvc.yaml")
_STAGE = "resolve"
_EXPORTS = "results/export"
_VALUE = "${"  # what DVC replaces by a value begins so, unless a backslash is before it
FOLDER = "results/settings"


def add_commands(commands: Any) -> None:
    """Add `resolve` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "resolve",
        help="write the settings of every job to files (run by `dvc repro`)",
        description="Write the settings of every job, with all defaults, to one file per stage. "
        "`dvc repro` compares these files to find the stages that are stale.",
    )
    parser.add_argument(
        "folder", nargs="?", default=FOLDER, help="the folder to write to (%(default)s)"
    )
    parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    parser.set_defaults(run=resolve)


def resolve(given: argparse.Namespace) -> None:
    """Write one JSON file per stage: the settings and the code digest of each of its jobs.

    All defaults are filled in, so a section that params.yaml leaves out counts as its defaults, and
    a stage becomes stale only when something changes that its jobs depend on.

    Raises:
        KdstepsError: params.yaml has a mistake, or DVC would not notice a change of a file that it
            names.
    """
    study = load_study(given.params)
    check_dependencies(input_paths(study), given.params)
    for finding in stale_artifacts(study):
        print(finding, file=sys.stderr)
    for stage in graph.STAGES:
        write_json(Path(given.folder, f"{stage}.json"), resolved(study, stage))


def resolved(study: Study, stage: str) -> dict[str, Any]:
    """The settings and the code digest of each job of a stage."""
    jobs = {
        " ".join([rule, *names.values()]): {
            "settings": json.loads(graph.settings_text(study, rule, names)),
            "code": code_identity.code(study, rule, names),
        }
        for rule in graph.rules_of(stage)
        for names in graph.jobs(study, rule)
    }
    return {"jobs": jobs}


def check_dependencies(paths: Sequence[Path], params: str) -> None:
    """Check that the stage `resolve` of dvc.yaml depends on some files and folders.

    DVC knows the dependencies that dvc.yaml lists and no others, so without them `dvc status` would
    miss a change of the images. If there is no dvc.yaml with this stage, nothing is checked.

    Raises:
        KdstepsError: The stage does not depend on one of them; the message has the line to write.
    """
    if (dependencies := _dependencies()) is None:
        return
    listed = {os.path.abspath(path) for path in dependencies}
    missing = [path for path in paths if not listed & _places(path)]
    missing = [path for path in missing if not set(map(str, missing)) & {*map(str, path.parents)}]
    for path in missing:
        if os.path.abspath(path) in _places(Path()):
            raise KdstepsError(
                f"{params}: there are images in {os.path.abspath(path)}, which DVC cannot follow "
                "since it has the results as well; move the images into a folder for them alone"
            )
    if missing:
        line = as_dependencies([*dependencies, *map(str, missing)])
        raise KdstepsError(
            f"{_PIPELINE}: the stage {_STAGE!r} does not depend on {', '.join(map(str, missing))}, "
            f"so `dvc status` would miss a change there; write `deps: {line}` in that stage"
        )


def stale_artifacts(study: Study) -> list[str]:
    """One sentence for each exported student that dvc.yaml names and the study does not export.

    `dvc artifacts get` would not find it, or would find an old one.
    """
    said = []
    folders = [f"{_EXPORTS}/{pair}/{run}" for pair, run in study.exported]
    artifacts = _pipeline().get("artifacts") or {}
    for name, artifact in artifacts.items() if isinstance(artifacts, dict) else ():
        path = str(artifact.get("path", "")) if isinstance(artifact, dict) else ""
        if folders and path.startswith(f"{_EXPORTS}/") and path.rstrip("/") not in folders:
            said.append(
                f"{_PIPELINE}: artifacts: the path of {name} is {path}, which this study does not "
                f"export; write one that it does, such as {folders[0]}"
            )
    return said


def _dependencies() -> list[str] | None:
    """The dependencies of the stage; None if there is no such stage."""
    try:
        entries = _pipeline()["stages"][_STAGE].get("deps") or []
    except (AttributeError, KeyError, TypeError):
        return None  # what is wrong with dvc.yaml is for DVC to say
    paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    return [path.replace(f"\\{_VALUE}", _VALUE) for path in paths]


def as_dependencies(paths: Iterable[str]) -> str:
    """Paths as the value of `deps` in dvc.yaml, where DVC would replace `${NAME}` by a value."""
    import yaml

    escaped = [path.replace(_VALUE, f"\\{_VALUE}") for path in paths]
    return yaml.safe_dump(escaped, default_flow_style=True, width=10_000).strip()


def _pipeline() -> dict[str, Any]:
    """The content of dvc.yaml; empty if there is none that can be read."""
    import yaml

    try:
        content = yaml.safe_load(_PIPELINE.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _places(path: Path) -> set[str]:
    """A path and all folders that it is in."""
    absolute = Path(os.path.abspath(path))
    return {str(absolute), *map(str, absolute.parents)}
