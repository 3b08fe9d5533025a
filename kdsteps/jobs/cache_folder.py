"""The folder `.kdsteps`, in which jobs cache logits and save the state of trainings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import check_kind

_CACHE = Path(".kdsteps")
_FOLDERS = (_CACHE / "outputs", _CACHE / "resume")  # what else is in it is never needed


def check_cache_folder() -> None:
    """Check that folders of the cache are folders, and what is in them are files.

    Raises:
        KdstepsError: One is something else, which a job would be stopped by.
    """
    for folder in (_CACHE, *_FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            raise KdstepsError(
                f"{folder}: is not a folder; move it away, since jobs cache files in it"
            )
    for folder in _FOLDERS:
        for path in folder.glob("*"):
            check_kind(path)


def remove_trials() -> None:
    """Remove the students of trials whose jobs were killed; for a run that has just begun."""
    for folder in _CACHE.glob("trial-*"):
        shutil.rmtree(folder, ignore_errors=True)
