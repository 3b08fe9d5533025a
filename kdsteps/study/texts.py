"""Texts of params.yaml that become parts of paths, plots and pages."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from kdsteps.files.text import unprintable
from kdsteps.study.messages import MAX_NAME

_REPEATED = re.compile(r"((.+)\2{19,})$")  # Snakemake takes such a name for an endless loop


def _checked_name(text: str) -> str:
    if found := _REPEATED.search(text):
        raise ValueError(
            f"has the name {text!r}, which repeats {found[2]!r} 20 times or more; use another name"
        )
    return text


def _checked_text(text: str) -> str:
    if (character := unprintable(text)) is not None:
        raise ValueError(f"has the character {character!r}, which cannot be printed; delete it")
    return text


Name = Annotated[  # becomes part of paths
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=MAX_NAME),
    AfterValidator(_checked_name),
]
Text = Annotated[str, AfterValidator(_checked_text)]
Title = Annotated[str, Field(max_length=200), AfterValidator(_checked_text)]
