"""Digests of input files and folders: the MD5 hashes that DVC would compute for them.

So it makes no difference whether DVC tracks an input: if a `.dvc` file does, its hash is used and
nothing is read. Otherwise contents are read once, and again only if the size or times of a file
change. The hashes are saved in `.kdsteps/manifests`, a cache that may be deleted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import file_digest as hash_file
from hashlib import md5
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.files.walk import Walk

MANIFESTS = Path(".kdsteps/manifests")
_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within a clock tick
_READERS = 8  # threads

Entry = Sequence[str]
"""A file's state (size, times of content and inode in ns, inode) and the hash of its content."""


def file_digest(path: str | Path) -> str:
    """The MD5 hash of one file; "" if it does not exist and no `.dvc` file tracks it."""
    path = expanded(path)
    if (tracked := dvc_hash(path)) is not None:
        return tracked
    if not path.is_file():
        return ""
    return content_hashes({path.name: str(path)}, path)[path.name]


def folder_digest(path: str | Path, *, follow_links: bool = False) -> str:
    """The hash of a folder as DVC computes it, of the names and contents of all its files.

    Unlike for DVC, hidden files and what macOS and Windows leave in folders do not count.

    Returns:
        32 digits and `.dir`; "" if the folder does not exist and no `.dvc` file tracks it.

    Raises:
        KdstepsError: A folder cannot be read, or a link leads out of it.
    """
    path = expanded(path)
    if (tracked := dvc_hash(path)) is not None:
        return tracked
    if not path.is_dir():
        return ""
    return list_digest(content_hashes(files_below(path, follow_links=follow_links), path))


def files_below(folder: Path, *, follow_links: bool = False) -> dict[str, str]:
    """The files of a folder, by their path within it."""
    root = os.path.realpath(folder)
    (files,) = Walk(Path(root), follow_links).files([Path(root)])
    start = len(root.rstrip("/")) + 1
    return {file[start:]: file for file in files}


def list_digest(hashes: Mapping[str, str]) -> str:
    """The hash of a folder from those of its files, by their path within it."""
    listed = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"


def dvc_hash(path: Path) -> str | None:
    """The hash in a `.dvc` file of a path or of a folder above it; None: there is none."""
    found = _tracked(path)
    return None if found is None else found[1]


def dvc_file(path: Path) -> Path | None:
    """The `.dvc` file that has this hash."""
    found = _tracked(path)
    return None if found is None else found[0]


def _tracked(path: Path) -> tuple[Path, str] | None:
    path = Path(os.path.abspath(path))
    for place in (path, *path.parents[:-1]):
        file = place.with_name(f"{place.name}.dvc")
        if file.is_file() and (found := _output_hash(file, place)) is not None:
            inner = path.relative_to(place).as_posix()
            return file, found if inner == "." else f"{found}/{inner}"
        if (place / ".dvc").is_dir():  # the root of the repository
            return None
    return None


def content_hashes(files: Mapping[str, str], owner: Path) -> dict[str, str]:
    """The MD5 hash of each file; only new and changed ones are read. "" where a file is missing.

    Args:
        files: By name.
        owner: What the files belong to; it names the manifest.

    Raises:
        KdstepsError: A file cannot be read.
    """
    manifest = MANIFESTS / f"{_md5(os.path.realpath(owner))[:16]}.json"
    known, now = _read_manifest(manifest), time.time_ns()
    states = {name: state for name, file in files.items() if (state := _state(file)) is not None}
    changed = [name for name, state in states.items() if known.get(name, ("",))[0] != state]
    found = {name: known[name][1] for name in states.keys() - changed}
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = pool.map(lambda name: _hash(files[name]), changed)
        found |= zip(changed, hashes, strict=True)
    if changed or len(known) > len(states):
        settled = {
            name: [state, found[name]]
            for name, state in states.items()
            if max(map(int, state.split()[1:3])) < now - _SETTLED_NS
        }
        if settled != known:
            _write_manifest(manifest, settled)
    return {name: found.get(name, "") for name in files}


def combined(digests: Sequence[str]) -> str:
    """One digest for several; a single one is returned as it is."""
    return digests[0] if len(digests) == 1 else _md5("\n".join(digests))


def _output_hash(file: Path, place: Path) -> str | None:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        folder = file.parent / content.get("wdir", ".")
        for output in content["outs"]:
            if os.path.abspath(folder / output["path"]) == str(place):
                found = output.get("md5")
                return None if found is None else str(found)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        pass  # not a file of DVC's
    return None


def _state(file: str) -> str | None:
    """Size, times and inode of a file; None if it does not exist."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _hash(file: str) -> str:
    try:
        with open(file, "rb") as content:
            return hash_file(content, lambda: md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise KdstepsError(
            f"{file}: cannot be read ({error.strerror}); make it readable"
        ) from error


def _md5(text: str) -> str:
    return md5(os.fsencode(text), usedforsecurity=False).hexdigest()


def _read_manifest(path: Path) -> dict[str, Entry]:
    """The hashes of an earlier run; empty if there is no manifest or it is damaged."""
    try:
        check, _, text = path.read_text().partition("\n")
        found: dict[str, Entry] = json.loads(text) if check == _md5(text) else {}
    except (OSError, ValueError):
        return {}
    return found


def _write_manifest(path: Path, entries: Mapping[str, Entry]) -> None:
    text = json.dumps(entries)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with suppress(OSError):  # it is only a cache
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(f"{_md5(text)}\n{text}")
        os.replace(temporary, path)
