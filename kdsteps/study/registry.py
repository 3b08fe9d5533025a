"""Parts: methods, model families, kinds of data, metrics and loggers that params.yaml can name.

A name is one that ships with kdsteps, or `./file.py:Name` next to params.yaml, or
`package.module:Name`, or an entry point of an installed package (groups `kdsteps.methods`,
`kdsteps.models`, `kdsteps.data`, `kdsteps.metrics`, `kdsteps.loggers`). Planning reads descriptions
(`find`), stages import the code itself (`load`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic_core import SchemaValidator, ValidationError, to_jsonable_python

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study.messages import settings_error
from kdsteps.study.part_cache import description, problems
from kdsteps.study.part_imports import NOUNS, PACKAGE, Kind, installed, load, location, shipped
from kdsteps.study.part_options import Description

__all__ = [
    "Kind",
    "Part",
    "check_options",
    "find",
    "load",
    "module",
    "names",
    "published_pairs",
    "target",
]


@dataclass(frozen=True)
class Part:
    """One part, and its options as params.yaml can set them.

    Attributes:
        kind: methods, models, data, metrics or loggers.
        reference: As params.yaml names it.
        described: What planning knows about it.
    """

    kind: Kind
    reference: str
    described: Description

    @property
    def target(self) -> str:
        """Where it is defined: `module:Name`, or `./file.py:Name` in the folder of the study."""
        return self.described.target

    @property
    def wants(self) -> str | None:
        """What a method needs from the teacher."""
        return self.described.wants

    @property
    def plan(self) -> str | None:
        """Which plan the stage `build` makes for a method, if any."""
        return self.described.plan

    @property
    def deploys_blocks(self) -> bool:
        """Whether a method deploys blocks of the teacher too, in a network of its own family."""
        return self.reference in names("models")

    def needs_one_class(self, options: Mapping[str, Any]) -> bool:
        """Whether a method with these options is defined only for images of one class."""
        return _holds(self.described.one_class, options)

    def compares_images(self, options: Mapping[str, Any]) -> bool:
        """Whether a method with these options cannot compute a batch in parts."""
        return _holds(self.described.compares_images, options)

    def needs_classifier(self, options: Mapping[str, Any]) -> bool:
        """Whether a method with these options needs the teacher's classifier, as for its logits."""
        weight = options.get("kd_weight")  # of a loss on logits in addition to one on features
        adds_logits = isinstance(weight, int | float) and weight > 0
        return self.wants in ("logits", "blocks") or adds_logits or self.deploys_blocks

    def needs_labels(self, options: Mapping[str, Any]) -> bool:
        """Whether a method with these options needs labels."""
        claim = self.described.needs_labels
        if isinstance(claim, bool):
            return claim
        return any(options.get(name) != value for name, value in claim.items())

    @property
    def json_schema(self) -> dict[str, Any]:
        """The options as a JSON schema of type object."""
        return self.described.json_schema

    def parse(
        self, options: Mapping[str, Any], where: str, others: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The options with defaults filled in, as plain JSON values.

        Args:
            options: As in params.yaml.
            where: What the sentence of an error begins with.
            others: Other allowed keys of the entry, for suggestions.

        Raises:
            KdstepsError: An option is unknown, missing, or of another type than it should be.
        """
        for name, problem in self.described.refused.items():
            if name in options:
                raise KdstepsError(f"{where}.{name} {problem}")
        try:
            text = json.dumps(dict(options), default=str)
        except ValueError as error:
            raise KdstepsError(
                f"{where}: an entry contains itself; write it out instead"
            ) from error
        try:  # as JSON: lists serve as tuples there although types are strict
            found = self._validator.validate_json(text, strict=True)
        except ValidationError as error:
            keys = self.described.wanted | dict.fromkeys(others)
            raise settings_error(
                error, options, where, lambda path: {} if path else keys
            ) from error
        plain: dict[str, Any] = to_jsonable_python(found)
        return plain

    @cached_property
    def _validator(self) -> SchemaValidator:
        return SchemaValidator(self.described.core_schema)


def _holds(claim: bool | Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether a claim about a method, True, False or {option: value}, holds with these options.

    An option that is a list has all of its values.
    """
    if isinstance(claim, bool):
        return claim
    return any(
        value == option or (isinstance(option, list) and value in option)
        for option, value in ((options.get(name), value) for name, value in claim.items())
    )


def check_options(asked: Mapping[str, tuple[Kind, str, Mapping[str, Any]]]) -> None:
    """Check options that `Part.parse` returned, as far as their types cannot.

    Args:
        asked: Kind and name of a part, and its options, by where the sentence of an error begins.

    Raises:
        KdstepsError: Options contradict each other, or a library does not have them.
    """
    checked = {
        where: (kind, reference, options)
        for where, (kind, reference, options) in asked.items()
        if find(kind, reference, where).described.is_checked
    }
    for where, problem in zip(checked, problems(list(checked.values())), strict=True):
        if problem is not None:
            raise KdstepsError(f"{where}.{problem}")


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """The parts of a kind that have a name: shipped ones and entry points."""
    return tuple(sorted({*shipped(kind), *installed(kind)}))


def find(kind: Kind, reference: Any, where: str) -> Part:
    """The part that a reference names.

    Args:
        reference: As found in params.yaml.
        where: What the sentence of an error begins with.

    Raises:
        KdstepsError: There is no such part, or its code cannot be used.
    """
    if not isinstance(reference, str):
        near = nearest(str(reference), names(kind))
        raise KdstepsError(f"{where}: there is no {NOUNS[kind]} {reference!r}{near}")
    try:
        return _find(kind, reference, str(Path.cwd()))
    except KdstepsError as error:
        raise KdstepsError(f"{where}: {error}") from error


@cache
def _find(kind: Kind, reference: str, folder: str) -> Part:
    location(kind, reference)  # an unknown name costs no import
    return Part(kind, reference, description(kind, reference))


def target(kind: Kind, reference: str) -> str:
    """Where a part is defined: `module:Name`, or `./file.py:Name` in the folder of the study."""
    place = location(kind, reference)
    return place if ":" in place else find(kind, reference, kind).target


def module(kind: Kind, reference: str) -> str:
    """The module or the file that defines a part: its target without the name."""
    return target(kind, reference).rpartition(":")[0]


@cache
def published_pairs() -> tuple[str, ...]:
    """The pairs whose published accuracies come with kdsteps."""
    with (PACKAGE / "report" / "published.csv").open(newline="") as file:
        return tuple(dict.fromkeys(row["pair"] for row in csv.DictReader(file)))
