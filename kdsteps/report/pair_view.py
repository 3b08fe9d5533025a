"""One pair of a teacher and a student, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from kdsteps.evaluation.metrics import Metric
from kdsteps.jobs.words import plural
from kdsteps.report import figures, formats
from kdsteps.report.charts.layers import SCORES
from kdsteps.report.citation import StudentFile, student_files
from kdsteps.report.gallery import Mistakes
from kdsteps.report.published import PublishedRow, published_rows
from kdsteps.report.results import Results, chance_level
from kdsteps.report.several import taught_by
from kdsteps.report.stones import Drawing, drawing
from kdsteps.report.sweep import Sweep, find_sweep
from kdsteps.report.tables import MethodRow, PairTable
from kdsteps.report.verdict import Finding, beats_all, verdict
from kdsteps.study.study import Study

WEAKEST = 3  # classes shown for each network


@dataclass(frozen=True)
class CostRow:
    """The metrics of one network, and everyone that deploys it.

    Attributes:
        name: Of the teacher, or of the methods whose students are this network.
        teacher: Whether it is the teacher.
        values: {metric: value}.
    """

    name: str
    teacher: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class PairView:
    """One pair as the page shows it.

    Attributes:
        teachers: The metrics of its teacher, or of each of several, by name.
        quality: Metrics of predictions that some network of the pair has.
        costs: Metrics of the deployed networks that some network of the pair has.
        networks: One row per deployed network: the teacher, then the students, the best first.
        resizing: Which networks resize their images, as text; empty where none does.
        timing: How the networks were timed, as text; empty where they were not.
        weakest: (name, [(class, accuracy)]) of the classes with the lowest accuracy.
        mistakes: None where there are no predictions to show.
        files: The best method's students.
        won: Whether the best method is better than every other.
        validation_scale: Number of validation images and chance, as text.
    """

    table: PairTable
    teachers: Mapping[str, Mapping[str, Any]]
    finding: Finding
    scale: str
    quality: list[Metric]
    costs: list[Metric]
    networks: list[CostRow]
    resizing: str
    timing: str
    weakest: list[tuple[str, list[tuple[str, float]]]]
    strip: Markup
    forests: list[figures.Small]
    validations: list[figures.Small]
    losses: list[figures.Small]
    drawings: list[tuple[str, Drawing]]
    sweep: Sweep | None
    sweeps: list[figures.Small]
    published: list[PublishedRow]
    mistakes: Mistakes | None
    files: list[StudentFile]
    won: bool
    validation_scale: str

    @property
    def digits(self) -> int:
        """Of every percentage on this pair."""
        return formats.decimals(self.table.num_images)


@dataclass(frozen=True)
class PairSpeeds:
    """The speed of the networks of a pair without labels; all attributes are as in `PairView`."""

    pair: str
    costs: list[Metric]
    networks: list[CostRow]
    resizing: str
    timing: str


def pair_view(
    results: Results,
    table: PairTable,
    study: Study,
    mistakes: Mistakes | None,
    much: figures.Detail,
) -> PairView:
    """The results of a pair.

    Args:
        table: Of the pair.
        study: The study whose results these are.
        mistakes: Of the pair.
        much: What of charts and tables is shown.
    """
    rows = results.curves[results.curves["pair"] == table.pair]
    sweep = find_sweep(table, results.plans, results.scores, list(SCORES))
    named = study.pairs[table.pair].published
    return PairView(
        table=table,
        teachers=taught_by(results, study.pairs[table.pair])
        or ({} if table.teacher is None else {table.teacher_name: table.teacher}),
        finding=verdict(table),
        scale=figures.scale_of(table),
        quality=_there(results.metrics, table, ("predictions", "teacher")),
        costs=(costs := _there(results.metrics, table, ("network", "speed"))),
        networks=_networks(table, costs),
        resizing=_resizing(study, table.pair, results, timed_teacher=table.teacher is not None),
        timing=_timing(results.speeds.get(table.pair, {})),
        weakest=_weakest(results, table),
        strip=figures.strip(table, much) if table.rows and much.tables else Markup(),
        forests=figures.forests(table) if much.charts else [],
        validations=figures.validations(table, rows, much) if much.charts else [],
        losses=figures.losses(table, rows, much) if much.charts else [],
        drawings=[
            (method, drawing(plan, table.teacher_name, table.student_name))
            for (pair, method), plan in results.plans.items()
            if pair == table.pair and much.charts
        ],
        sweep=sweep,
        sweeps=figures.sweeps(sweep) if sweep else [],
        published=published_rows(named, table, study.method_names) if named else [],
        mistakes=mistakes,
        files=student_files(table, results.runs) if table.rows else [],
        won=bool(table.rows) and beats_all(table),
        validation_scale=_validation_scale(results.data[table.dataset]),
    )


def _validation_scale(summary: Mapping[str, Any]) -> str:
    count = summary.get("images", {}).get("validation")
    if not count:
        return ""
    chance = formats.with_sign(chance_level(summary, "validation"))
    return f"{plural(count, 'validation image')}, chance {chance}."


def _there(metrics: Sequence[Metric], table: PairTable, sources: Sequence[str]) -> list[Metric]:
    """Metrics of some sources that were measured for some student of a pair."""
    known = {"accuracy"}.union(*(row.metrics for row in table.rows))
    return [metric for metric in metrics if metric.source in sources and metric.name in known]


def pair_speeds(results: Results, study: Study, pair: str) -> PairSpeeds:
    """The speed of the networks of a pair."""
    speed, metrics = results.speeds[pair], [m for m in results.metrics if m.source == "speed"]
    students = {
        method: tuple(found.get(metric.name) for metric in metrics)
        for method, found in speed["students"].items()
    }
    taught_by = study.pairs[pair].taught_by
    return PairSpeeds(
        pair=pair,
        costs=metrics,
        networks=_cost_rows(students, speed["teacher"], taught_by, metrics),
        resizing=_resizing(study, pair, results, timed_teacher=speed["teacher"] is not None),
        timing=_timing(speed),
    )


def _networks(table: PairTable, metrics: Sequence[Metric]) -> list[CostRow]:
    students = {row.method: _costs(row, metrics) for row in table.rows}
    return _cost_rows(students, table.teacher, table.teacher_name, metrics)


def _cost_rows(
    students: Mapping[str, tuple[float | None, ...]],
    teacher: Mapping[str, Any] | None,
    teacher_name: str,
    metrics: Sequence[Metric],
) -> list[CostRow]:
    """One row per deployed network; methods that deploy the same one are in the same row."""
    methods: dict[tuple[float | None, ...], list[str]] = {}
    for method, values in students.items():
        methods.setdefault(values, []).append(method)
    names = [metric.name for metric in metrics]
    rows = [
        CostRow(formats.listed(group), False, dict(zip(names, values, strict=True)))
        for values, group in methods.items()
    ]
    if teacher is None:
        return rows
    return [CostRow(teacher_name, True, {name: teacher.get(name) for name in names}), *rows]


def _costs(row: MethodRow, metrics: Sequence[Metric]) -> tuple[float | None, ...]:
    """Means over seeds, rounded so that equal networks have equal numbers."""
    samples = (row.metrics.get(metric.name) for metric in metrics)
    return tuple(float(f"{sample.mean:.9g}") if sample else None for sample in samples)


def _resizing(study: Study, pair: str, results: Results, *, timed_teacher: bool) -> str:
    """Which networks of a pair are built for another size than that of the images."""
    entry = study.pairs[pair]
    images = tuple(results.data[entry.dataset]["image_shape"][1:])
    names = [*([entry.only_teacher] if timed_teacher else []), entry.student]
    sizes = {name: study.models[name].image_size for name in names}
    resized = [
        f"to {formats.shape(size)} for {name}"
        for name, size in sizes.items()
        if size is not None and size != images
    ]
    if not resized:
        return ""
    return f"Images of {formats.shape(images)} pixels are resized {formats.listed(resized)}."


def _timing(speed: Mapping[str, Any]) -> str:
    """How the networks of a pair were timed."""
    if not speed:
        return ""
    device = speed["provenance"].get("device") or "an unknown device"
    text = f"Timed on {device}: latency for single images, throughput for batches of "
    text += plural(speed["batch_size"], "image")
    timed = [*speed["students"].values(), *filter(None, [speed["teacher"]])]
    if not device.startswith("cpu"):
        return f"{text}."
    low, high = (choose(found["threads"] for found in timed) for choose in (min, max))
    threads = plural(high, "thread") if low == high else f"{low} to {high} threads"
    return f"{text} on {threads}."


def _weakest(results: Results, table: PairTable) -> list[tuple[str, list[tuple[str, float]]]]:
    """The classes with the lowest accuracy, of the teacher and each method, means over seeds."""
    names = results.data[table.dataset]["class_names"]
    found: list[tuple[str, Any]] = []
    if table.teacher is not None and isinstance(table.teacher["accuracy_per_class"], list):
        found.append((formats.as_teacher(table.teacher_name), table.teacher["accuracy_per_class"]))
    for row in table.rows:
        if (table.pair, row.method) in results.class_accuracy:
            found.append((row.method, results.class_accuracy[table.pair, row.method]))
    return [(who, _lowest(pd.Series(values, names, dtype=float))) for who, values in found]


def _lowest(accuracies: pd.Series) -> list[tuple[str, float]]:
    lowest = accuracies.dropna().nsmallest(WEAKEST)
    return [(str(name), float(value)) for name, value in lowest.items()]
