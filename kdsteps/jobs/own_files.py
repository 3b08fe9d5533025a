"""Whether the user's images, weights and other files are those that a job was planned with.

A job is planned by digests of these files, and its result is recorded as made from them. If a job
read other contents, its result would count as up to date as soon as the planned ones are back.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.input_digests import dvc_file
from kdsteps.files.manifest import source_digest, source_paths
from kdsteps.jobs.inputs import checkpoint_digest, files_of_method, files_of_model
from kdsteps.jobs.settings import (
    DistilSettings,
    JobSettings,
    PrepareSettings,
    TrainSettings,
    UntrainedProbeSettings,
)

log = logging.getLogger("kdsteps")


def check_own_files(settings: JobSettings) -> None:
    """Refuse files of the user that are not those that a job was planned with.

    Raises:
        KdstepsError: Files changed after the job was planned, or are not what DVC tracks.
    """
    named = list(_named(settings))
    for planned, now, paths in named:
        if now and now != planned:
            raise KdstepsError(
                f"{paths[0]}: is not what this run began with; run snakemake again, which uses "
                "what is there now"
            )
    tracked = (dvc_file(path) for *_, paths in named for path in paths)
    for file in dict.fromkeys(file for file in tracked if file is not None):
        if _differs(file):
            shown = os.path.relpath(file)
            path = shown.removesuffix(".dvc")
            raise KdstepsError(
                f"{path}: is not what {shown} tracks; run `dvc add {path}` to use it as it is, or "
                f"`dvc checkout {shown}` to have back what is tracked, and then snakemake again"
            )


def _named(settings: JobSettings) -> Iterator[tuple[str, str | None, list[Path]]]:
    """The planned digest of some files, that of today, and the files."""
    if isinstance(settings, PrepareSettings) and settings.source:
        kind, options = settings.kind, settings.options
        yield settings.source, source_digest(kind, options), source_paths(kind, options)
    if isinstance(settings, TrainSettings) and settings.weights:
        model = settings.model
        yield settings.weights, checkpoint_digest(model), files_of_model(model)
    if isinstance(settings, DistilSettings | UntrainedProbeSettings) and settings.weights:
        model = settings.student
        yield settings.weights, checkpoint_digest(model), files_of_model(model)
    if isinstance(settings, DistilSettings) and settings.files:
        # their digest is that of all trials, of which a job knows its own
        yield "", None, files_of_method(settings.method, settings.options)


def _differs(file: Path) -> bool:
    """Whether DVC tracks other contents by a `.dvc` file than those that are there.

    DVC is asked, since only it knows what it ignores.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", file.name],
        cwd=file.parent,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        log.info("DVC does not say whether the files are those that %s tracks", file)
        return False
    found = [change for stage in json.loads(done.stdout).values() for change in stage]
    outputs = [change.get("changed outs", {}) for change in found if isinstance(change, dict)]
    return any(state in ("modified", "deleted") for each in outputs for state in each.values())
