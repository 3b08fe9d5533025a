"""Entries of params.yaml with the defaults of the parts that they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os.path import expanduser
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import ValidationError

from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.entries import LoggerEntry, MethodEntry, ModelEntry
from kdsteps.study.loggers import LoggerSettings, check_installed
from kdsteps.study.messages import settings_error
from kdsteps.study.part_options import FILLED_IN
from kdsteps.study.settings import Model, Options
from kdsteps.study.study import Method

ModelT = TypeVar("ModelT", bound=BaseModel)

WEIGHTS = ("checkpoint", "checkpoint_key", "checkpoint_prefix")
"""Keys of a model that are passed on with the options of its family."""


def resolve_model(entry: ModelEntry, where: str) -> Model:
    """The network of an entry of `models`, with the defaults of its family."""
    for name in FILLED_IN["models"]:
        if name in (entry.model_extra or {}):
            raise KdstepsError(f"{where}.{name} follows from the data set; leave it out")
    _, options = part_of("models", entry.family, entry, where, "family")
    options |= {name: value for name in WEIGHTS if (value := getattr(entry, name)) is not None}
    if entry.checkpoint is not None:
        options["checkpoint"] = expanduser(entry.checkpoint)
    by_default = "pretrained" if options.get("pretrained") else None
    if problem := entry.problem():
        raise KdstepsError(f"{where}.{problem}")
    size = entry.image_size
    return Model.model_construct(
        family=entry.family,
        options=options,
        normalize=None if entry.normalize == "dataset" else entry.normalize or by_default,
        image_size=(size, size) if isinstance(size, int) else size,
        interpolation=entry.interpolation,
        classes=entry.classes,
    )


def resolve_method(name: str, entry: MethodEntry, where: str) -> Method:
    """The method of an entry of `methods`, with its defaults."""
    method = entry.method or name
    key = None if entry.method is None else "method"
    part, options = part_of("methods", method, entry, where, key)
    assert part.wants is not None, "every method declares what it wants"
    return Method(
        *(method, options, part.wants, part.plan),
        *(part.needs_one_class(options), part.compares_images(options)),
        *(part.needs_classifier(options), part.needs_labels(options), part.deploys_blocks),
        part.described.lengths,
        *(entry.distil, entry.build),
    )


def resolve_logger(name: str, entry: LoggerEntry, where: str) -> LoggerSettings:
    """The logger of an entry of `loggers`, with its defaults."""
    logger = entry.logger or name
    key = None if entry.logger is None else "logger"
    _, options = part_of("loggers", logger, entry, where, key)
    check_installed(logger, where)
    return LoggerSettings(name=name, logger=logger, options=options)


def parse(model: type[ModelT], content: Any, where: str, others: Sequence[str] = ()) -> ModelT:
    """`content` as a settings model, or one sentence about what is wrong with it and where.

    Args:
        others: Keys that are allowed in addition to those of the model, for suggestions.
    """
    try:  # as JSON, where lists pass for tuples although types are strict
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise settings_error(
            error, content, where, lambda path: _fields(model, path, others)
        ) from error


def part_of(
    kind: registry.Kind, reference: str, entry: BaseModel, where: str, key: str | None
) -> tuple[registry.Part, Options]:
    """A part and its options with defaults; `key` is the key of the entry that names it."""
    part = registry.find(kind, reference, f"{where}.{key}" if key else where)
    return part, part.parse(entry.model_extra or {}, where, list(type(entry).model_fields))


def _fields(
    model: type[BaseModel], path: Sequence[str], others: Sequence[str]
) -> dict[str, str | None]:
    """The keys of a settings model at a path of settings with their descriptions.

    Args:
        others: Keys that are allowed in addition to those of the model.
    """
    kind: type[BaseModel] | None = model
    for part in path:
        if kind is not None and part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation)
    found: dict[str, str | None] = dict.fromkeys([] if path else others)
    if kind is not None:
        found = {name: info.description for name, info in kind.model_fields.items()} | found
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model in an annotation such as `Distil | None` or `dict[Name, Pair]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((kind for kind in inner if kind is not None), None)
