"""Readers of damaged files: they fail if the damage is not reported, or changes a result."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from outcomes import Failed, SilentlyWrong
from studies import same

from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.cli.verify import verify
from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import load_state, save_state
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import NOT_CACHED, job_cache, remembered
from kdsteps.jobs.identity import kept
from kdsteps.jobs.identity.kept import KeptDigests
from kdsteps.jobs.outputs import flat, stage_of
from kdsteps.jobs.provenance import read_provenance
from kdsteps.jobs.restoring import restore_records
from kdsteps.study import part_cache
from kdsteps.study.study import Study

SCRATCH = Path("scratch")  # for the files of a trial
Job = tuple[str, graph.Names]
Read = Callable[[Path, bytes], None]
"""Reads a damaged file, given its path and former content; raises `Failed` or `SilentlyWrong`."""


def of_results(study: Study, every: list[Job]) -> Read:
    """Read a result by a job of each rule that has it as an input; without any, by `verify`."""
    makers = {path: job for job in every for path in graph.outputs(*job).values()}
    readers: dict[str, list[Job]] = {}
    for rule, names in every:
        for given in graph.node(study, rule, names).inputs.values():
            for path in flat(given):
                readers.setdefault(path, []).append((rule, names))

    def read(path: Path, content: bytes) -> None:
        if path.stat().st_size != len(content):
            _check_said([said for said in restore_records(study) if said.startswith(f"{path}: ")])
            return None
        for job in _one_of_each_rule(path, readers.get(str(path), [])):
            try:
                changed = _run(study, job)
            except KdstepsError as error:
                return _check_sentence(error, path)
            if changed:
                raise SilentlyWrong(f"{job[0]} makes another {changed[0]}")
        if path.name == "images.npy":  # every image has been read
            return None
        with suppress(KdstepsError):
            verify(study, stage_of(makers[str(path)][0]))
            raise SilentlyWrong("verify finds nothing")
        return None

    return read


def _one_of_each_rule(path: Path, jobs: list[Job]) -> list[Job]:
    """Jobs that together read all of a file."""
    found = {rule: (rule, names) for rule, names in reversed(jobs)}
    if path.name == "images.npy":  # the test images, and all others
        return [found["evaluate_teacher"], found["train"]]
    return list(found.values())


def _run(study: Study, job: Job) -> list[str]:
    """Run a job with its outputs in another folder; return those that differ from the study's."""
    call = call_of(study, *job)
    aside = {name: SCRATCH / path for name, path in call.outputs.items()}
    run_call(replace(call, outputs=aside, code=None), threads=1)
    return [str(path) for name, path in call.outputs.items() if not same(aside[name], path)]


def of_provenance(study: Study, files: list[Path]) -> Read:
    """Where a run begins, a damaged file is written again, or its job is planned."""
    known = {path: read_provenance(path) for path in files}

    def read(path: Path, content: bytes) -> None:
        try:
            said = restore_records(study)
            found, before = read_provenance(path), known[path]
            assert before is not None
            if said:
                _check_said(said)
            elif found is None or replace(found, started=0, ended=0) != replace(
                before, started=0, ended=0
            ):
                raise SilentlyWrong(f"it now says {found}")
        finally:
            path.write_bytes(content)
            restore_records(study)  # which has made the records say that the job reruns

    return read


def of_records(study: Study) -> Read:
    """When a run has begun, what decides about reruns is as before."""

    def read(path: Path, content: bytes) -> None:
        restore_records(study)
        before, after = json.loads(content), json.loads(path.read_bytes())
        for key in ("params", "input"):
            if before[key] != after[key]:
                raise SilentlyWrong(f"the record has another {key!r}")

    return read


def of_job_cache(study: Study, every: list[Job]) -> Read:
    """A damaged result is dropped, which is said, or what is restored is what was cached."""
    jobs = [job for job in every if job[0] not in NOT_CACHED]
    entries = {folder: job for job in jobs for folder in [_entry(job)] if folder}

    def read(path: Path, content: bytes) -> None:
        rule, names = entries[path.parent]
        shutil.copytree(path.parent, SCRATCH / "entry")
        call = call_of(study, rule, names)
        aside = {name: SCRATCH / output for name, output in call.outputs.items()}
        known = [rule, call.settings.as_json(), call.code, {**call.inputs, **call.lists}, aside]
        with warnings() as said:
            try:
                _check_restored(known, call.outputs, aside, said, path)
            finally:
                shutil.rmtree(path.parent, ignore_errors=True)
                shutil.copytree(SCRATCH / "entry", path.parent)

    return read


class _NotCached(Exception):
    pass


def _check_restored(
    known: list[Any], outputs: dict[str, Path], aside: dict[str, Path], said: list[str], path: Path
) -> None:
    try:
        with remembered(*known) as found:
            if not found:
                raise _NotCached
    except _NotCached:
        _check_said(said)
        if path.exists():
            raise Failed("the damaged result stays in the cache") from None
        return
    for name, output in outputs.items():
        if output.read_bytes() != aside[name].read_bytes():
            raise SilentlyWrong(f"{output} is restored differently")


def _entry(job: Job) -> Path | None:
    """The entry in the job cache that holds the files of a job."""
    outputs = {name: Path(path).read_bytes() for name, path in graph.outputs(*job).items()}
    for folder in job_cache().glob("[0-9a-f][0-9a-f]/*"):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        if all(files.get(name) == content for name, content in outputs.items()):
            return folder
    return None


def of_parts() -> Read:
    """The descriptions of methods and networks are as before, or described again."""
    folder = str(Path.cwd())
    known = part_cache._known(folder)
    described, answers = dict(known.described), dict(known.answers)
    assert described, "the study was made with this version of kdsteps"

    def read(path: Path, content: bytes) -> None:
        part_cache._known.cache_clear()
        found = part_cache._known(folder)
        if any(described.get(name) != each for name, each in found.described.items()):
            raise SilentlyWrong("a part is described differently")
        if any(answers.get(name) != each for name, each in found.answers.items()):
            raise SilentlyWrong("a part answers differently")

    return read


def of_code() -> Read:
    """The digests of code are as before, or found again."""
    package = Path(code_identity.__file__).parents[1]
    jobs = [tuple(json.loads(roots)) for roots in json.loads(kept.FILE.read_text())["digests"]]
    known = {roots: KeptDigests(package).find(roots) for roots in jobs}
    assert all(known.values()), "the study was made with this version of kdsteps"

    def read(path: Path, content: bytes) -> None:
        found = KeptDigests(package)
        if any(found.find(roots) not in (None, digest) for roots, digest in known.items()):
            raise SilentlyWrong("code has another digest")

    return read


def of_logits(study: Study, other: Job) -> Read:
    """Cached logits and features are used as they were, or written again, which is said.

    Args:
        other: The job that reads what the stage `cache` does not write.
    """
    jobs: list[Job] = [("cache_outputs", names) for names in graph.jobs(study, "cache_outputs")]
    tickets = [Path(graph.outputs(*job)["ticket"]) for job in jobs]
    keys = [json.loads(ticket.read_text())["key"] for ticket in tickets]
    readers = dict(zip(keys, jobs, strict=True))

    def read(path: Path, content: bytes) -> None:
        with warnings() as said:
            changed = _run(study, readers.get(path.stem, other))
        if said:
            _check_said(said)
        if changed:
            raise SilentlyWrong(f"{changed[0]} is another")
        if not said and path.suffix == ".npy" and path.read_bytes()[128:] != content[128:]:
            raise SilentlyWrong("other numbers are used")

    return read


def of_states(files: list[Path]) -> Read:
    """A run goes on from the state that was saved, or from its beginning, which is said."""
    known = {path: repr(load_state(path)) for path in files}

    def read(path: Path, content: bytes) -> None:
        with warnings() as said:
            state = load_state(path)
        if state is None:
            _check_said(said)
        elif repr(state) != known[path]:
            raise SilentlyWrong("another state is loaded")

    return read


def saved_state() -> Path:
    """The state of a training run, as a stage saves it."""
    import torch

    path = Path(".kdsteps/resume/torture.pt")
    numbers = torch.arange(200, dtype=torch.float32)
    save_state(path, {"key": "k", "epoch": 3, "seconds": 1.5, "student": {"weight": numbers}})
    return path


@contextmanager
def warnings() -> Iterator[list[str]]:
    """The warnings of kdsteps in this block."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("kdsteps")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


def _check_sentence(error: KdstepsError, path: Path) -> None:
    if str(path) not in str(error):
        raise Failed(f"the message does not name the file: {error}")
    _check_said([str(error)])


def _check_said(said: list[str]) -> None:
    if not said:
        raise Failed("nothing is said")
    for sentence in said:
        if "\n" in sentence or "Traceback" in sentence:
            raise Failed(f"this is not one sentence: {sentence}")
