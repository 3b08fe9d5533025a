"""Files that a data set would count twice."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from kdsteps.errors import KdstepsError


def check_once(files: Iterable[tuple[str, Path]]) -> None:
    """Check that no file is named twice, whatever the paths to its folder.

    Args:
        files: The split and the path of each file; "" where the splits are not known.

    Raises:
        KdstepsError: One is, in one split or in two.
    """
    real = cache(os.path.realpath)
    split_of: dict[str, str] = {}
    for split, file in files:
        path = os.path.join(real(file.parent), file.name)
        if path in split_of:
            known = split_of[path]
            where = "named twice" if known == split else f"in {known} and in {split}"
            raise KdstepsError(
                f"datasets: {file} is {where}; name files and folders so that each image counts "
                "once"
            )
        split_of[path] = split
