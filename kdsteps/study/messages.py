"""What pydantic found wrong with settings, in words: where, what was found, what would be right.

What would be right is read off the type of the setting, so that every type is described in one way.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kdsteps.errors import nearest

MAX_NAME = 80  # characters of a name that becomes part of paths
_LONGEST = 60  # characters of a value that are shown
_NAME = "[key]"  # what pydantic calls the key of a mapping when it is wrong


def sentence(
    error: ValidationError,
    model: type[BaseModel],
    content: Any,
    where: str,
    others: Sequence[str] = (),
) -> str:
    """The first thing wrong, and how many more there are.

    Args:
        error: What `model` said of `content`.
        where: A file, or a file and a place in it ("params.yaml: pairs.a").
        others: Keys that may stand beside those of the model, for guesses at what was meant.
    """
    said: dict[str, str] = {}
    for problem in error.errors():
        path, rest = _setting(model, problem["loc"])
        spot = _spot(where, path)
        said.setdefault(spot, _said(problem, model, content, path, rest, others))
    return _first(said)


def option_sentence(
    error: ValidationError,
    wanted: Mapping[str, str],
    options: Mapping[str, Any],
    where: str,
    others: Sequence[str] = (),
) -> str:
    """As `sentence`, for the options of a part, whose types are known in words.

    Args:
        error: What the part's validator said of `options`.
        wanted: What each option should be.
        where: An entry of params.yaml.
        others: Keys that may be beside the options, for guesses at what was meant.
    """
    said: dict[str, str] = {}
    for problem in error.errors():
        name, *rest = map(str, problem["loc"])
        if problem["type"] == "extra_forbidden":
            fault = f"is an unknown key{nearest(name, [*wanted, *others])}"
        elif problem["type"] == "missing" and not rest:
            fault = f"is missing; it should be {wanted[name]}"
        else:
            fault = _fault(problem["type"], options[name], wanted[name])
        said.setdefault(_spot(where, [name]), fault)
    return _first(said)


def _first(said: Mapping[str, str]) -> str:
    """The first fault with its place, and how many more there are."""
    (spot, first), more = next(iter(said.items())), len(said) - 1
    return f"{spot} {first}" + (f" (and {more} more)" if more else "")


def _fault(kind: str, value: Any, right: str) -> str:
    if kind == "finite_number":
        right = right.replace("number", "finite number")
    return f"is {shown(value)}; it should be {right}"


def wanted(annotation: Any, metadata: Iterable[Any] = (), *, many: bool = False) -> str:
    """A type in words: `a whole number above 0`, or with `many` `whole numbers above 0`."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return wanted(inner, [*more, *metadata], many=many)
    if get_origin(annotation) in (Union, types.UnionType, Literal):
        return _alternatives(annotation, many)
    kind = get_origin(annotation) or annotation
    if kind in (tuple, list):
        words = _list_of(annotation, many)
    elif kind is str and any(getattr(entry, "pattern", None) for entry in _flat(metadata)):
        words = f"{'names' if many else 'a name'} of letters, digits, - and _"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        needed = [name for name, field in kind.model_fields.items() if field.is_required()]
        words = f"entries with {_joined(needed, 'and')}" if needed else "`key: value` entries"
    else:
        words = (_PLURALS if many else _NOUNS).get(kind, "values" if many else "a value")
    return words + _bounds(metadata)


_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "`key: value` entries",
}
_PLURALS = {
    int: "whole numbers",
    float: "numbers",
    bool: "true or false",
    str: "texts",
    dict: "`key: value` entries",
}


def shown(value: Any) -> str:
    """A value as it may stand in YAML, on one line and not too long."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _said(
    problem: ErrorDetails,
    model: type[BaseModel],
    content: Any,
    path: Sequence[str],
    rest: Sequence[Any],
    others: Sequence[str],
) -> str:
    """What is wrong with the setting at `path`, said of it."""
    if problem["type"] == "extra_forbidden":
        choices = [*_keys(model, path[:-1]), *(others if len(path) == 1 else ())]
        return f"is an unknown key{nearest(path[-1], choices)}"
    if rest == [_NAME]:
        name = problem["input"]
        return (
            f"has an entry {name!r}; names become parts of paths and should be up to "
            f"{MAX_NAME} letters, digits, - and _"
        )
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    annotation, metadata, description = _type_at(model, path)
    right = description or wanted(annotation, metadata)
    if problem["type"] == "missing" and not rest:
        return f"is missing; it should be {right}"
    return _fault(problem["type"], _value_at(content, path), right)


def _setting(model: type[BaseModel], loc: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """The path to the setting that an error is about, and what follows inside its value."""
    if loc and loc[-1] == _NAME:
        return [str(part) for part in loc[:-2]], [_NAME]
    path: list[str] = []
    annotation: Any = model
    for number, part in enumerate(loc):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            path.append(str(part))
            field = annotation.model_fields.get(str(part))
            if field is None:
                return path, list(loc[number + 1 :])
            annotation = field.annotation
        elif get_origin(annotation) is dict:
            path.append(str(part))
            annotation = get_args(annotation)[1]
        else:
            return path, list(loc[number:])
    return path, []


def _type_at(model: type[BaseModel], path: Sequence[str]) -> tuple[Any, list[Any], str | None]:
    """The type of a setting, its constraints, and its description where it has one."""
    found: tuple[Any, list[Any], str | None] = (model, [], None)
    for part in path:
        annotation = found[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields[part]
            found = (field.annotation, field.metadata, field.description)
        else:
            found = (get_args(annotation)[1], [], None)
    return found


def _value_at(content: Any, path: Sequence[str]) -> Any:
    for part in path:
        content = content[part]
    return content


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that may stand at `path` in a settings model."""
    return list(_type_at(model, path)[0].model_fields)


def _spot(where: str, path: Sequence[str]) -> str:
    if not path:
        return f"{where}:" if ": " not in where else where
    return f"{where}{'.' if ': ' in where else ': '}{'.'.join(path)}"


def _alternatives(annotation: Any, many: bool) -> str:
    """Literals by their values, other types in words, all in one list."""
    found: list[str] = []
    empty = False
    for member in get_args(annotation):
        if get_origin(annotation) is Literal:
            found.append(str(member))
        elif get_origin(member) is Literal:
            found += map(str, get_args(member))
        elif member is types.NoneType:
            empty = True
        else:
            found.append(wanted(member, many=many))
    return _joined([*found, "left out"] if empty else found, "or")


def _list_of(annotation: Any, many: bool) -> str:
    kinds = [kind for kind in get_args(annotation) if kind is not Ellipsis]
    if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation):
        counted = {2: "pair", 3: "triple"}.get(len(kinds))
        lists = f"{counted}s" if counted else f"lists of {len(kinds)}"
        one = f"a {counted}" if counted else f"a list of {len(kinds)}"
        return f"{lists if many else one} {'of ' if counted else ''}{wanted(kinds[0], many=True)}"
    return f"{'lists' if many else 'a list'} of {wanted(kinds[0], many=True)}"


def _bounds(metadata: Iterable[Any]) -> str:
    """Limits in words that follow the noun."""
    limits = {
        name: limit
        for entry in _flat(metadata)
        for name in ("gt", "ge", "lt", "le", "min_length")
        if (limit := getattr(entry, name, None)) is not None
    }
    template = next((words for names, words in _LIMITS.items() if limits.keys() >= set(names)), "")
    return template.format(**limits) + (", at least one" if "min_length" in limits else "")


_LIMITS = {
    ("ge", "le"): " from {ge} to {le}",
    ("ge", "lt"): " from {ge} to below {lt}",
    ("gt", "le"): " above {gt} and up to {le}",
    ("gt", "lt"): " between {gt} and {lt}",
    ("ge",): " of {ge} or more",
    ("gt",): " above {gt}",
    (): "",
}


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    """The constraints themselves, out of the `Field(...)` that some stand in."""
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from entry.metadata
        else:
            yield entry


def _joined(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
