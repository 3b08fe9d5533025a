"""Frozen features of teachers and students on the labeled images of `probe`, and the closed gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdsteps.evaluation.probes import probe_names
from kdsteps.evaluation.statistics import Sample, sample
from kdsteps.files.text import read_json
from kdsteps.report.charts import curves
from kdsteps.report.charts.theme import SMALL, Chart, picture
from kdsteps.report.figures import Small
from kdsteps.report.results import Files, Results, identity
from kdsteps.study.study import Study

Values = dict[str, float]
_POINTS = 100  # of a curve


@dataclass(frozen=True)
class ProbeRow:
    """One method on one pair.

    Attributes:
        values: By name of `probe_names`, over seeds; without runs that diverged.
        closed: The fraction of the gap between the untrained student and the teacher that each
            seed closed, by the same names; only where the teacher is ahead.
    """

    method: str
    values: dict[str, Sample]
    closed: dict[str, Sample]


@dataclass(frozen=True)
class PairProbes:
    """The features of all networks of a pair.

    Attributes:
        headings: What is shown, by name.
        teacher: By name; None where no method has a teacher.
        untrained: The student before its training, over seeds.
        rows: The method with the most neighbors of the right class first.
        losses: Loss terms of students whose images have no labels, one chart per method; those of
            other students are among the curves of training.
    """

    pair: str
    dataset: str
    teacher_name: str
    student_name: str
    headings: dict[str, str]
    references: int
    queries: int
    confidence: float
    teacher: Values | None
    untrained: dict[str, Sample]
    rows: list[ProbeRow]
    losses: list[Small]


def pair_probes(inputs: Mapping[str, Files], results: Results, study: Study) -> list[PairProbes]:
    """The probes of all pairs; none where the study has no section `probe`.

    Args:
        inputs: Files of the report, by the names of the job graph.
    """
    section = study.params.probe
    if section is None:
        return []
    students, teachers, untrained = (
        {_key(path, rule, file): read_json(path) for path in inputs[name]}
        for name, (rule, file) in {
            "probes": ("evaluate_probe", "probe"),
            "teacher_probes": ("evaluate_probe_teacher", "teacher_probe"),
            "untrained_probes": ("evaluate_probe_untrained", "untrained_probe"),
        }.items()
    )
    found = []
    for name, pair in study.pairs.items():
        teacher = teachers.get((pair.dataset, pair.taught_by))
        starts = {int(seed): _known(each) for (p, seed), each in untrained.items() if p == name}
        first = next(each for (p, _), each in untrained.items() if p == name)
        goal = None if teacher is None else _known(teacher)
        runs: dict[str, dict[int, Values]] = {method: {} for method in study.methods}
        for (p, method, seed), each in students.items():
            if p == name:
                runs[method][int(seed)] = _known(each)
        rows = [
            _row(method, each, starts, goal, study.params.report.confidence)
            for method, each in runs.items()
        ]
        names = probe_names(section.fractions)
        found.append(
            PairProbes(
                *(name, section.dataset, pair.taught_by, pair.student),
                headings={each: _heading(each, section.neighbors) for each in names},
                references=first["references"],
                queries=first["queries"],
                confidence=100 * study.params.report.confidence,
                teacher=goal,
                untrained=_samples(list(starts.values()), study.params.report.confidence),
                rows=sorted(rows, key=_best_first),
                losses=[] if study.has_labels(name) else _losses(name, results.curves),
            )
        )
    return found


def probe_metrics(probes: Sequence[PairProbes]) -> dict[str, Any]:
    """{pair: numbers} for metrics.json: means over seeds, and the fractions of the gap."""
    return {
        each.pair: {
            "teacher": each.teacher or {},
            "untrained": {name: found.mean for name, found in each.untrained.items()},
            "methods": {
                row.method: {name: found.mean for name, found in row.values.items()}
                | {f"{name}_gap_closed": found.mean for name, found in row.closed.items()}
                for row in each.rows
            },
        }
        for each in probes
    }


def _key(path: str | Path, rule: str, file: str) -> tuple[str, ...]:
    return tuple(identity(path, rule, file).values())


def _known(content: Mapping[str, Any]) -> Values:
    """What was measured; nothing for a network whose training diverged."""
    return {name: value for name, value in content["values"].items() if value is not None}


def _row(
    method: str,
    runs: Mapping[int, Values],
    starts: Mapping[int, Values],
    teacher: Values | None,
    confidence: float,
) -> ProbeRow:
    closed = [gap_closed(values, starts[seed], teacher or {}) for seed, values in runs.items()]
    return ProbeRow(method, _samples(list(runs.values()), confidence), _samples(closed, confidence))


def gap_closed(student: Values, start: Values, teacher: Values) -> Values:
    """The fraction of the gap that one student closed, where the teacher is ahead of its start."""
    shared = student.keys() & start.keys() & teacher.keys()
    return {
        name: (student[name] - start[name]) / (teacher[name] - start[name])
        for name in sorted(shared)
        if teacher[name] > start[name]
    }


def _samples(runs: Sequence[Values], confidence: float) -> dict[str, Sample]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: sample([run[name] for run in runs if name in run], confidence) for name in names}


def _best_first(row: ProbeRow) -> float:
    found = row.values.get("neighbor_accuracy")
    return 0.0 if found is None else -found.mean


def _heading(name: str, neighbors: int) -> str:
    if name == "neighbor_accuracy":
        return f"accuracy of {neighbors} neighbors"
    if name == "neighbor_purity":
        return f"purity of {neighbors} neighbors"
    return f"linear, {name.removeprefix('linear_')}% of labels"


def _losses(pair: str, table: pd.DataFrame) -> list[Small]:
    found = []
    for method, rows in table[table["pair"] == pair].groupby("method", sort=False):
        chart = curves.losses(curves.thinned(rows, _POINTS), SMALL)
        if chart is not None:
            found.append(_drawn(str(method), pair, chart))
    return found


def _drawn(method: str, pair: str, chart: Chart) -> Small:
    name = f"probe-loss-{method}-{pair}"
    return Small(method, picture(name, method, lambda _: chart, small=True))
