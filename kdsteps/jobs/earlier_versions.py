"""What earlier versions wrote differently: records, settings in other terms, files in another form.

Settings are translated for `kdsteps stale` and `kdsteps accept` only: what a job is made with never
is.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import digest_if_any
from kdsteps.jobs.accepted import read_accepted
from kdsteps.jobs.counting import INPUTS
from kdsteps.jobs.graph import JobNode
from kdsteps.jobs.provenance import Provenance, provenance_of_job
from kdsteps.jobs.snakemake_records import checksum, is_incomplete, read_record

Section = Mapping[str, Any]

NO_LONGER_RECORDED: dict[str, Callable[[Section], bool]] = {
    # Since 9ae8822 a job's settings have only what its own recipe reads.
    "milestones": lambda recorded: recorded.get("schedule") != "steps",
    "decay": lambda recorded: recorded.get("schedule") != "steps",
    "momentum": lambda recorded: recorded.get("optimizer") != "sgd",
    "nesterov": lambda recorded: recorded.get("optimizer") != "sgd",
    # Latency is measured by a separate job.
    "latency_runs": lambda recorded: True,
}
"""Keys that an earlier version recorded, and where they decided nothing."""


def adopt_records(node: JobNode, outputs: Mapping[str, str]) -> Provenance | None:
    """Write down what a result was made from if only Snakemake's records say so, as until a0996fa.

    Returns:
        What was written; None if there are no such records.
    """
    there = {name: path for name, path in outputs.items() if os.path.isfile(path)}
    paths, lacking = list(there.values()), outputs.keys() - there.keys()
    records = [read_record(path) or {} for path in paths]
    found = {_settings_and_code(record) for record in records}
    if lacking - {"digest"} or len(found) != 1 or any(map(is_incomplete, paths)):
        return None
    ((settings, code),) = found
    if settings is None or code is None or not _carry(paths, json.loads(settings)):
        return None
    text = json.dumps(json.loads(settings), sort_keys=True)
    started, ended = (float(records[0].get(name) or 0) for name in ("starttime", "endtime"))
    read = _digests_of_inputs(records[0], node)
    known = provenance_of_job(node.rule, text, code, read, there, started, ended)
    known.write(outputs)
    return known


def _carry(paths: Iterable[str], settings: Any) -> bool:
    """Whether files are those that a record is about: made with its settings, or accepted."""
    accepted = read_accepted()
    if any(path in accepted for path in paths):
        return True
    carried = [found for path in paths if (found := carried_settings(Path(path)))]
    return all(as_today(found, settings) == settings for found in carried)


def carried_settings(path: Path) -> Any:
    """The settings that a result file carries; None if files of its kind carry none."""
    from kdsteps.files.checkpoints import read_checkpoint_header
    from kdsteps.files.tables import table_metadata
    from kdsteps.files.text import read_json

    with suppress(KdstepsError, KeyError):
        if path.suffix == ".json":
            return read_json(path).get("settings")
        if path.suffix == ".parquet":
            return table_metadata(path)["settings"]
        if path.suffix == ".safetensors":
            return read_checkpoint_header(path)["settings"]
    return None


def _settings_and_code(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    settings = code = None
    for text in record.get("params") or []:
        with suppress(ValueError, SyntaxError, TypeError):
            value = ast.literal_eval(text)
            if isinstance(value, str) and value.startswith("{"):
                settings = value
            elif isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value):
                code = value
    return settings, code


def _digests_of_inputs(record: Mapping[str, Any], node: JobNode) -> dict[str, str]:
    """The digest of each input; "changed" for one that is no longer what was read."""
    known = record.get("input_checksums") or {}
    listed = set(record.get("input") or [])
    return {
        path: "changed" if known.get(path, now) != now else digest_if_any(path)
        for path in sorted(node.watched if listed == node.read else listed)
        if (now := checksum(path) if os.path.isfile(path) else "")
    }


def as_today(recorded: Any, wanted: Any) -> Any:
    """Recorded settings in today's terms; they equal `wanted` if they mean the same.

    Args:
        recorded: The settings, or a section of them, as an earlier version wrote them.
        wanted: The same as today's version writes them.
    """
    if not (isinstance(recorded, dict) and isinstance(wanted, dict)):
        return recorded
    found = {
        key: as_today(value, wanted.get(key))
        for key, value in recorded.items()
        if key in wanted or not _decided_nothing(key, recorded)
    }
    for key, value in wanted.items():  # options that came later and are not set, and digests
        if key not in recorded and (value is None or key in INPUTS):
            found[key] = value
    if _same_milestones(recorded, wanted):
        found["milestones"] = wanted["milestones"]
    if _same_warm_up(recorded, wanted):
        options = dict(found["options"])
        del options["warmup_epochs"]
        found["options"] = options | {"warmup": wanted["options"]["warmup"]}
    return found


def is_outdated(rule: str, files: Iterable[str]) -> bool:
    """Whether a result is in a form that today's code does not read.

    Plans of 9ae8822 named the shapes of features differently.
    """
    return rule == "build" and any("student_features" not in Path(f).read_text() for f in files)


def _decided_nothing(key: str, recorded: Section) -> bool:
    return key in NO_LONGER_RECORDED and NO_LONGER_RECORDED[key](recorded)


def _same_milestones(recorded: Section, wanted: Section) -> bool:
    """Whether milestones in epochs (9ae8822) are those in fractions of the run (since then)."""
    before, now = recorded.get("milestones"), wanted.get("milestones")
    if not before or not now or recorded.get("epochs") != wanted.get("epochs"):
        return False
    if recorded.get("schedule") == wanted.get("schedule") != "steps":
        return True
    return len(before) == len(now) and all(
        _same_time(epochs, at, wanted["epochs"]) for epochs, at in zip(before, now, strict=True)
    )


def _same_warm_up(recorded: Section, wanted: Section) -> bool:
    """Whether a method's warm-up in epochs (9ae8822) is that in a fraction of the run."""
    before, now = recorded.get("options"), wanted.get("options")
    if not isinstance(before, dict) or not isinstance(now, dict) or "distil" not in wanted:
        return False
    if "warmup_epochs" not in before or "warmup" not in now:
        return False
    return _same_time(before["warmup_epochs"], now["warmup"], wanted["distil"]["epochs"])


def _same_time(epochs: float, at: float, run: int) -> bool:
    """Whether a number of epochs is the time `at`, a fraction of the run or a number of epochs."""
    return abs(epochs - (at * run if at < 1 else at)) < 1e-6
