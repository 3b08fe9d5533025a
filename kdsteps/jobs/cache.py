"""Results made before, found again by what they depend on: the job cache.

Going back to an old value gives the old result without training. A result is known by the stage,
the settings, the code behind it, the libraries' versions and the contents of its inputs and of a
checkpoint that its settings name, so it can never be another's. What is kept are copies: the folder
may be deleted at any time, and then the work is done again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import all_or_none, atomic

_log = logging.getLogger("kdsteps")

# Small files that took long to make; images, features and cached logits are large and soon remade.
_REMEMBERED = frozenset({"train", "score", "build", "distil", "evaluate"})


@contextmanager
def remembered(
    stage: str,
    settings: Mapping[str, Any],
    code: str | None,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Path],
) -> Iterator[bool]:
    """Whether the outputs of a job are in their places already; if not, the block makes them.

    What the block makes is kept when it ends well. Without a digest of the code nothing is known.
    """
    if code is None or stage not in _REMEMBERED:
        yield False
        return
    key = _key(stage, settings, code, inputs)
    place = job_cache() / key[:2] / key
    if _recall(place, outputs):
        _log.info("taken from %s: made before with the same settings, code and inputs", job_cache())
        yield True
        return
    yield False
    _keep(place, outputs)


def job_cache() -> Path:
    """The folder of the job cache: KDSTEPS_JOB_CACHE, or .jobcache where the study lies.

    A temporary clone that `dvc exp run --temp` made inside a study shares the study's own.
    """
    if given := os.environ.get("KDSTEPS_JOB_CACHE"):
        return Path(given)
    here = Path.cwd()
    for parent in here.parents:
        if parent.name == ".dvc" and here.is_relative_to(parent / "tmp" / "exps"):
            return parent.parent / ".jobcache"
    return Path(".jobcache")


def _recall(place: Path, outputs: Mapping[str, Path]) -> bool:
    kept = {name: place / name for name in outputs}
    if not all(file.is_file() for file in kept.values()):
        return False
    with all_or_none(outputs) as drafts:
        for name, draft in drafts.items():
            _copy(kept[name], draft)
    return True


def _keep(place: Path, outputs: Mapping[str, Path]) -> None:
    """Remember the outputs of a job; where that is impossible, say so and go on."""
    fresh = place.with_name(f"{uuid.uuid4().hex}.part")
    try:
        fresh.mkdir(parents=True)
        for name, path in outputs.items():
            _copy(path, fresh / name)
        if not place.exists():
            os.replace(fresh, place)
    except (OSError, KdstepsError) as error:
        _log.warning("%s: the result is not remembered there (%s)", job_cache(), error)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _key(stage: str, settings: Mapping[str, Any], code: str, inputs: Mapping[str, Any]) -> str:
    """All that a job's result depends on, as one name; inputs are paths or lists of paths."""
    contents = {name: [_digest(path) for path in _paths(given)] for name, given in inputs.items()}
    named = [_digest(path) for path in _checkpoints(settings) if path.is_file()]
    libraries = [version(name) for name in ("torch", "torchvision", "timm")]
    said = json.dumps([stage, settings, code, contents, named, libraries], sort_keys=True)
    return blake2b(said.encode(), digest_size=20).hexdigest()


def _checkpoints(settings: Any) -> list[Path]:
    """Files of weights that settings name: they are read, although no other job writes them."""
    if not isinstance(settings, Mapping):
        return []
    own = settings.get("checkpoint")
    inner = [path for value in settings.values() for path in _checkpoints(value)]
    return [Path(own), *inner] if isinstance(own, str) else inner


def _paths(given: Any) -> Iterable[Path]:
    return [Path(path) for path in given] if isinstance(given, list) else [Path(given)]


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=20)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    with atomic(target) as part:
        shutil.copyfile(source, part)
