"""What the help of a stage, and `kdsteps options`, say about keys of params.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, get_args

from pydantic import BaseModel

from kdsteps.jobs.live import RULES as LOGGED
from kdsteps.study.entries import Pair, Params

_TYPES = {
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "keys with values",
}
_OF_PAIRS = ("build", "tune", "distil")  # stages with jobs for each pair and method
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def section_help(stage: str) -> str:
    """The keys of a stage's sections with their types, defaults and descriptions."""
    found = [_keys(f"the section `{stage}`", _section(stage))]
    if stage in _OF_PAIRS:
        entry = "each entry of the section `pairs`"
        found.append(_keys(entry, Pair, first=("dataset", "teacher", "teachers", "student")))
    if stage in LOGGED:
        text = f"section `loggers`: {Params.model_fields['loggers'].description}"
        found.append(fill(" ".join(text.split()), 94))
    if stage == "evaluate":
        found.append(_keys("the section `probe`", _section("probe")))
    return "\n\n".join(found)


def _section(name: str) -> type[BaseModel]:
    annotation = Params.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    section: type[BaseModel] = next(kind for kind in kinds if kind is not None)
    return section


def _keys(place: str, section: type[BaseModel], first: Sequence[str] = ()) -> str:
    """One paragraph per key, those of `first` before the others."""
    schemas = section.model_json_schema()["properties"]  # as `kdsteps schema` has them
    keys = {key: schemas[key] for key in (*first, *schemas)}
    title = f"keys of {place} in params.yaml, with their defaults:"
    return "\n".join([title, *key_lines(keys)])


def key_lines(schemas: Mapping[str, Any]) -> Iterator[str]:
    """Lines for each key with its default, its type and its description.

    Args:
        schemas: The JSON schema of each key's value.
    """
    for key, schema in schemas.items():
        default = json.dumps(schema["default"]) if "default" in schema else "no default"
        yield f"  {key}: {default}  ({_type(schema)})"
        if text := " ".join(schema.get("description", "").split()):
            yield fill(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _type(schema: Mapping[str, Any]) -> str:
    if choices := schema.get("anyOf"):
        kinds = [_type(one) for one in choices if one != {"type": "null"}]
        return ", or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "$ref" in schema:  # a section of its own
        return f"keys of the section `{schema['$ref'].rpartition('/')[2].lower()}`"
    limits = [f"{words} {schema[name]}" for name, words in _BOUNDS.items() if name in schema]
    kind = schema.get("type", "any value")
    return ", ".join([_TYPES.get(kind, kind), *limits])
