"""The error for mistakes that the user can fix."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_LISTED = 60  # choices of a sentence
_LONGEST = 300  # characters of an error that is not ours


class KdstepsError(Exception):
    """A mistake of the user: one sentence with where it is, what was found and what would be right.

    The command prints the sentence and ends with status 2.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` or, with nothing near, `; there are x, y, z`, or the first of many."""
    choices = [str(choice) for choice in choices]
    if not choices:
        return "; there are none"
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(choices) - _LISTED:,} more" if len(choices) > _LISTED else ""
    listed = ", ".join(choices[:_LISTED]) + more
    return f"; there {'are' if len(choices) > 1 else 'is only'} {listed}"


def failure(error: BaseException) -> str:
    """`fails with ERROR: text`, and the last line of the user's own code that led to it."""
    text = " ".join(str(error).split())[:_LONGEST]
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    others = [str(Path(__file__).parent), *installed]
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in others):
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            where = f" in {shown}, line {frame.lineno}"
    return f"fails with {type(error).__name__}{where}: {text}"
