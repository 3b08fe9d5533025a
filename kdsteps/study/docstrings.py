"""What a docstring says about a function or class, and about each argument."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

_ENTRY = re.compile(r"([\w, *]+?)(?: \(.*?\))?:\s+(.*)")  # such as `name, other (int): text`
_HEADING = re.compile(r"[A-Z]\w+:")


def summary(part: Any) -> str:
    """The first paragraph of the docstring on one line; "" if there is none."""
    return " ".join(_text(part).partition("\n\n")[0].split())


def arguments(part: Any) -> dict[str, str]:
    """The description of each argument in the section `Args` of the docstring."""
    lines = [line for line in _text(part).splitlines() if line.strip()]
    if "Args:" not in lines:
        return {}
    inside = lines[lines.index("Args:") + 1 :]
    indent = len(inside[0]) - len(inside[0].lstrip()) if inside else 0
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inside:
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if depth < indent or _HEADING.fullmatch(text):
            break
        entry = _ENTRY.fullmatch(text) if depth == indent else None
        if entry:
            names = [name.strip(" *") for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {text}" for name in names}
    return found


def _text(part: Any) -> str:
    return cleandoc(getattr(part, "__doc__", None) or "")
