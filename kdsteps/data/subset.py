"""A selection: some images of each class, and files by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

import numpy as np

from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.files.walk import is_debris


def thinned(labels: np.ndarray, split: np.ndarray, per_class: int | None) -> np.ndarray:
    """Rows of at most `per_class` images of each class and split, evenly spread over them.

    Args:
        labels, split: (N,).
        per_class: None: all of them.
    """
    if per_class is None:
        return np.arange(len(labels))
    chosen = []
    for name in np.unique(split):
        for label in np.unique(labels):
            rows = np.flatnonzero((split == name) & (labels == label))
            if len(rows) > per_class:
                rows = rows[np.linspace(0, len(rows), per_class, endpoint=False).astype(int)]
            chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def matching(patterns: str | Sequence[str], suffix: str, where: str) -> list[Path]:
    """Files that match the patterns, sorted by name; a folder means the files in it.

    Args:
        patterns: Paths, with `*` where they vary.
        suffix: Of the files in a folder, such as ".parquet".
        where: The option that names them, for messages.

    Raises:
        KdstepsError: A pattern matches nothing, or something that is not a file.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = expanded(pattern)
        inside = path.glob(f"*{suffix}") if path.is_dir() else map(Path, glob(str(path)))
        files = sorted(file for file in inside if not is_debris(file.name))
        if not files:
            what = "no file matches" if has_magic(pattern) else "there is no such file"
            raise KdstepsError(
                f"{where}: {pattern!r}: {what}; paths are relative to where kdsteps runs"
            )
        if special := [file for file in files if not file.is_file()]:
            raise KdstepsError(f"{where}: {special[0]} is not a regular file; name files only")
        found += files
    return found
