"""The command `options`: list what params.yaml can name, or the options of one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from textwrap import fill
from typing import Any

from pydantic import BaseModel

from kdsteps.cli.section_help import key_lines
from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.entries import DatasetEntry, LoggerEntry, MethodEntry, ModelEntry
from kdsteps.study.part_imports import NOUNS, Kind

SECTIONS: dict[str, Kind] = {
    "methods": "methods",
    "models": "models",
    "datasets": "data",
    "loggers": "loggers",
}
"""The sections of params.yaml whose entries have options of their own."""
_NAMED = {
    "methods": "method: NAME, or an entry of that name",
    "models": "family: NAME",
    "datasets": "kind: NAME",
    "loggers": "logger: NAME, or an entry of that name",
}
_ENTRIES: dict[str, type[BaseModel]] = {
    "methods": MethodEntry,
    "models": ModelEntry,
    "datasets": DatasetEntry,
    "loggers": LoggerEntry,
}
_NEEDS = {
    "nothing": "nothing of the teacher",
    "logits": "the teacher's logits",
    "layers": "the teacher's inner layers",
    "blocks": "the teacher's last blocks",
}


def add_commands(commands: Any) -> None:
    """Add `options` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "options",
        help="list methods, model families, kinds of data and loggers, or the options of one",
        description="List what the sections of params.yaml can name: methods, model families, "
        "kinds of data and loggers, installed ones included. With a section and a name, describe "
        "the options of one, also of your own ./file.py:Name.",
    )
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="one section alone")
    parser.add_argument("name", nargs="?", help="such as fitnet, or your own ./file.py:Name")
    parser.set_defaults(run=show_options)


def show_options(given: argparse.Namespace) -> None:
    """Print the parts of one or all sections, or the options of one part."""
    if given.name is not None:
        print("\n".join(_one(given.section, given.name)))
        return
    sections = SECTIONS if given.section is None else (given.section,)
    print("\n\n".join("\n".join(_all(section)) for section in sections))


def _all(section: str) -> Iterator[str]:
    kind = SECTIONS[section]
    yield f"{section} ({_NAMED[section]}):"
    for name in registry.names(kind):
        try:
            text = _summary(registry.find(kind, name, section))
        except KdstepsError as error:  # of a package that is installed
            text = f"cannot be used: {error}"
        yield fill(f"{name:<20}{text}", 94, initial_indent="  ", subsequent_indent=" " * 22)
    yield f"options of one: kdsteps options {section} NAME"


def _one(section: str, name: str) -> Iterator[str]:
    kind = SECTIONS[section]
    part = registry.find(kind, name, section)
    yield ": ".join(filter(None, (f"{NOUNS[kind]} {name}", _summary(part))))
    if kind == "methods":
        yield f"needs {_NEEDS[part.wants or 'nothing']}, and {_labels(part)}"
    entry = f"an entry of the section `{section}` in params.yaml"
    if options := part.json_schema.get("properties", {}):
        yield f"options of {name}, keys of {entry}, with their defaults:"
        yield from key_lines(options)
    yield f"keys of {entry}, whatever it names:"
    yield from key_lines(_ENTRIES[section].model_json_schema()["properties"])


def _labels(part: registry.Part) -> str:
    claim = part.described.needs_labels
    if isinstance(claim, bool):
        return "labels" if claim else "no labels"
    without = ", ".join(f"{name}: {json.dumps(value)}" for name, value in claim.items())
    return f"labels, unless {without}"


def _summary(part: registry.Part) -> str:
    return " ".join(part.json_schema.get("description", "").split())
