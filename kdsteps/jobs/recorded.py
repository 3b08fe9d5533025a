"""What is recorded about how a result was made: in Snakemake's records, and in the file itself.

Snakemake decides from its records which jobs run: `params` (the settings and the digest of the
code), the list of inputs with their checksums, and the text of the rule's command (`code`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs.snakemake_records import RECORDS

_FORMAT = 6  # of the records of Snakemake 9
_INCOMPLETE = Path(".snakemake/incomplete")


@dataclass(frozen=True)
class Record:
    """Snakemake's record of one file.

    Attributes:
        path: Of the record.
        content: All of it.
        settings: Of the job that wrote the file, as JSON text; None if the record has none.
        code: The digest of the code behind it; None if the record has none.
    """

    path: Path
    content: Mapping[str, Any]
    settings: str | None
    code: str | None

    @property
    def inputs(self) -> list[str]:
        return list(self.content.get("input") or [])

    @property
    def checksums(self) -> dict[str, str]:
        return dict(self.content.get("input_checksums") or {})

    def rewrite(
        self, settings: str, code: str, inputs: Sequence[str], renewed: Collection[str] = ()
    ) -> None:
        """Say that the file is what these settings, this code and these inputs make.

        Inputs in `renewed` were recomputed since and are recorded as they are now.

        The text of the rule's command is left open, which Snakemake takes as unchanged; the command
        that really ran stays in `shellcmd`.
        """
        known = (self.settings, self.code)
        others = [text for text in self.content["params"] if _value(text) not in known]
        found = [path for path in inputs if path in self.checksums or Path(path).is_file()]
        before = {path: known for path, known in self.checksums.items() if path not in renewed}
        checksums = {path: before.get(path) or checksum(path) for path in found}
        content = dict(self.content) | {
            "params": sorted([*others, repr(settings), repr(code)]),
            "input": sorted(inputs),
            "input_checksums": checksums,
            "code": None,
        }
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(content))
        os.replace(part, self.path)

    def copy_for(self, output: str) -> Record:
        """The same record for another file of the job; it is not written yet."""
        return replace(self, path=_record_path(RECORDS, output))


def record_of(output: str) -> Record | None:
    """Snakemake's record of a file; None if there is none that can be read."""
    path = _record_path(RECORDS, output)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    settings = code = None
    for text in content.get("params") or []:
        value = _value(text)
        if isinstance(value, str) and value.startswith("{"):
            settings = value
        elif isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value):
            code = value
    return Record(path, content, settings, code)


def new_record(output: str, rule: str) -> Record:
    """A record for a file that has none, not written yet."""
    now = time.time()
    content: dict[str, Any] = {
        "rule": rule,
        "input": [],
        "log": [],
        "params": [],
        "shellcmd": None,
        "code": None,
        "record_format_version": _FORMAT,
        "incomplete": False,
        "starttime": now,
        "endtime": now,
        "input_checksums": {},
    }
    return Record(_record_path(RECORDS, output), content, None, None)


def is_incomplete(output: str) -> bool:
    """Whether a job was stopped while it wrote a file."""
    return _record_path(_INCOMPLETE, output).exists()


def checksum(path: str | Path) -> str:
    """The content of a file, in the form that Snakemake records it."""
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def carried_settings(path: Path) -> Any:
    """The settings that a result file carries; None if files of its kind carry none."""
    from kdsteps.files.checkpoints import read_checkpoint_header
    from kdsteps.files.tables import table_metadata
    from kdsteps.files.text import read_json

    if path.suffix == ".json":
        return read_json(path).get("settings")
    if path.suffix == ".parquet":
        return table_metadata(path)["settings"]
    if path.suffix == ".safetensors":
        return read_checkpoint_header(path)["settings"]
    return None


def first_difference(found: Any, wanted: Any, place: str = "") -> tuple[str, str]:
    """The first value in which two settings differ, as `section.key: value` each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                inner = f"{place}.{key}" if place else key
                return first_difference(found.get(key), wanted.get(key), inner)
    name = place or "settings"
    return f"{name}: {json.dumps(found)}", f"{name}: {json.dumps(wanted)}"


def check_no_other_run() -> None:
    """Refuse to touch records while Snakemake runs in this folder.

    Raises:
        KdstepsError: It runs.
    """
    locks = Path(".snakemake/locks")
    if locks.is_dir() and any(locks.iterdir()):
        raise KdstepsError(
            f"{locks}: Snakemake is running in this folder, or was killed; wait until it ends, or "
            "run `snakemake --unlock`"
        )


def _value(text: str) -> Any:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return None


def _record_path(folder: Path, output: str) -> Path:
    """Where Snakemake keeps the record of a file: named by the path, in pieces if that is long."""
    longest = 255
    with suppress(OSError, ValueError):
        longest = os.pathconf(folder, "PC_NAME_MAX") or 255
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[at : at + longest - 1] for at in range(0, len(name), longest - 1)]
    return folder.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
