"""What each result was made from, in a small file next to it: `student.provenance.json`.

It has the job's settings, the digest of its code, and digests of the files that it read and wrote.
A job compares the files it reads with it, so that damaged, edited or foreign files are noticed; a
new run compares it with the study. Snakemake's own records are derived from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.damaged import forget_aside, is_marked, refused
from kdsteps.files.digests import digest_if_any, file_digest
from kdsteps.files.text import write_text
from kdsteps.jobs.outputs import covered, flat, optional_outputs

_ENDING = ".provenance.json"
_CHECKED_BY_IMAGE = "images.npy"  # each image is compared with its own digest when it is read


@dataclass(frozen=True)
class Provenance:
    """How a job's files came about.

    Attributes:
        rule: The rule of the job.
        settings: All that it read from params.yaml, as JSON text.
        code: The digest of the code behind it.
        inputs: The digest of each file that it read, by path; without files whose digests are in
            another of them.
        files: The digest of each file that it wrote, by name.
        sizes: Of these files, in bytes.
        started, ended: Seconds since 1970.
    """

    rule: str
    settings: str
    code: str
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    started: float
    ended: float

    @property
    def identity(self) -> str:
        """A digest of settings and code."""
        return identity(self.settings, self.code)

    def accepted_for(self, settings: str, code: str, inputs: Iterable[str]) -> Provenance:
        """The same files, accepted as what other settings and code would make of today's inputs."""
        found = {path: digest_if_any(path) or self.inputs.get(path, "") for path in inputs}
        return replace(self, settings=settings, code=code, inputs=found)

    def write(self, outputs: Mapping[str, str | Path]) -> None:
        """Write the file that belongs to a job's outputs."""
        content = asdict(self) | {"settings": json.loads(self.settings)}
        text = json.dumps({"digest": _seal(content)} | content, indent=1)
        write_text(provenance_file(outputs), text + "\n")


def identity(settings: str, code: str) -> str:
    """A digest of a job's settings, as JSON text, and of its code."""
    return blake2b(f"{code} {settings}".encode(), digest_size=8).hexdigest()


def provenance_file(outputs: Mapping[str, str | Path]) -> Path:
    """Where the provenance of a job's outputs is; the first of them names it."""
    stem, _ = os.path.splitext(next(iter(outputs.values())))
    return Path(stem + _ENDING)


def provenance_of_job(
    rule: str,
    settings: str,
    code: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str | Path],
    started: float,
    ended: float,
    digests: Mapping[str, str] | None = None,
) -> Provenance:
    """The provenance of files that were just written.

    Args:
        inputs: As `input_digests` returned them before the job read these files.
        outputs: Paths by name.
        digests: Of files whose digest is known, by their names.
    """
    files = {name: Path(path) for name, path in outputs.items()}
    known = digests or {}
    return Provenance(
        rule=rule,
        settings=settings,
        code=code,
        inputs=inputs,
        files={p.name: known.get(p.name) or file_digest(p) for p in files.values()},
        sizes={p.name: p.stat().st_size for p in files.values()},
        started=started,
        ended=ended,
    )


def input_digests(rule: str, inputs: Mapping[str, Any], root: Path | None = None) -> dict[str, str]:
    """The digest of each file that a job reads, by path; "" where one has disappeared.

    Files whose digests are in another of them are left out.

    Args:
        inputs: Paths, or lists of paths, by name.
        root: The folder in which the inputs have their paths; None: the study's folder.
    """
    skipped = covered(rule, inputs)
    watched = [
        path for name, given in inputs.items() if name not in skipped for path in flat(given)
    ]
    return {_within(root, path): digest_if_any(path) for path in sorted(watched)}


def _within(root: Path | None, path: str) -> str:
    return path if root is None else str(Path(path).relative_to(root))


def read_provenance(file: Path) -> Provenance | None:
    """What a provenance file says; None if it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
        if content.pop("digest") != _seal(content):
            return None
        return Provenance(**content | {"settings": json.dumps(content["settings"], sort_keys=True)})
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def provenance_of_file(path: Path) -> Provenance | None:
    """What a result was made from; None if there is no record of that."""
    for file in path.parent.glob(f"*{_ENDING}"):
        known = read_provenance(file)
        if known is not None and path.name in known.files:
            return known
    return None


def was_made_with(outputs: Mapping[str, str | Path], settings: str, code: str) -> bool:
    """Whether a result is there that was made with some settings and code."""
    known = read_provenance(provenance_file(outputs))
    return known is not None and (known.settings, known.code) == (settings, code)


def is_whole(path: Path, known: Provenance) -> bool:
    """Whether a file is what its job wrote; of large arrays of images, the size is compared."""
    if wrong_size(path, known):
        return False
    return path.name == _CHECKED_BY_IMAGE or file_digest(path) == known.files[path.name]


def check_input(path: Path, expected: str | None = None) -> None:
    """Compare a result with its provenance; a result without any is taken as it is.

    A file that was changed or damaged is marked, so that the next run makes it again.

    Args:
        expected: The `identity` that its job has in the study; None: unknown.

    Raises:
        KdstepsError: It is not what its job wrote, or was made with other settings or code.
    """
    found = provenance_of_file(path)
    if found is None:
        return
    if expected is not None and found.identity != expected:
        raise KdstepsError(
            f"{path}: was made with other settings or code than the study has now; run snakemake "
            "again"
        )
    if not is_whole(path, found):
        raise refused(path, "was damaged or changed after its job wrote it")


def lost_files(
    rule: str, outputs: Mapping[str, str | Path], known: Provenance, *, thorough: bool = False
) -> list[Path]:
    """Files that a job need not write, did write, and that are missing or changed now.

    Args:
        outputs: The files that it always writes.
        thorough: Whether the content is compared; otherwise the size.
    """
    return [
        path
        for path in optional_outputs(rule, outputs).values()
        if path.name in known.files
        and (
            not path.is_file()
            or wrong_size(path, known)
            or (thorough and not is_whole(path, known))
        )
    ]


def is_provenance(path: Path) -> bool:
    """Whether a file is one that says how others were made."""
    return path.name.endswith(_ENDING)


def wrong_size(path: str | Path, found: Provenance) -> bool:
    """Whether a file has another size than its job wrote."""
    return os.path.getsize(path) != found.sizes.get(os.path.basename(path), -1)


def is_damaged(path: Path, known: Provenance) -> bool:
    """Whether a file has another size than its job wrote, or a reader found it to be damaged.

    A mark is deleted if the file is whole again, such as after `dvc checkout`. A file that the job
    did not write counts as whole.
    """
    if path.name not in known.files:
        return False
    if wrong_size(path, known):
        return True
    if not is_marked(path):
        return False
    if file_digest(path) != known.files[path.name]:
        return True
    forget_aside([path])
    return False


def _seal(content: Mapping[str, Any]) -> str:
    """A digest of a provenance file's content."""
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
