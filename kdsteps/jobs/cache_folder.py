"""The folder `.kdsteps`, in which jobs cache logits and save the state of trainings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import check_kind, may_write_into, nearest_folder

_CACHE = Path(".kdsteps")
_FOLDERS = (_CACHE / "outputs", _CACHE / "resume")  # what else is in it is never needed


def check_cache_folder() -> None:
    """Check that the cache has folders that can be written, and files in them.

    Raises:
        KdstepsError: One is not, which would stop a job.
    """
    for folder in (_CACHE, *_FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            raise KdstepsError(
                f"{folder}: is not a folder; move it away, since jobs cache files in it"
            )
        if not may_write_into(there := nearest_folder(folder)):
            raise KdstepsError(
                f"{folder}: cannot be written; make the folder {there.absolute()} writable, since "
                "jobs cache files in it"
            )
    for folder in _FOLDERS:
        for path in folder.glob("*"):
            check_kind(path)
            if path.suffix == ".lock" and not os.access(path, os.W_OK):
                raise KdstepsError(f"{path}: cannot be written; make it writable, or delete it")


def remove_trials() -> None:
    """Remove the students of trials whose jobs were killed; for a run that has just begun."""
    for folder in _CACHE.glob("trial-*"):
        shutil.rmtree(folder, ignore_errors=True)
