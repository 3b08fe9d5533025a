"""Descriptions of parts, made by a process that imports them and cached in .kdsteps/parts.json.

Planning has to know the options of methods, networks and kinds of data without importing torch. A
description is valid while the files it was read from are unchanged: those of kdsteps for a part
that ships with it, the user's own for any other; and so is what was found out about its options:
what is wrong with them, and which layers a network has with them, while the files that options name
are unchanged as well. If the file is missing or damaged, everything is described again.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import digest_if_any, folder_digest
from kdsteps.files.home import expanded
from kdsteps.files.input_digests import content_hashes
from kdsteps.files.manifest import texts_in
from kdsteps.files.text import write_text
from kdsteps.places import study_folder
from kdsteps.study.joints import Outline
from kdsteps.study.part_imports import PACKAGE, Kind, shipped
from kdsteps.study.part_options import Description, describe

FILE = Path(".kdsteps/parts.json")  # in the study's folder

# without looking for garbage, nor taking torch apart at the end: that takes longer than the work
_PROGRAM = """
import gc, os, sys
gc.disable()
sys.path[:] = {path!r}
from kdsteps.study.part_options import main
main()
os._exit(0)
"""

Name = tuple[Kind, str]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Kind
    reference: str
    description: Description


class _Answer(BaseModel):
    """What was found out about a part with some options; the question is JSON text."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    reference: str
    question: str
    answer: Any


class _Content(BaseModel):
    """The content of the cache file: a digest of it and of the kdsteps that wrote it; entries."""

    model_config = ConfigDict(extra="forbid")
    made_with: str
    entries: list[_Entry]
    answers: list[_Answer] = []


@dataclass(frozen=True)
class _Known:
    """What is valid in a folder's cache, and what was added since it was read."""

    described: dict[Name, Description]
    answers: dict[tuple[Kind, str, str], Any]


def description(kind: Kind, reference: str) -> Description:
    """The description of a part, from the cache if it is valid there.

    Raises:
        KdstepsError: The part cannot be imported, or needs an option that YAML cannot express.
    """
    known = _known(str(Path.cwd()))
    if (kind, reference) not in known.described:
        if "torch" in sys.modules:  # a stage or a script: nothing is saved by another process
            known.described[kind, reference] = describe(kind, reference)
        else:
            _extend(known, (kind, reference))
    return known.described[kind, reference]


def problems(asked: Sequence[tuple[Kind, str, Mapping[str, Any]]]) -> list[str | None]:
    """What is wrong with options of parts (see `part_checks`), by another process.

    A process that has torch was planned already, so there nothing is checked.

    Raises:
        KdstepsError: A part's own function for this fails.
    """
    if "torch" in sys.modules:
        return [None] * len(asked)
    questions = [(kind, name, {"options": options}) for kind, name, options in asked]
    return _answers(questions)


def outlines(asked: Sequence[tuple[str, Mapping[str, Any], Sequence[int]]]) -> list[Outline | None]:
    """The layers of networks, by a process that builds them without weights.

    Args:
        asked: Family, options and the shape (C, H, W) of the images.

    Returns:
        None for a network that cannot be built for such images, or whose options are not enough to
        know it; what is wrong then is found when it is built.
    """
    if "torch" in sys.modules:  # as for descriptions
        networks = importlib.import_module("kdsteps.models.outline")
        found = [networks.outline(*question) for question in asked]
        return [None if names is None else Outline(**names) for names in found]
    return [None if found is None else Outline(**found) for found in _answers(_of(asked))]


def known_outlines(
    asked: Sequence[tuple[str, Mapping[str, Any], Sequence[int]]],
) -> list[Outline | None]:
    """As `outlines`, as far as the cache has them: nothing is built."""
    known = _known(str(Path.cwd()))
    found = [known.answers.get(key) for key in _keys(_of(asked))]
    return [None if answer is None else Outline(**answer) for answer in found]


def weights_problems(
    asked: Sequence[tuple[str, Mapping[str, Any], Sequence[int], Mapping[str, Any]]],
) -> list[str | None]:
    """What is wrong with weights from files for the sizes of networks, by a process as above.

    Args:
        asked: Family, options, the shape (C, H, W) of the images, and weights: the `path` of their
            file, its `digest`, and maybe `key` and `prefix` of the weights in it.

    Returns:
        None for weights that fit, or do not for another reason.
    """
    questions: list[_Question] = [
        ("models", family, {"options": options, "image_shape": list(shape), "weights": weights})
        for family, options, shape, weights in asked
    ]
    if "torch" in sys.modules:
        networks = importlib.import_module("kdsteps.models.outline")
        return [networks.weights_problem(family, **about) for _, family, about in questions]
    return _answers(questions)


_Question = tuple[Kind, str, Mapping[str, Any]]


def _of(asked: Sequence[tuple[str, Mapping[str, Any], Sequence[int]]]) -> list[_Question]:
    """The questions for the layers of networks."""
    return [
        ("models", family, {"options": options, "image_shape": list(shape)})
        for family, options, shape in asked
    ]


def _keys(questions: Sequence[_Question]) -> list[tuple[Kind, str, str]]:
    """What the answers to questions are stored under: as JSON, with files that options name."""
    return [
        (kind, name, json.dumps({**about, **_named_files(kind, name, about)}, sort_keys=True))
        for kind, name, about in questions
    ]


def _named_files(kind: Kind, name: str, about: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The hashes of the files that options of the user's own part name, if there are any."""
    if name in shipped(kind):
        return {}
    paths = {text: expanded(text) for text in texts_in(about["options"])}
    files = {text: str(path) for text, path in paths.items() if os.path.isfile(path)}
    found = {text: content_hashes({text: file}, Path(file))[text] for text, file in files.items()}
    return {"files": found} if found else {}


def _answers(questions: Sequence[_Question]) -> list[Any]:
    """What is known of parts with options; another process finds out what is not."""
    known = _known(str(Path.cwd()))
    keys = _keys(questions)
    by_key = dict(zip(keys, questions, strict=True))
    missing = {key: question for key, question in by_key.items() if key not in known.answers}
    if missing:
        for key, answer in zip(missing, _elsewhere(list(missing.values())), strict=True):
            if "error" in answer:
                raise KdstepsError(f"{key[0]}: {answer['error']}")
            known.answers[key] = answer["found"]
        _save(known)
    return [known.answers[key] for key in keys]


@cache
def _known(folder: str) -> _Known:
    """The valid entries of a folder's cache; later ones are added."""
    content = _read(study_folder() / FILE)
    if content is None or content.made_with != _seal(content.entries, content.answers):
        return _Known({}, {})
    described = {
        (entry.kind, entry.reference): entry.description
        for entry in content.entries
        if all(digest_if_any(p) == found for p, found in entry.description.files.items())
    }
    answers = {
        (found.kind, found.reference, found.question): found.answer
        for found in content.answers
        if (found.kind, found.reference) in described
    }
    return _Known(described, answers)


def _extend(known: _Known, asked: Name) -> None:
    """Describe a part, and all others of which the cache has no valid entry."""
    table = known.described
    content = _read(study_folder() / FILE)
    former = [(e.kind, e.reference) for e in content.entries] if content is not None else []
    every: list[Name] = [(kind, name) for kind in _KINDS for name in shipped(kind)]
    missing = [name for name in dict.fromkeys((*every, *former, asked)) if name not in table]
    answers = dict(zip(missing, _elsewhere(missing), strict=True))
    table |= {
        name: Description.model_validate(answer["found"])
        for name, answer in answers.items()
        if "found" in answer
    }
    if "error" in answers[asked]:
        raise KdstepsError(answers[asked]["error"])
    _save(known)


def _save(known: _Known) -> None:
    entries = [
        _Entry(kind=k, reference=r, description=found) for (k, r), found in known.described.items()
    ]
    answers = [
        _Answer(kind=k, reference=r, question=question, answer=answer)
        for (k, r, question), answer in known.answers.items()
    ]
    content = _Content(made_with=_seal(entries, answers), entries=entries, answers=answers)
    text = content.model_dump_json()
    with suppress(KdstepsError):  # a folder that cannot be written costs time, nothing else
        write_text(study_folder() / FILE, text)


_KINDS: tuple[Kind, ...] = ("methods", "models", "data")


def _elsewhere(lines: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What a process that imports the parts finds (see `part_options.main`).

    Args:
        lines: A part each, or a part and a question about it.

    Returns:
        For each line `found`, or an `error` in words.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM.format(path=[str(PACKAGE.parent), *sys.path])],
        input="".join(f"{json.dumps(line)}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(lines):
        kind, reference, *_ = lines[min(len(answers), len(lines) - 1)]
        raise KdstepsError(f"{kind}: importing {reference!r} ends the process: {_ending(done)}")
    return answers


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """The signal that ended a process, its last words, or its exit status."""
    if done.returncode == -signal.SIGKILL:
        return "it was killed; there may be too little memory"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _read(path: Path) -> _Content | None:
    """The content of a cache file; None if it is missing, damaged or of another format."""
    try:
        return _Content.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _seal(entries: Sequence[_Entry], answers: Sequence[_Answer]) -> str:
    """A digest of a cache's content and of the kdsteps that made it: damage is noticed."""
    text = "".join(each.model_dump_json() for each in (*entries, *answers))
    return blake2b(f"{_made_with()} {text}".encode(), digest_size=16).hexdigest()


@cache
def _made_with() -> str:
    """Everything that the descriptions of shipped parts depend on; takes milliseconds."""
    libraries = [version(name) for name in ("pydantic", "timm", "torchvision")]
    return f"{sys.version} {libraries} {folder_digest(PACKAGE)}"
