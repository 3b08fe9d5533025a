"""Text and JSON files of results, written completely or not at all."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import atomic, damage


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people to read; NaN is an error."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, without changing its line endings."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic(path) as part:
        part.write_bytes(content)


def unprintable(text: str) -> str | None:
    """The first character of a text that has no place in a plot or page, or None.

    These are control characters, line and paragraph separators, half characters (surrogates), and
    invisible ones such as marks of direction; those that join letters and pictograms are text.
    """
    for character in text:
        is_joiner = character in "\u200c\u200d"
        is_none = ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF
        if is_none or (unicodedata.category(character) in _UNPRINTABLE and not is_joiner):
            return character
    return None


_TAIL = 4096  # bytes
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode


def last_lines(path: str | Path) -> list[str]:
    """The last lines of a log that are not empty; none if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise KdstepsError(f"{path}: {damage(error, 'JSON file')}") from error
    if not isinstance(content, dict):
        raise KdstepsError(f"{path}: is not a JSON object; run the stage that writes it again")
    return content
