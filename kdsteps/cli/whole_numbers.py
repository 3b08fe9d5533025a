"""Whole numbers as values of options."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A number from 0.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; it should be a whole number")
    return int(text)


def positive(text: str) -> int:
    """A number from 1.

    Raises:
        argparse.ArgumentTypeError: The text is something else.
    """
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"is {text!r}; it should be a whole number from 1")
    return int(text)
