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
    for name in ("datasets", "models", "methods"):
        (pattern,) = properties[name].pop("patternProperties")
        properties[name]["propertyNames"] = {"pattern": pattern, "maxLength": MAX_NAME}
    dataset, model, method = (
        definitions.pop(f"{name}Entry")["properties"] for name in ("Dataset", "Model", "Method")
    )
    properties["datasets"]["additionalProperties"] = _choice("data", "kind", dataset)
    properties["models"]["additionalProperties"] = _choice("models", "family", model)
    properties["methods"] |= {
        "properties": {
            name: _or_nothing(_renamed(name, method)) for name in registry.names("methods")
        },
        "additionalProperties": _choice("methods", "method", method),
    }
    for name in properties.keys() - set(schema["required"]):
        section = properties[name]
        section = section if "$ref" in section else section["anyOf"][0]  # `probe` has no default
        described = definitions[section["$ref"].rpartition("/")[2]]["description"]
        properties[name] = _or_nothing(section | {"description": described})
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


def _renamed(name: str, own: Schema) -> Schema:
    """The entry of a method under its own name, or of another method under that name."""
    other = {"required": ["method"], "properties": {"method": {"not": {"const": name}}}}
    of_its_own = _options("methods", name, "method", own)
    return {
        "description": of_its_own.get("description", f"The method {name}."),
        "if": other,
        "then": _choice("methods", "method", own),
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
