"""Lengths within a training run: fractions of it, or numbers of epochs."""

from __future__ import annotations


def in_epochs(length: float, epochs: int) -> float:
    """A length in epochs: below 1 it is a fraction of the run, from 1 on a number of epochs."""
    return length * epochs if length < 1 else length


def length_problem(length: float, epochs: int, after: int) -> str | None:
    """What is wrong with a length of a run, or None.

    Args:
        epochs: Of the run.
        after: How many of them have to follow.
    """
    if in_epochs(length, epochs) <= epochs - after:
        return None
    return (
        f"is {length:g} and distil.epochs is {epochs}; it should be at most {epochs - after}, or a "
        "smaller fraction of the run"
    )
