"""Turn pydantic's errors about settings into one sentence: where, what, and what is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from kdsteps.errors import KdstepsError, nearest

MAX_NAME = 80  # characters of a name that becomes part of paths
_LONGEST = 60  # characters of a value that are shown

Keys = Callable[[Sequence[str]], Mapping[str, str | None]]
"""The keys that are allowed at a path of settings, with their descriptions if there are any."""

# pydantic's words, which speak of JSON, in those of params.yaml.
_PLAIN = {
    r"^(Input|\w+) should (be |(?=have ))": "",
    r"^(an object|a valid dictionary)$": "`key: value` entries",
    r"^a valid integer$": "a whole number",
    r"^a valid boolean$": "true or false",
    r"^a valid string$": "text",
    r"^a valid (array|tuple|list)$": "a list",
    r"^a valid ": "a ",
    r"greater than or equal to": "at least",
    r"less than or equal to": "at most",
    r"greater than": "above",
    r"less than": "below",
    r" after validation, not \d+$": "",
}


class SettingsError(KdstepsError):
    """What is wrong with some settings: the first thing, and how many more there are."""

    def __init__(self, sentences: Sequence[str]) -> None:
        more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
        super().__init__(sentences[0] + more)
        self._sentences = tuple(sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        return self._sentences


def settings_error(error: ValidationError, content: Any, where: str, keys: Keys) -> SettingsError:
    """What pydantic reports about some settings, in sentences.

    Args:
        error: What pydantic reports about `content`.
        where: A file, or a file and a place in it ("params.yaml: pairs.a").
        keys: The allowed keys at a path.
    """
    found: dict[tuple[str, ...], dict[str, ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        path = _path(problem, content)
        found.setdefault(path, {})[problem["type"]] = problem
    # An error inside a list is more helpful than the error that it matches none of the choices.
    paths = [path for path in found if not any(_in_list(other, path) for other in found)]
    return SettingsError(
        [
            f"{_spot(where, path)} {_said(list(found[path].values()), content, path, keys)}"
            for path in paths
        ]
    )


def shown(value: Any) -> str:
    """A value as in YAML, on one line and not too long."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _said(problems: Sequence[ErrorDetails], content: Any, path: tuple[str, ...], keys: Keys) -> str:
    """What is wrong with the setting at `path`, and what would be right.

    Args:
        problems: One for each choice that the setting has.
    """
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"is an unknown key{nearest(path[-1], keys(path[:-1]))}"
    for problem in problems:
        if problem["type"] == "value_error":  # of a check of ours, with its own sentence
            return str(problem["ctx"]["error"])
    if _is_about_a_name(first):
        return (
            f"has an entry {shown(first['input'])}; names become parts of paths and should be up "
            f"to {MAX_NAME} letters, digits, - and _, with a letter or digit first"
        )
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        right = keys(path[:-1]).get(path[-1])
        return "is missing" + (f"; it should be {_phrase(right)}" if right else "")
    right = _joined([_right(problem) for problem in problems])
    verb = "" if right.startswith("have ") else "be "
    return f"is {shown(_value_at(content, path))}; it should {verb}{right}"


def _phrase(description: str) -> str:
    """The first clause of a description, for the middle of a sentence."""
    first = re.split(r"[.;:]\s", " ".join(description.split()), maxsplit=1)[0].rstrip(".")
    return first[0].lower() + first[1:]


def _right(problem: ErrorDetails) -> str:
    """What would be right, in words that follow "it should be" or "it should"."""
    if problem["type"] == "missing":  # the last of the items that a list lacks
        return f"have {int(problem['loc'][-1]) + 1} items"
    text = problem["msg"]
    for pattern, plain in _PLAIN.items():
        text = re.sub(pattern, plain, text)
    return text


def _joined(choices: Sequence[str]) -> str:
    """Choices as one list: "'a' or 'b'" and "a list" are "'a', 'b' or a list"."""
    *others, last = dict.fromkeys(choices)
    listed = ", ".join(text.replace(" or ", ", ") for text in others)
    return f"{listed} or {last}" if listed else last


def _path(problem: ErrorDetails, content: Any) -> tuple[str, ...]:
    """The keys and places in lists that lead to a setting, without pydantic's names of types."""
    loc, lacks = problem["loc"], problem["type"] == "missing"
    if _is_about_a_name(problem):
        return tuple(map(str, loc[:-2]))
    path: list[str] = []
    for part in loc:
        if isinstance(content, dict) and (part in content or (lacks and part is loc[-1])):
            path.append(str(part))
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            path.append(f"[{part}]")
            content = content[part]
    return tuple(path)


def _is_about_a_name(problem: ErrorDetails) -> bool:
    """Whether the name of an entry is wrong: pydantic adds `[key]`, which can also be a key."""
    of_key = problem["loc"][-1:] == ("[key]",) and problem["loc"][-2:-1] == (problem["input"],)
    return of_key and problem["type"] != "extra_forbidden"


def _in_list(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether `path` leads to an item of the list at `other`."""
    rest = path[len(other) :]
    return bool(rest) and path == (*other, *rest) and _is_place(rest[0])


def _is_place(key: str) -> bool:
    """Whether a part of a path is a place in a list."""
    return re.fullmatch(r"\[\d+\]", key) is not None


def _value_at(content: Any, path: Sequence[str]) -> Any:
    for part in path:
        content = content[int(part[1:-1]) if isinstance(content, list) else part]
    return content


def _spot(where: str, path: Sequence[str]) -> str:
    if not path:
        return f"{where}:" if ": " not in where else where
    keys = [key if key.isprintable() and len(key) <= MAX_NAME else shown(key) for key in path]
    spot = "".join(key if _is_place(key) else f".{key}" for key in keys)
    return f"{where}{spot}" if ": " in where else f"{where}: {spot.removeprefix('.')}"
