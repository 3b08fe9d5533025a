"""Damaged results: moved aside, so that the next run makes them again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kdsteps.errors import KdstepsError

_ASIDE = ".damaged"  # added to the name of the file


def set_aside(path: Path) -> None:
    """Rename a damaged file, so that its job runs again."""
    with suppress(FileNotFoundError):  # another process did
        os.replace(path, path.with_name(path.name + _ASIDE))


def refused(path: Path, problem: str) -> KdstepsError:
    """Move a damaged file aside, and return the error that says so.

    Args:
        problem: Such as `was changed after its job wrote it`.
    """
    set_aside(path)
    return KdstepsError(
        f"{path}: {problem}; it is now {path.name}{_ASIDE}, and snakemake makes the file again"
    )


def forget_aside(paths: Iterable[Path]) -> None:
    """Delete what was set aside of files that were made again."""
    for path in paths:
        with suppress(OSError):
            path.with_name(path.name + _ASIDE).unlink()
