"""Splits that text files define, with one image per line, such as `cat/1.png` or `cat/1`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded

log = logging.getLogger("kdsteps")

Row = tuple[str, Path, str]


def splits_by_list(
    rows: Sequence[Row], root: Path, lists: Mapping[str, Sequence[str]]
) -> list[Row]:
    """The rows (split, file, class) of the listed images, split by split.

    Without a list for train, the images that no list names are the training images.

    Args:
        rows: Every image below `root`.
        root: What the paths in the lists are relative to.
        lists: Text files of each split, relative to `root`.

    Raises:
        KdstepsError: A line names no image, more than one, or one that another line names.
    """
    by_name: dict[str, list[int]] = {}
    for number, (_, file, _) in enumerate(rows):
        path = file.relative_to(root)
        for spelling in (path.as_posix(), path.with_suffix("").as_posix()):
            by_name.setdefault(spelling, []).append(number)
    split_of: dict[int, str] = {}
    for split, names in lists.items():
        for name in names:
            listed = root / expanded(name)
            for number, row in _rows_of(listed, by_name):
                if row in split_of:
                    raise KdstepsError(
                        f"{listed}: line {number} names an image that is already in "
                        f"{split_of[row]}; list every image once"
                    )
                split_of[row] = split
    if "train" not in lists:
        rest = [row for row in range(len(rows)) if row not in split_of]
        split_of |= dict.fromkeys(rest, "train")
    elif len(split_of) < len(rows):
        log.info("%s: %d images are in none of the lists", root, len(rows) - len(split_of))
    chosen = sorted(split_of, key=lambda row: (split_of[row] != "train", split_of[row], row))
    return [(split_of[row], *rows[row][1:]) for row in chosen]


def _rows_of(listed: Path, by_name: Mapping[str, Sequence[int]]) -> list[tuple[int, int]]:
    """Line number and row of each image that a text file names."""
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KdstepsError(f"{listed}: cannot be read as UTF-8 text ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not (name := line.strip().removeprefix("./")):
            continue
        rows = by_name.get(name, [])
        if not rows:
            close = get_close_matches(name, islice(by_name, 10_000), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "write paths relative to the folder"
            raise KdstepsError(f"{listed}: line {number} names no image, {name!r}; {hint}")
        if len(rows) > 1:
            raise KdstepsError(
                f"{listed}: line {number} names {name!r}, which {len(rows)} images are called; "
                "write the name with its ending"
            )
        found.append((number, rows[0]))
    return found
