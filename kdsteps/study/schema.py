"""The JSON schema of params.yaml, which editors use to complete keys and mark mistakes."""

from __future__ import annotations

from typing import Any

from kdsteps.study import registry
from kdsteps.study.entries import Params
from kdsteps.study.messages import MAX_NAME

Schema = dict[str, Any]


def study_schema() -> Schema:
    """The schema of params.yaml, with the options of all methods, model families, kinds of data."""
    schema = Params.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    properties, required = schema["properties"], schema["required"]
    distil, train, build = (_reference(name) for name in ("Distil", "Train", "Build"))
    for name in ("datasets", "models", "methods"):
        (pattern,) = properties[name].pop("patternProperties")
        properties[name]["propertyNames"] = {"pattern": pattern, "maxLength": MAX_NAME}
    properties["datasets"]["additionalProperties"] = _choice("data", "kind", {})
    weights = ("checkpoint", "checkpoint_key", "checkpoint_prefix")
    own = {"train": _or_nothing(train)} | {name: {"type": "string"} for name in weights}
    properties["models"]["additionalProperties"] = _choice("models", "family", own)
    overrides = {"distil": _or_nothing(distil), "build": _or_nothing(build)}
    properties["methods"] |= {
        "properties": {
            name: _or_nothing(_renamed(name, overrides)) for name in registry.names("methods")
        },
        "additionalProperties": _choice("methods", "method", overrides),
    }
    schema["$defs"]["Pair"]["properties"] |= overrides
    for name in properties.keys() - set(required):
        properties[name] = _or_nothing(properties[name])
    return schema


def _choice(kind: registry.Kind, key: str, own: Schema) -> Schema:
    """An entry whose `key` selects the part, and with it the other options that are allowed."""
    names = registry.names(kind)
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": list(names)}},
        "allOf": [
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": _options(kind, name, {key: {"const": name}} | own),
            }
            for name in names
        ],
    }


def _renamed(name: str, overrides: Schema) -> Schema:
    """The entry of a method under its own name, or of another method under that name."""
    other = {"required": ["method"], "properties": {"method": {"not": {"const": name}}}}
    return {
        "if": other,
        "then": _choice("methods", "method", overrides),
        "else": _options("methods", name, {"method": {"const": name}} | overrides),
    }


def _options(kind: registry.Kind, name: str, own: Schema) -> Schema:
    """The options of one part, and the keys of its entry that are not options."""
    schema = registry.find(kind, name, kind).json_schema
    return schema | {"properties": schema.get("properties", {}) | own}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_nothing(schema: Schema) -> Schema:
    """A schema that also allows no value after the key."""
    return {"anyOf": [schema, {"type": "null"}]}
