"""The section `loggers`: where the metrics of every training go while it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec

from pydantic import TypeAdapter

from kdsteps.errors import KdstepsError
from kdsteps.study.part_imports import shipped
from kdsteps.study.section import Section
from kdsteps.study.settings import Options


class LoggerSettings(Section):
    """One logger, with all its options.

    Attributes:
        name: Of its entry.
        logger: A shipped one, or a reference to the user's own code.
    """

    name: str
    logger: str
    options: Options


_SEVERAL = TypeAdapter(tuple[LoggerSettings, ...])


def as_text(loggers: Sequence[LoggerSettings]) -> str:
    """JSON text that `from_text` reads."""
    return json.dumps([settings.model_dump(mode="json") for settings in loggers])


def from_text(text: str) -> tuple[LoggerSettings, ...]:
    """The loggers that `as_text` wrote."""
    return _SEVERAL.validate_json(text)


def check_installed(name: str, where: str) -> None:
    """Raise KdstepsError for a shipped logger whose package is not installed.

    The module of a logger has the name of the package that it needs, and so has the extra of
    kdsteps that installs it.
    """
    if name in shipped("loggers") and find_spec(name) is None:
        raise KdstepsError(
            f"{where}: the package {name!r} is not installed; install kdsteps[{name}], or leave "
            "this logger out"
        )
