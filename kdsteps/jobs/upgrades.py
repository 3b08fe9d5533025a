"""Find the stale results of a study, and accept those where only the code changed.

Reads what results were made from without running Snakemake, so it takes only a second; results
that may be accepted are read as well, since they have to be as their jobs wrote them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from kdsteps.files.digests import digest_if_any, file_digest, write_digests
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.accepted import Entry, read_accepted, text_digest, witness, write_accepted
from kdsteps.jobs.earlier_versions import as_today, is_outdated
from kdsteps.jobs.provenance import Provenance, is_whole, lost_files, wrong_size
from kdsteps.jobs.restoring import changed_inputs, known_results, restore_records
from kdsteps.jobs.run_lock import begin_run, end_run
from kdsteps.jobs.settings import first_difference
from kdsteps.jobs.snakemake_records import is_incomplete
from kdsteps.study.study import Study

Reason = Literal["current", "code", "settings", "inputs", "missing", "unknown"]


@dataclass
class Status:
    """One job and what is known about its result.

    Attributes:
        node: The job.
        code: The digest of its code today.
        known: What its result was made from; None if there is no result or no record.
        reason: Why its result is stale, or "current".
        why: The reason in words.
        follows: Rules whose results it reads and that are stale.
    """

    node: graph.JobNode
    code: str
    known: Provenance | None
    reason: Reason = "current"
    why: str = ""
    follows: list[str] = field(default_factory=list)

    @property
    def rule(self) -> str:
        return self.node.rule

    @property
    def names(self) -> graph.Names:
        return self.node.names

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


def statuses(study: Study, *, thorough: bool = False) -> list[Status]:
    """Every job of a study, and whether its result is what the job would make today.

    Args:
        thorough: Whether the contents of results where only code changed, and of what they were
            made from, are compared with what jobs wrote; otherwise the sizes.
    """
    known = {path: was for _, files, was in known_results(study) if was for path in files.values()}
    found = [
        _status(study, graph.node(study, rule, names), known)
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    ]
    makers = {path: status for status in found for path in status.outputs}
    if thorough:
        _find_damage(found)
    while True:
        before = sum(status.stale for status in found)
        for status in found:
            sources = (
                makers[path] for path in status.node.read if _is_watched(status, path, makers)
            )
            status.follows = sorted({source.rule for source in sources if source.stale})
        if before == sum(status.stale for status in found):
            return found


def _is_watched(status: Status, path: str, makers: Mapping[str, Status]) -> bool:
    """Whether a change of an input reruns the job; the content of a covered one does not matter."""
    return path in makers and (path in status.node.watched or not Path(path).exists())


def _status(study: Study, node: graph.JobNode, known: Mapping[str, Provenance]) -> Status:
    code = code_identity.code(study, node.rule, node.names)
    first = next(iter(graph.outputs(node.rule, node.names).values()))
    status = Status(node, code, known.get(first))
    status.reason, status.why = _reason(status, known)
    return status


def _reason(status: Status, found: Mapping[str, Provenance]) -> tuple[Reason, str]:
    for path in status.written:
        if not Path(path).is_file():
            return "missing", "missing"
        if is_incomplete(path):
            return "missing", "interrupted"
    known = status.known
    if known is None:
        return "unknown", "no record of how it was made"
    for path in status.written:
        if wrong_size(Path(path), known):
            return "missing", f"{path} was damaged or changed"
    if lost := lost_files(status.rule, graph.outputs(status.rule, status.names), known):
        return "missing", f"{lost[0]} is missing or was changed"
    if difference := settings_changed(known, status.node.text):
        return "settings", f"settings changed: {difference}"
    for path in sorted(changed_inputs(status.node, known, found)):
        return "inputs", f"an input changed: {path}"
    if difference := _other_jobs(status, known):
        return "inputs", difference
    return _code_reason(status, known)


def _find_damage(found: list[Status]) -> None:
    """Give results where only code changed another reason if they, or their inputs, are damaged."""
    makers = {path: status for status in found for path in status.written}

    @cache
    def damaged(path: str) -> bool:
        known = makers[path].known if path in makers else None
        return known is not None and Path(path).is_file() and not is_whole(Path(path), known)

    for status in found:
        if status.reason != "code" or status.rule == "report":
            continue
        assert status.known is not None
        optional = lost_files(
            status.rule, graph.outputs(status.rule, status.names), status.known, thorough=True
        )
        own = [*map(str, optional), *filter(damaged, sorted(status.written))]
        read = [*filter(damaged, sorted(status.node.watched))]
        if own or read:
            status.reason = "missing" if own else "inputs"
            which = own[0] if own else f"its input {read[0]}"
            status.why = f"{which} was damaged or changed after its job wrote it"


def _other_jobs(status: Status, known: Provenance) -> str:
    """In which other jobs' files a result's inputs differ from today's, in words; "" if in none.

    This is so if a pair has another teacher or data set than before, or several teachers instead of
    one. Other code may have read no file of a job at all, or one more: then, only an input in whose
    place there is another job's of the same stage counts.
    """
    read, before = status.node.read, sorted(known.inputs)
    folders, earlier = set(map(os.path.dirname, read)), set(map(os.path.dirname, before))
    gone = [path for path in before if os.path.dirname(path) not in folders]
    new = [path for path in sorted(status.node.watched) if os.path.dirname(path) not in earlier]
    if known.code != status.code or not before:
        stages = {Path(path).parts[:2] for path in read}
        gone, new = [path for path in gone if Path(path).parts[:2] in stages], []
    if gone:
        return f"was made from {gone[0]}, which it no longer reads"
    return f"was made without {new[0]}, which it now reads" if new else ""


def _code_reason(status: Status, known: Provenance) -> tuple[Reason, str]:
    if known.code != status.code:
        return "code", "code changed"
    if known.settings != status.node.text:
        return "code", "same settings, recorded in an earlier form"
    if known.inputs.keys() != status.node.watched:
        return "code", "the list of inputs changed"
    if status.written != status.outputs:
        return "code", "has no file of digests"
    return "current", ""


def settings_changed(known: Provenance, wanted: str) -> str:
    """The first value that differs, in words; empty if the settings mean the same."""
    if known.settings == wanted:
        return ""
    now = json.loads(wanted)
    before = as_today(json.loads(known.settings), now)
    if before == now:
        return ""
    was, is_ = first_difference(before, now)
    return f"made with {was}, but params.yaml has {is_}"


@dataclass
class Acceptance:
    """The outcome of accepting.

    Attributes:
        taken: Jobs whose results are accepted.
        refused: Jobs that are not, which are stale for another reason than code.
        lacking: Jobs whose files are missing, but whose content other jobs do not use, such as the
            check of a teacher, which an earlier version did not write.
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
        KdstepsError: A run is using this folder.
    """
    begin_run()
    try:
        return _accept(study, chosen, make)
    finally:
        end_run()


def _accept(
    study: Study, chosen: Callable[[Status], bool], make: Callable[[Status], None]
) -> Acceptance:
    entries = read_accepted()
    taken: list[Status] = []
    refused: list[Status] = []
    found = statuses(study, thorough=True)
    for status in found:
        if status.rule == "report" or status.reason == "current" or not chosen(status):
            continue
        (taken if status.reason == "code" else refused).append(status)
    outdated = [status for status in taken if is_outdated(status.rule, status.outputs)]
    as_before = [status for status in taken if status not in outdated]
    if taken:
        write_accepted(entries | dict(_entry(status, entries) for status in as_before))
    for status in outdated:
        make(status)
    renewed = {path for status in outdated for path in status.outputs}
    for status in as_before:
        _add_digest(status)
    readers = [each for each in found if each.reason == "current" and renewed & each.node.read]
    for status in [*as_before, *readers]:
        _accept_for_today(status)
    restore_records(study)
    lacking = _lacking(refused, found)
    return Acceptance(taken, [each for each in refused if each not in lacking], lacking)


def _accept_for_today(status: Status) -> None:
    """Write that a result is what today's settings, code and inputs make."""
    assert status.known is not None
    node = status.node
    renewed = status.known.accepted_for(node.text, status.code, sorted(node.watched))
    renewed.write(graph.outputs(node.rule, node.names))


def _lacking(refused: list[Status], found: list[Status]) -> list[Status]:
    """The jobs whose files are missing, but whose content other jobs do not use.

    Snakemake would run these other jobs as well if it made the files itself.
    """
    good = [status for status in found if status.reason in ("current", "code")]
    covered = {path for status in good for path in status.node.read - status.node.watched}
    readers = [status for status in found if status.rule != "report"]
    watched = {path for status in readers for path in status.node.watched}
    makers = {path: status for status in found for path in status.outputs}
    return [
        status
        for status in refused
        if status.reason == "missing"
        and covered & set(status.outputs)
        and not watched & set(status.outputs)
        and all(makers[path].reason in ("current", "code") for path in status.node.read)
    ]


def _add_digest(status: Status) -> None:
    """Write the file of digests that an earlier version did not write, as old as its files."""
    if status.written == status.outputs or status.digest is None:
        return
    files = {name: Path(path) for name, path in graph.outputs(status.rule, status.names).items()}
    ages = [file.stat().st_mtime for file in files.values() if file != files["digest"]]
    write_digests(files, files)
    os.utime(files["digest"], (max(ages), max(ages)))
    known, digest = status.known, files["digest"]
    assert known is not None
    status.known = replace(
        known,
        files={**known.files, digest.name: file_digest(digest)},
        sizes={**known.sizes, digest.name: digest.stat().st_size},
    )


def _entry(status: Status, entries: Mapping[str, Entry]) -> tuple[str, Entry]:
    name = witness(path for path in status.written if path != status.digest)
    known = entries.get(name)
    assert status.known is not None
    return name, Entry(
        rule=status.rule,
        digest=digest_if_any(name),
        made_with=known.made_with if known else status.known.code,
        accepted_for=status.code,
        settings=text_digest(status.node.text),
        date=date.today().isoformat(),
    )
