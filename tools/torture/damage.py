"""Damage: flipped bits and truncations of every kind of file that a study reads again.

Most trials run in this process: a damaged file is read by `run_call`, which is what a job runs, or
by `restore_records`, with which every run begins. A trial survives if the damage is reported in one
sentence, or if what the reader makes is unchanged. At the end a file of each kind is damaged at
once, and real runs of snakemake have to heal the study.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import readers
from outcomes import Failed, Outcomes
from readers import SCRATCH, Read
from studies import SEVERAL, Folder, heal, problems, run_here

from kdsteps.jobs import graph
from kdsteps.jobs.cache import job_cache
from kdsteps.jobs.identity import kept
from kdsteps.jobs.provenance import provenance_file
from kdsteps.jobs.snakemake_records import RECORDS
from kdsteps.study import part_cache
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

TRUNCATIONS = 4


@dataclass(frozen=True)
class Kind:
    """A kind of file, those of the study that are of it, and what reads them."""

    name: str
    files: list[Path]
    read: Read


def damage(
    reference: Folder, workplace: Path, outcomes: Outcomes, rng: random.Random, count: int
) -> None:
    """Flip `count` bits in files of each kind, truncate each kind four times, and heal a sample."""
    copy = reference.copy(workplace / "damage")
    with inside(copy.path):
        kinds = list(_kinds(load_study()))
        _trials(kinds, outcomes, rng, count)
    (several := workplace / "several").mkdir()
    with inside(several):
        run_here(several, SEVERAL)
        _trials(_kinds_of_several(load_study()), outcomes, rng, count)
    if count > TRUNCATIONS:
        _heal(reference, workplace, kinds, outcomes, rng)


def _trials(kinds: Iterable[Kind], outcomes: Outcomes, rng: random.Random, count: int) -> None:
    for kind in kinds:
        for number in range(count + TRUNCATIONS):
            cut = number - count if number >= count else None
            _trial(kind, outcomes, rng, cut)


def _trial(kind: Kind, outcomes: Outcomes, rng: random.Random, cut: int | None) -> None:
    path = rng.choice(kind.files)
    content, stamp = path.read_bytes(), path.stat()
    if cut is None:
        where = rng.randrange(8 * len(content))
        damaged, name = _flipped(content, where), f"{path}, bit {where}"
    else:
        size = [0, 1, len(content) // 2, len(content) - 1][cut]
        damaged, name = content[:size], f"{path}, truncated to {size} bytes"
    with outcomes.trial(f"damage: {kind.name}", name):
        try:
            path.write_bytes(damaged)
            kind.read(path, content)
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)
            shutil.rmtree(SCRATCH, ignore_errors=True)


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _kinds(study: Study) -> Iterator[Kind]:
    every = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
    for rule, patterns in graph.OUTPUTS.items():
        for name, pattern in patterns.items():
            files = [Path(graph.outputs(rule, names)[name]) for names in graph.jobs(study, rule)]
            if not files:
                continue  # the study has no such jobs
            yield Kind(f"{rule}/{Path(pattern).name}", files, readers.of_results(study, every))
    provenance = [provenance_file(graph.outputs(*job)) for job in every]
    yield Kind("provenance", provenance, readers.of_provenance(study, provenance))
    records = sorted(path for path in RECORDS.rglob("*") if path.is_file())
    yield Kind("Snakemake's records", records, readers.of_records(study))
    cached = sorted(path for path in job_cache().rglob("*") if path.is_file())
    yield Kind("job cache", cached, readers.of_job_cache(study, every))
    yield Kind("parts.json", [part_cache.FILE], readers.of_parts())
    yield Kind("code.json", [kept.FILE], readers.of_code())
    features = ("distil", {"pair": "pair", "method": "feature_only", "seed": "0"})
    yield Kind("teacher logits", _cached_outputs(), readers.of_logits(study, features))
    states = [readers.saved_state()]
    yield Kind("training state", states, readers.of_states(states))


def _kinds_of_several(study: Study) -> Iterator[Kind]:
    """The kinds that only a study with several teachers and fixed draws has."""
    every = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
    audits = [
        Path(graph.outputs(rule, names)["audit"]) for rule, names in every if rule == "train_audit"
    ]
    yield Kind("train_audit/audit.json", audits, readers.of_results(study, every))
    student = ("distil", {"pair": "both", "method": "kd", "seed": "0"})
    read = readers.of_logits(study, student)
    yield Kind("logits of draws, and those of several teachers", _cached_outputs(), read)


def _cached_outputs() -> list[Path]:
    """The files of cached logits and features, and those that describe them."""
    outputs = sorted(Path(".kdsteps/outputs").glob("*.npy"))
    return outputs + [path.with_suffix(".json") for path in outputs]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


_REMOVED = (  # results of a reader of each kind of file
    "results/score",
    "results/distil/pair/labels",
    "results/distil/pair/kd",
    "results/evaluate/students/pair/labels",
    "results/evaluate/students/pair/kd",
    "results/evaluate/latency",
)


def _heal(
    reference: Folder, workplace: Path, kinds: list[Kind], outcomes: Outcomes, rng: random.Random
) -> None:
    """Damage a file of each kind at once while something that reads it has to run."""
    copy = reference.copy(workplace / "heal")
    for name in _REMOVED:
        shutil.rmtree(copy.path / name)
    there = [[path for path in kind.files if (copy.path / path).exists()] for kind in kinds]
    damaged = [rng.choice(files) for files in there if files]
    for path in damaged:
        content = (copy.path / path).read_bytes()
        final = str(path).startswith("results/report/")  # no job reads it; its size is compared
        where = rng.randrange(8 * len(content))
        (copy.path / path).write_bytes(content[:-1] if final else _flipped(content, where))
        os.utime(copy.path / path, (0, 0))  # no newer than what was made from it
    with outcomes.trial("damage: healed by snakemake", ", ".join(map(str, damaged))):
        wrong = heal(copy, runs=len(damaged))[0] or problems(copy, reference)
        if wrong:
            raise Failed("; ".join(wrong))
