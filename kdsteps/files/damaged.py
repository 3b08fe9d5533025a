"""Damaged results: marked while a run goes on, moved aside when the next one begins."""

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
        os.replace(path, _aside(path))


def refused(path: Path, problem: str) -> KdstepsError:
    """Mark a file as damaged, and return the error that says so.

    The file stays where it is: other jobs of this run may be about to read it, and say the same.

    Args:
        problem: Such as `was changed after its job wrote it`.
    """
    with suppress(OSError):  # a read-only folder, or a full disk
        _aside(path).touch()
    return KdstepsError(f"{path}: {problem}; run again: snakemake makes the file again")


def is_marked(path: Path) -> bool:
    """Whether a job found a file to be damaged."""
    return _aside(path).exists()


def forget_aside(paths: Iterable[Path]) -> None:
    """Delete what was marked or set aside of files that are whole again."""
    for path in paths:
        with suppress(OSError):
            _aside(path).unlink()


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)
