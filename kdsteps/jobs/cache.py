"""The job cache: results of earlier jobs, found by everything they depend on.

Going back to old settings restores the old result without training. A result is found by its stage,
settings, code, library versions and the contents of its inputs and of a checkpoint that its
settings name, so it cannot be confused with another. The cache has copies, each checked against its
digest before it is used; the folder may be deleted at any time, at the cost of computing again.
Several processes and several studies may use it together: results are added atomically.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import all_or_none, atomic
from kdsteps.files.digests import file_digest
from kdsteps.jobs.outputs import flat
from kdsteps.places import study_folder

_log = logging.getLogger("kdsteps")

NOT_CACHED = frozenset({"prepare", "cache", "cache_outputs", "evaluate_latency", "report"})
"""Rules whose results are not cached: images, features and logits are large and quickly made, and
what depends on the machine, such as latency, is measured every time."""

_LIBRARIES = ("torch", "torchvision", "timm")
_MORE_LIBRARIES = {"export": ("onnx", "onnxruntime", "onnxscript")}
"""Whose versions are in the key of every result, and in that of a rule's results."""
_CONTENTS = "contents.json"  # of an entry: its key, its stage, and a digest of each file
_ABANDONED = 24 * 3600  # seconds after which a half-written entry is taken for a killed job's


@contextmanager
def remembered(
    rule: str,
    settings: Mapping[str, Any],
    code: str | None,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Path],
    optional: Collection[str] = (),
) -> Iterator[bool]:
    """Copy a job's outputs from the cache, and yield whether that worked.

    If it did not, the block should make them, and they are cached when it ends without an error.
    Without a digest of the code, nothing is cached.

    Args:
        optional: Names of outputs that a job need not write.
    """
    if code is None or rule in NOT_CACHED:
        yield False
        return
    key = _key(rule, settings, code, inputs)
    entry = job_cache() / key[:2] / key
    if _restore(entry, outputs, optional):
        _log.info("restored from %s: same settings, code and inputs as before", job_cache())
        yield True
        return
    yield False
    made = {name: path for name, path in outputs.items() if name not in optional or path.exists()}
    _store(entry, rule, made)


def files_if_cached(
    rule: str,
    settings: Mapping[str, Any],
    code: str,
    inputs: Mapping[str, Any],
    digest_of: Callable[[str], str],
) -> dict[str, str] | None:
    """The digests of a result's files by their names; None if the cache does not have it.

    Args:
        inputs: Paths of files that need not exist, or lists of them, by name.
        digest_of: Returns the digest of one of them; "" where it is not known.
    """
    if rule in NOT_CACHED:
        return None
    contents = {
        name: [digest_of(path) for path in flat(inputs[name])] for name in _compared(inputs)
    }
    if not all(digest for digests in contents.values() for digest in digests):
        return None
    key = _key_of(rule, settings, code, contents)
    entry = _read_contents(job_cache() / key[:2] / key)
    return None if entry is None else dict(entry["files"])


def job_cache() -> Path:
    """The folder of the job cache: KDSTEPS_JOB_CACHE, or .jobcache in the study's folder."""
    if given := os.environ.get("KDSTEPS_JOB_CACHE"):
        return Path(given)
    return study_folder() / ".jobcache"


@dataclass(frozen=True)
class Cached:
    """One result in the cache.

    Attributes:
        folder: Of its files.
        stage: The one that made it; "unknown" if the entry does not say.
        size: Of its files in bytes.
        used: When it was last used, in seconds since 1970.
    """

    folder: Path
    stage: str
    size: int
    used: float


def cached_results() -> list[Cached]:
    """Every result in the cache, the least recently used first."""
    found = []
    for folder in job_cache().glob("[0-9a-f][0-9a-f]/*"):
        if folder.suffix == ".part":
            continue
        with suppress(OSError):  # another process may be deleting it
            files = [file.stat() for file in folder.iterdir()]
            contents = _read_contents(folder)
            stage = contents["stage"] if contents else "unknown"
            used = max((file.st_mtime for file in files), default=0.0)
            found.append(Cached(folder, stage, sum(file.st_size for file in files), used))
    return sorted(found, key=lambda result: result.used)


def shrink(limit: int) -> list[Cached]:
    """Delete the least recently used results until the others are within `limit` bytes.

    Incomplete entries of killed jobs are deleted as well.

    Returns:
        What was deleted.
    """
    for part in job_cache().glob("*/*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                _remove(part)
    results = cached_results()
    total, removed = sum(result.size for result in results), []
    for result in results:
        if total <= limit:
            break
        _remove(result.folder)
        if not result.folder.exists():  # otherwise it belongs to another user
            total -= result.size
            removed.append(result)
    return removed


def _restore(entry: Path, outputs: Mapping[str, Path], optional: Collection[str]) -> bool:
    """Copy the files of an entry to their paths, if it exists and is not damaged."""
    if not entry.is_dir():
        return False
    try:
        contents = _read_contents(entry)
        found = {} if contents is None else contents["files"]
        if not outputs.keys() - set(optional) <= found.keys() <= outputs.keys():
            raise ValueError("its list of files is missing, damaged or that of another entry")
        with all_or_none(outputs, optional) as drafts:
            for name, digest in found.items():
                if _copy(entry / name, drafts[name]) != digest:
                    raise ValueError(f"{name} is not what was cached")
    except (OSError, ValueError) as error:
        if entry.is_dir():  # otherwise another process has just deleted it
            _log.warning("%s: damaged (%s); computing the result again", entry, error)
            _remove(entry)
        return False
    with suppress(OSError):
        os.utime(entry / _CONTENTS)
    return True


def _store(entry: Path, stage: str, outputs: Mapping[str, Path]) -> None:
    """Cache the outputs of a job; if that is impossible, warn and continue."""
    fresh = entry.with_name(f"{uuid.uuid4().hex}.part")
    try:
        fresh.mkdir(parents=True)
        files = {name: _copy(path, fresh / name) for name, path in outputs.items()}
        with atomic(fresh / _CONTENTS) as part:
            part.write_text(json.dumps({"key": entry.name, "stage": stage, "files": files}))
        if not entry.exists():
            os.replace(fresh, entry)
    except (OSError, KdstepsError) as error:
        if not entry.is_dir():  # otherwise another process cached the same result first
            _log.warning("%s: the result is not cached (%s)", job_cache(), error)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete an entry atomically."""
    aside = folder.with_name(f"{uuid.uuid4().hex}.part")
    with suppress(OSError):  # another process deleted it first, or only its owner may
        os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _read_contents(entry: Path) -> dict[str, Any] | None:
    """The manifest of an entry; None if it cannot be read, or is that of another entry.

    Entries of earlier versions do not have their key.
    """
    try:
        contents = json.loads((entry / _CONTENTS).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(contents, dict) or not isinstance(contents.get("files"), dict):
        return None
    if contents.get("key", entry.name) != entry.name:
        return None
    return contents if isinstance(contents.get("stage"), str) else None


def _key(stage: str, settings: Mapping[str, Any], code: str, inputs: Mapping[str, Any]) -> str:
    """A digest of everything a job's result depends on; inputs are paths or lists of them.

    Prepared images may be many gigabytes: the digests next to them count instead, and
    whoever reads an image checks its hash.
    """
    contents = {
        name: [file_digest(Path(path)) for path in flat(inputs[name])] for name in _compared(inputs)
    }
    return _key_of(stage, settings, code, contents)


def _compared(inputs: Mapping[str, Any]) -> list[str]:
    """The names of the inputs whose contents count."""
    return sorted(inputs.keys() - ({"images"} if "images_digest" in inputs else set()))


def _key_of(
    stage: str, settings: Mapping[str, Any], code: str, contents: Mapping[str, list[str]]
) -> str:
    named = [file_digest(path) for path in _checkpoints(settings) if path.is_file()]
    libraries = [_version(name) for name in (*_LIBRARIES, *_MORE_LIBRARIES.get(stage, ()))]
    text = json.dumps([stage, settings, code, contents, named, libraries], sort_keys=True)
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _version(library: str) -> str:
    """The version of an installed library; "" if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _checkpoints(settings: Any) -> list[Path]:
    """Weight files that settings name: inputs that no other job writes."""
    if not isinstance(settings, Mapping):
        return []
    own = settings.get("checkpoint")
    inner = [path for value in settings.values() for path in _checkpoints(value)]
    return [Path(own), *inner] if isinstance(own, str) else inner


def _copy(source: Path, target: Path) -> str:
    """Copy a file, and return a digest of the copied bytes."""
    digest = blake2b(digest_size=20)
    with source.open("rb") as file, atomic(target) as part, part.open("wb") as copy:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()
