"""Descriptions of parts, made by a process that imports them and cached in .kdsteps/parts.json.

Planning has to know the options of methods, networks and kinds of data without importing torch. A
description is valid while the files it was read from are unchanged: those of kdsteps for a part
that ships with it, the user's own for any other. If the file is missing or damaged, everything is
described again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict, ValidationError

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import digest_if_any
from kdsteps.files.text import write_text
from kdsteps.study.part_imports import PACKAGE, Kind, shipped
from kdsteps.study.part_options import Description, describe

FILE = Path(".kdsteps/parts.json")  # in the study's folder

_PROGRAM = "import sys; sys.path[:] = {path!r}; from kdsteps.study.part_options import main; main()"

Name = tuple[Kind, str]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Kind
    reference: str
    description: Description


class _Content(BaseModel):
    """The content of the cache file: a digest of it and of the kdsteps that wrote it; entries."""

    model_config = ConfigDict(extra="forbid")
    made_with: str
    entries: list[_Entry]


def description(kind: Kind, reference: str) -> Description:
    """The description of a part, from the cache if it is valid there.

    Raises:
        KdstepsError: The part cannot be imported, or needs an option that YAML cannot express.
    """
    table = _table(str(Path.cwd()))
    if (kind, reference) not in table:
        if "torch" in sys.modules:  # a stage or a script: nothing is saved by another process
            table[kind, reference] = describe(kind, reference)
        else:
            _extend(table, (kind, reference))
    return table[kind, reference]


@cache
def _table(folder: str) -> dict[Name, Description]:
    """The valid entries of a folder's cache; later descriptions are added."""
    content = _read(Path(folder, FILE))
    if content is None or content.made_with != _seal(content.entries):
        return {}
    return {
        (entry.kind, entry.reference): entry.description
        for entry in content.entries
        if all(digest_if_any(p) == found for p, found in entry.description.files.items())
    }


def _extend(table: dict[Name, Description], asked: Name) -> None:
    """Describe a part, and all others of which the cache has no valid entry."""
    content = _read(FILE)
    former = [(e.kind, e.reference) for e in content.entries] if content is not None else []
    every: list[Name] = [(kind, name) for kind in _KINDS for name in shipped(kind)]
    missing = [name for name in dict.fromkeys((*every, *former, asked)) if name not in table]
    answers = dict(zip(missing, _described_elsewhere(missing), strict=True))
    table |= {name: found for name, found in answers.items() if isinstance(found, Description)}
    if isinstance(problem := answers[asked], str):
        raise KdstepsError(problem)
    entries = [_Entry(kind=k, reference=r, description=found) for (k, r), found in table.items()]
    text = _Content(made_with=_seal(entries), entries=entries).model_dump_json()
    with suppress(KdstepsError):  # a folder that cannot be written costs time, nothing else
        write_text(FILE, text)


_KINDS: tuple[Kind, ...] = ("methods", "models", "data")


def _described_elsewhere(names: Sequence[Name]) -> list[Description | str]:
    """A description of each part, or what is wrong with it, from a process that imports them."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM.format(path=[str(PACKAGE.parent), *sys.path])],
        input="".join(f"{json.dumps(name)}\n" for name in names),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(names):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        kind, reference = names[min(len(answers), len(names) - 1)]
        raise KdstepsError(f"{kind}: importing {reference!r} ends the process: {last[0]}")
    return [
        Description.model_validate(answer["found"]) if "found" in answer else answer["error"]
        for answer in answers
    ]


def _read(path: Path) -> _Content | None:
    """The content of a cache file; None if it is missing, damaged or of another format."""
    try:
        return _Content.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _seal(entries: Sequence[_Entry]) -> str:
    """A digest of some entries and of the kdsteps that made them: a damaged entry is not used."""
    text = "".join(entry.model_dump_json() for entry in entries)
    return blake2b(f"{_made_with()} {text}".encode(), digest_size=16).hexdigest()


@cache
def _made_with() -> str:
    """A digest of everything the descriptions of shipped parts depend on; takes milliseconds."""
    digest = blake2b(f"{sys.version} {pydantic.VERSION}".encode(), digest_size=16)
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(file.relative_to(PACKAGE)).encode() + file.read_bytes())
    return digest.hexdigest()
