"""Numbers, sizes and times in readable form."""

from __future__ import annotations

_SIZES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def plural(number: int, word: str, words: str | None = None) -> str:
    """`1 seed`, `1,200 seeds`; `words` where more than one is not the word with an s."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def in_bytes(size: int) -> str:
    """Bytes in readable form: 1.5 GiB."""
    for unit, each in _SIZES.items():
        if size >= each:
            return f"{size / each:.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """A time in readable form, no more precise than a forecast is: 3 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.1f} days"
