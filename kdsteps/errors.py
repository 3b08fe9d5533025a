"""The error for mistakes that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 60  # choices of a sentence


class KdstepsError(Exception):
    """A mistake of the user: one sentence with where it is, what was found and what would be right.

    The command prints the sentence and ends with status 2.
    """

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each mistake; the message itself is about the first."""
        return (str(self),)


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
