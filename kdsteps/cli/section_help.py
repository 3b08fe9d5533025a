"""What `kdsteps STAGE --help` says about the stage's section of params.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import fill
from typing import Any, get_args

from kdsteps.study.entries import Params

_TYPES = {"integer": "whole number", "boolean": "true or false", "string": "text", "array": "list"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def section_help(stage: str) -> str:
    """The keys of a stage's section with their types, defaults and descriptions."""
    annotation = Params.model_fields[stage].annotation
    section = next(kind for kind in get_args(annotation) or (annotation,) if kind is not None)
    keys = section.model_json_schema()["properties"]  # as `kdsteps schema` has them
    lines = [f"keys of the section `{stage}` in params.yaml, with their defaults:"]
    for name, schema in keys.items():
        lines.append(f"  {name}: {json.dumps(schema['default'])}  ({_type(schema)})")
        text = " ".join(schema["description"].split())
        lines.append(fill(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _type(schema: Mapping[str, Any]) -> str:
    if choices := schema.get("anyOf"):
        return ", or ".join(_type(one) for one in choices if one != {"type": "null"})
    if "enum" in schema:
        return " | ".join(schema["enum"])
    limits = [f"{words} {schema[name]}" for name, words in _BOUNDS.items() if name in schema]
    return ", ".join([_TYPES.get(schema["type"], schema["type"]), *limits])
