"""What pydantic found wrong with settings, in one sentence: where, what, and what is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from kdsteps.errors import nearest

MAX_NAME = 80  # characters of a name that becomes part of paths
_LONGEST = 60  # characters of a value that are shown

Keys = Callable[[Sequence[str]], Sequence[str]]
"""The keys that are allowed at a path of settings, for guesses at what was meant."""


def sentence(error: ValidationError, content: Any, where: str, keys: Keys) -> str:
    """The first thing wrong, and how many more there are.

    Args:
        error: What pydantic reports about `content`.
        where: A file, or a file and a place in it ("params.yaml: pairs.a").
        keys: The allowed keys at a path.
    """
    found: dict[str, list[str]] = {}
    described: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = _path(problem["loc"], content)
        spot = _spot(where, path)
        said, right = _said(problem, content, path, keys)
        described.setdefault(spot, said)
        if right:
            found.setdefault(spot, []).append(right)
    (spot, first), more = next(iter(described.items())), len(described) - 1
    right = " or ".join(dict.fromkeys(found.get(spot, [])))
    return f"{spot} {first}{right}" + (f" (and {more} more)" if more else "")


def shown(value: Any) -> str:
    """A value as YAML would have it, on one line and not too long."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _said(problem: ErrorDetails, content: Any, path: Sequence[str], keys: Keys) -> tuple[str, str]:
    """What is wrong with the setting at `path`, and what would be right if that can be said."""
    if problem["type"] == "extra_forbidden":
        return f"is an unknown key{nearest(path[-1], keys(path[:-1]))}", ""
    if problem["loc"] and problem["loc"][-1] == "[key]":
        return (
            f"has an entry {problem['input']!r}; names become parts of paths and should be up to "
            f"{MAX_NAME} letters, digits, - and _"
        ), ""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"]), ""
    right = re.sub(r"^(Input|\w+) should (be |have )", r"\2", problem["msg"]).removeprefix("be ")
    if problem["type"] == "missing":
        return "is missing", ""
    verb = "" if right.startswith("have ") else "be "
    return f"is {shown(_value_at(content, path))}; it should {verb}", right


def _path(loc: Sequence[Any], content: Any) -> list[str]:
    """The keys of `loc` that lead to a setting, without those inside its value."""
    path: list[str] = []
    for part in loc:
        if not isinstance(content, dict) or part == "[key]":
            break
        if str(part) not in content and part is not loc[-1]:
            continue  # a name that pydantic gives a type
        path.append(str(part))
        content = content.get(str(part))
    return path


def _value_at(content: Any, path: Sequence[str]) -> Any:
    for part in path:
        content = content[part]
    return content


def _spot(where: str, path: Sequence[str]) -> str:
    if not path:
        return f"{where}:" if ": " not in where else where
    return f"{where}{'.' if ': ' in where else ': '}{'.'.join(path)}"
