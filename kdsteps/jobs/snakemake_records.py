"""Snakemake's own files in a study's folder, called where a workflow begins.

Snakemake decides from its records which jobs run: `params` (the settings and the digest of the
code), the list of inputs with their checksums, and the text of the rule's command (`code`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import replace_by_copy
from kdsteps.jobs.provenance import is_provenance

RECORDS = Path(".snakemake/metadata")
_INCOMPLETE = Path(".snakemake/incomplete")
_FORMAT = 6  # of the records of Snakemake 9
_LONGEST = 255  # bytes of a file's name, where the file system does not say


def check_records(results: str | Path = "results") -> None:
    """Refuse results without any record, and make records safe to rewrite in place.

    The folder results/report is left out, since some of its files are in git.

    Raises:
        KdstepsError: There are results, but no record of how they were made.
    """
    _own_files(RECORDS)
    if next(_files(RECORDS), None) or next(_files(_INCOMPLETE), None):
        return
    if os.environ.get("KDSTEPS_TRUST_RESULTS") == "1":
        return
    unknown = None
    for found in _files(Path(results), skip=("report", "settings")):
        if is_provenance(found):
            return
        unknown = unknown or found
    if unknown is not None:
        raise KdstepsError(
            f"{results}: has {unknown} but no records of how it was made; run `dvc checkout` or "
            f"`dvc pull`, or move {results} away (or set KDSTEPS_TRUST_RESULTS=1 to treat all as "
            "up to date)"
        )


def read_record(output: str) -> Mapping[str, Any] | None:
    """Snakemake's record of a file; None if there is none that can be read."""
    try:
        with open(_record_path(RECORDS, output), "rb") as file:
            content = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_records(
    outputs: Sequence[str],
    rule: str,
    params: Sequence[str],
    inputs: Sequence[str],
    compared: Mapping[str, str],
    times: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Record files as made by a job, where their records do not say so already.

    The text of the rule's command is left open, which Snakemake takes as unchanged.

    Args:
        params: The job's settings and the digest of its code; empty: unknown, so that it reruns.
        inputs: Every file that it read.
        compared: The digests of those whose content counts, by path.
        times: When it began and ended, in seconds since 1970.
    """
    content: dict[str, Any] = {
        "params": sorted(map(repr, params)),
        "input": sorted(inputs),
        "made_from": _made_from(compared),  # for this function; Snakemake ignores it
    }
    stale = [
        output
        for output in outputs
        if (known := read_record(output)) is None
        or any(known.get(key) != value for key, value in content.items())
    ]
    if not stale:
        return
    content |= {
        "rule": rule,
        "log": [],
        "shellcmd": None,
        "code": None,
        "record_format_version": _FORMAT,
        "incomplete": False,
        "starttime": times[0],
        "endtime": times[1],
        "input_checksums": {path: checksum(path) for path in compared if os.path.isfile(path)},
    }
    text = json.dumps(content)
    for output in stale:
        path = Path(_record_path(RECORDS, output))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{os.getpid()}.part")  # the name may be as long as names can be
        part.write_text(text)
        os.replace(part, path)


def _made_from(compared: Mapping[str, str]) -> str:
    """A digest of the digests of inputs; "" while one is missing, so that it is recorded later."""
    if not all(map(os.path.isfile, compared)):
        return ""
    text = json.dumps(dict(compared), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_incomplete(output: str) -> bool:
    """Whether a job was stopped while it wrote a file."""
    return os.path.exists(_record_path(_INCOMPLETE, output))


def checksum(path: str | Path) -> str:
    """The content of a file, in the form that Snakemake records it."""
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def use_this_python() -> None:
    """Let `python` in a rule be the one that runs the workflow, in an active environment or not."""
    folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", "").split(os.pathsep)
    if paths[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, *paths])


def _record_path(folder: Path, output: str) -> str:
    """Where Snakemake keeps the record of a file: named by the path, in pieces if that is long."""
    longest = _longest_name(os.path.join(os.getcwd(), folder))
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[at : at + longest - 1] for at in range(0, len(name), longest - 1)]
    return os.path.join(folder, *(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


@cache
def _longest_name(folder: str) -> int:
    with suppress(OSError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX") or _LONGEST
    return _LONGEST


def _own_files(folder: Path) -> None:
    """Replace links into DVC's cache, and files of others, since Snakemake rewrites records."""
    for file in _files(folder):
        if file.is_symlink() or file.stat().st_nlink > 1 or not os.access(file, os.W_OK):
            replace_by_copy(file)


def _files(folder: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    """The finished files below a folder, outside its subfolders `skip`."""
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in skip]
        for name in names:
            if not name.endswith(".part") and name != ".gitignore":
                yield Path(place, name)
