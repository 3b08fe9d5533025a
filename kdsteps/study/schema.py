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
    properties, definitions = schema["properties"], schema["$defs"]
    named = ("datasets", "models", "methods", "loggers")
    for name in named:
        (pattern,) = properties[name].pop("patternProperties")
        properties[name]["propertyNames"] = {"pattern": pattern, "maxLength": MAX_NAME}
    dataset, model, method, logger = (
        definitions.pop(f"{name}Entry")["properties"]
        for name in ("Dataset", "Model", "Method", "Logger")
    )
    properties["datasets"]["additionalProperties"] = _choice("data", "kind", dataset)
    properties["models"]["additionalProperties"] = _choice("models", "family", model)
    properties["methods"] |= _by_own_name("methods", "method", method)
    properties["loggers"] |= _by_own_name("loggers", "logger", logger)
    properties["loggers"] = _or_nothing(properties["loggers"])
    for name in properties.keys() - {*schema["required"], *named}:
        given = properties[name].get("anyOf", [properties[name]])[0]
        section = definitions[given["$ref"].rpartition("/")[2]]
        properties[name] = _or_nothing(given | {"description": section["description"]})
    return schema


def _choice(kind: registry.Kind, key: str, own: Schema) -> Schema:
    """An entry whose `key` selects the part, and with it the other options that are allowed.

    Args:
        own: The keys of the entry that are not options of a part.
    """
    names = registry.names(kind)
    description = own[key]["description"]
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": list(names), "description": description}},
        "allOf": [
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": _options(kind, name, key, own),
            }
            for name in names
        ],
    }


def _by_own_name(kind: registry.Kind, key: str, own: Schema) -> Schema:
    """Entries that are named after their part, unless their `key` says which part they are of."""
    return {
        "properties": {
            name: _or_nothing(_renamed(kind, name, key, own)) for name in registry.names(kind)
        },
        "additionalProperties": _choice(kind, key, own),
    }


def _renamed(kind: registry.Kind, name: str, key: str, own: Schema) -> Schema:
    """The entry of a part under its own name, or of another part under that name."""
    other = {"required": [key], "properties": {key: {"not": {"const": name}}}}
    of_its_own = _options(kind, name, key, own)
    return {
        "description": of_its_own.get("description", f"The {key} {name}."),
        "if": other,
        "then": _choice(kind, key, own),
        "else": of_its_own,
    }


def _options(kind: registry.Kind, name: str, key: str, own: Schema) -> Schema:
    """The options of one part, and the keys of its entry that are not options."""
    schema = registry.find(kind, name, kind).json_schema
    chosen = {key: {"const": name, "description": own[key]["description"]}}
    return schema | {"properties": schema.get("properties", {}) | own | chosen}


def _or_nothing(schema: Schema) -> Schema:
    """A schema that also allows no value after the key."""
    return {"description": schema["description"], "anyOf": [schema, {"type": "null"}]}
