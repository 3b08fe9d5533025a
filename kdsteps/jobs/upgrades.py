"""Find the stale results of a study, and accept those where only the code changed.

Reads Snakemake's records without running Snakemake, so it takes only a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from kdsteps.files.digests import digest_if_any, write_digests
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.accepted import (
    Entry,
    entry_for,
    read_accepted,
    settings_digest,
    text_digest,
    witness,
    write_accepted,
)
from kdsteps.jobs.earlier_versions import as_today, is_outdated
from kdsteps.jobs.recorded import (
    Record,
    carried_settings,
    check_no_other_run,
    checksum,
    first_difference,
    is_incomplete,
    new_record,
    record_of,
)
from kdsteps.study.study import Study

Reason = Literal["current", "code", "settings", "inputs", "missing", "unknown"]


@dataclass
class Status:
    """One job and what is known about its result.

    Attributes:
        rule, names: Which job it is.
        settings, code, inputs: What the job would be made with today.
        covered: Inputs whose digests are in another input.
        reason: Why its result is stale, or "current".
        why: The reason in words.
        follows: Rules whose results it reads and that are stale.
        records: Snakemake's, of each of its files.
    """

    rule: str
    names: graph.Names
    settings: str
    code: str
    inputs: list[str]
    covered: set[str]
    reason: Reason = "current"
    why: str = ""
    follows: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    @property
    def stale(self) -> bool:
        return self.reason != "current" or bool(self.follows)

    @property
    def outputs(self) -> list[str]:
        return list(graph.outputs(self.rule, self.names).values())

    @property
    def digest(self) -> str | None:
        """The file of digests next to its other files, if its rule has one."""
        return graph.outputs(self.rule, self.names).get("digest")

    @property
    def written(self) -> list[str]:
        """Its files, without a file of digests that an earlier version did not write."""
        lacking = self.digest is not None and not Path(self.digest).exists()
        return [path for path in self.outputs if not (lacking and path == self.digest)]


def statuses(study: Study) -> list[Status]:
    """Every job of a study, and whether its result is what the job would make today."""
    jobs = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
    found = [_status(study, rule, names) for rule, names in jobs]
    makers = {path: status for status in found for path in status.outputs}
    while True:
        before = sum(status.stale for status in found)
        for status in found:
            sources = (makers[path] for path in status.inputs if _is_watched(status, path, makers))
            status.follows = sorted({source.rule for source in sources if source.stale})
        if before == sum(status.stale for status in found):
            return found


def _is_watched(status: Status, path: str, makers: Mapping[str, Status]) -> bool:
    """Whether a change of an input reruns the job: a covered one only has to exist."""
    return path in makers and not (path in status.covered and Path(path).exists())


def _status(study: Study, rule: str, names: graph.Names) -> Status:
    node = graph.node(study, rule, names)
    status = Status(
        rule,
        names,
        settings=node.text,
        code=code_identity.code(study, rule, names),
        inputs=sorted(_flat(node.inputs)),
        covered=set(_flat({name: node.inputs[name] for name in node.covered & node.inputs.keys()})),
    )
    status.reason, status.why = _reason(status)
    return status


def _reason(status: Status) -> tuple[Reason, str]:
    for path in status.written:
        if not Path(path).is_file():
            return "missing", "missing"
        if is_incomplete(path):
            return "missing", "interrupted"
    records = [record_of(path) for path in status.written]
    status.records = [record for record in records if record is not None]
    if len(status.records) < len(records) or not all(
        record.settings and record.code for record in status.records
    ):
        return "unknown", "no record of how it was made"
    for record in status.records:
        if difference := _settings_changed(record, status.settings):
            return "settings", f"settings changed: {difference}"
    for record in status.records:
        if changed := _changed_input(record, status):
            return "inputs", f"an input changed: {changed}"
    return _code_reason(status)


def _code_reason(status: Status) -> tuple[Reason, str]:
    if any(record.code != status.code for record in status.records):
        return "code", "code changed"
    if any(record.settings != status.settings for record in status.records):
        return "code", "same settings, recorded in an earlier form"
    if any(sorted(record.inputs) != status.inputs for record in status.records):
        return "code", "the list of inputs changed"
    if status.written != status.outputs:
        return "code", "has no file of digests"
    return "current", ""


def _settings_changed(record: Record, wanted: str) -> str:
    """The first value that differs, in words; empty if the settings mean the same."""
    if record.settings == wanted:
        return ""
    assert record.settings is not None
    now = json.loads(wanted)
    before = as_today(json.loads(record.settings), now)
    if before == now:
        return ""
    was, is_ = first_difference(before, now)
    return f"made with {was}, but params.yaml has {is_}"


def _changed_input(record: Record, status: Status) -> str:
    """An input whose content is not what was read; empty if there is none.

    As in Snakemake, an input that is older than the result is not compared, nor one whose digest is
    in another input.
    """
    made = min(Path(path).stat().st_mtime for path in status.written)
    compared = set(status.inputs) - status.covered
    if sorted(record.inputs) != status.inputs:  # recorded before these digests were written
        compared |= record.checksums.keys() & status.covered
    for path in sorted(set(record.inputs) & set(status.inputs)):
        file = Path(path)
        newer = file.is_file() and file.stat().st_mtime > made
        if newer and path in compared and record.checksums.get(path) != checksum(path):
            return path
    return ""


@dataclass
class Acceptance:
    """The outcome of accepting.

    Attributes:
        taken: Jobs whose results are accepted.
        refused: Jobs that are not, which are stale for another reason than code.
        lacking: Jobs whose missing files only have to exist for other jobs, such as the check of a
            teacher, which an earlier version did not write.
    """

    taken: list[Status]
    refused: list[Status]
    lacking: list[Status]


def accept(
    study: Study, chosen: Callable[[Status], bool], make: Callable[[Status], None]
) -> Acceptance:
    """Accept results where only code changed, except the report.

    Args:
        chosen: Whether a job is selected.
        make: Runs a job here; for plans in a form that today's code does not read.

    Raises:
        KdstepsError: Snakemake is running.
    """
    check_no_other_run()
    entries = read_accepted()
    taken: list[Status] = []
    refused: list[Status] = []
    found = statuses(study)
    for status in found:
        if status.rule == "report" or status.reason == "current" or not chosen(status):
            continue
        acceptable = status.reason == "code" and _is_whole(status, entries)
        (taken if acceptable else refused).append(status)
    outdated = [status for status in taken if is_outdated(status.rule, status.outputs)]
    if taken:
        as_is = [status for status in taken if status not in outdated]
        write_accepted(entries | dict(_entry(status, entries) for status in as_is))
    for status in outdated:
        make(status)
    for status in taken:
        _add_digest(status)
    renewed = {path for status in outdated for path in status.outputs}
    for status in found:
        if status in taken or (status.reason == "current" and renewed & set(status.inputs)):
            rewrite_records(status, renewed)
    lacking = _lacking(refused, found)
    return Acceptance(taken, [each for each in refused if each not in lacking], lacking)


def rewrite_records(status: Status, renewed: Collection[str] = ()) -> None:
    """Record a job's files for Snakemake as made with today's settings, code and inputs.

    Args:
        renewed: Inputs that were recomputed since.
    """
    for record in status.records or [new_record(path, status.rule) for path in status.outputs]:
        record.rewrite(status.settings, status.code, status.inputs, renewed)


def _lacking(refused: list[Status], found: list[Status]) -> list[Status]:
    """The jobs whose missing files only have to exist for other jobs.

    Snakemake would run these other jobs as well if it made the files itself.
    """
    good = [status for status in found if status.reason in ("current", "code")]
    covered = {path for status in good for path in status.covered}
    readers = [status for status in found if status.rule != "report"]
    watched = {path for status in readers for path in set(status.inputs) - status.covered}
    makers = {path: status for status in found for path in status.outputs}
    return [
        status
        for status in refused
        if status.reason == "missing"
        and covered & set(status.outputs)
        and not watched & set(status.outputs)
        and all(makers[path].reason in ("current", "code") for path in status.inputs)
    ]


def _add_digest(status: Status) -> None:
    """Write the file of digests that an earlier version did not write, as old as its files."""
    if status.written == status.outputs or status.digest is None:
        return
    files = {name: Path(path) for name, path in graph.outputs(status.rule, status.names).items()}
    ages = [file.stat().st_mtime for file in files.values() if file != files["digest"]]
    write_digests(files, files)
    os.utime(files["digest"], (max(ages), max(ages)))
    status.records.append(status.records[0].copy_for(status.digest))


def _is_whole(status: Status, entries: Mapping[str, Entry]) -> bool:
    """Whether a job's files are those that its records are about; if not, say why."""
    recorded = status.records[0].settings or "{}"
    meant, entry = json.loads(recorded), entry_for(entries, status.outputs, recorded)
    for path in status.written:
        carried = carried_settings(Path(path))
        known = entry is not None and entry.carried == settings_digest(carried)
        if carried and not known and as_today(carried, meant) != meant:
            was, said = first_difference(carried, meant)
            status.why = f"{path} was made with {was}, its record says {said}"
            return False
    return True


def _entry(status: Status, entries: Mapping[str, Entry]) -> tuple[str, Entry]:
    name = witness(path for path in status.written if path != status.digest)
    code = status.records[0].code or ""
    known = entries.get(name)
    return name, Entry(
        rule=status.rule,
        digest=digest_if_any(name),
        made_with=known.made_with if known else code,
        accepted_for=status.code,
        settings=text_digest(status.settings),
        carried=settings_digest(carried_settings(Path(name))),
        date=date.today().isoformat(),
    )


def _flat(inputs: Mapping[str, str | Sequence[str]]) -> Iterator[str]:
    for paths in inputs.values():
        yield from [paths] if isinstance(paths, str) else paths
