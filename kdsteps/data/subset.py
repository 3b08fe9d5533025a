"""A smaller set of a large one: some images of each class, and files by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

import numpy as np

from kdsteps.errors import KdstepsError


def thinned(labels: np.ndarray, split: np.ndarray, per_class: int | None) -> np.ndarray:
    """Rows of at most `per_class` images of each class and part, evenly spread over its images.

    Args:
        labels, split: (N,).
        per_class: None: all of them.
    """
    if per_class is None:
        return np.arange(len(labels))
    chosen = []
    for part in np.unique(split):
        for label in np.unique(labels):
            rows = np.flatnonzero((split == part) & (labels == label))
            if len(rows) > per_class:
                rows = rows[np.linspace(0, len(rows), per_class, endpoint=False).astype(int)]
            chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def matching(patterns: str | Sequence[str], suffix: str, where: str) -> list[Path]:
    """Files that the patterns name, in order of their names; a folder means those in it.

    Args:
        patterns: Paths, with `*` where they vary.
        suffix: Of the files in a folder, such as ".parquet".
        where: The option that names them, for messages.

    Raises:
        KdstepsError: A pattern matches nothing.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        files = (
            sorted(path.glob(f"*{suffix}")) if path.is_dir() else sorted(map(Path, glob(str(path))))
        )
        if not files:
            what = "no file matches it" if has_magic(pattern) else "there is no such file"
            raise KdstepsError(
                f"{where}: {pattern!r}: {what}; give a path from where you run kdsteps"
            )
        found += files
    return found
