"""Lengths within a training run: fractions of it, or numbers of epochs."""

from __future__ import annotations


def in_epochs(length: float, epochs: int) -> float:
    """A length in epochs: below 1 it is a fraction of the run, from 1 on a number of epochs."""
    return length * epochs if length < 1 else length
