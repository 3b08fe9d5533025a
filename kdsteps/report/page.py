"""The page: all results of a study in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdsteps.evaluation.metrics import Metric
from kdsteps.jobs.words import plural
from kdsteps.report import figures, formats
from kdsteps.report.charts.curves import MOST_LINES
from kdsteps.report.charts.layers import SCORES
from kdsteps.report.charts.theme import DARK, LIGHT
from kdsteps.report.citation import (
    StudentFile,
    bibtex,
    commands,
    commits,
    kdsteps_version,
    results_digest,
    student_files,
)
from kdsteps.report.exports import export_view
from kdsteps.report.gallery import Mistakes, find_mistakes, sheets
from kdsteps.report.probes import PairProbes
from kdsteps.report.published import MARKERS, PublishedRow, published_rows
from kdsteps.report.results import Results, chance_level
from kdsteps.report.several import SeveralTeachers, taught_by
from kdsteps.report.stones import Drawing, drawing
from kdsteps.report.sweep import Sweep, find_sweep
from kdsteps.report.tables import MethodRow, PairTable
from kdsteps.report.tuning import tuning_of
from kdsteps.report.verdict import OUTCOMES, Finding, beats_all, verdict
from kdsteps.study.study import Study

WEAKEST = 3  # classes shown for each network
MOST_RUNS = 600  # rows of the table of runs; runs.parquet has all


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


def render(
    results: Results,
    tables: Sequence[PairTable],
    study: Study,
    probes: Sequence[PairProbes] = (),
    several: Sequence[SeveralTeachers] = (),
) -> str:
    """The page as HTML.

    Args:
        tables: Of all pairs whose images have labels, from `pair_tables`.
        study: The study whose results these are.
        probes: Of all pairs, from `pair_probes`.
        several: Of all pairs with several teachers, from `several_teachers`.
    """
    environment = Environment(
        loader=PackageLoader("kdsteps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        name: getattr(formats, name)
        for name in ("percent", "points", "number", "signed", "p_value", "count", "duration")
    }
    environment.globals |= {"shape": formats.shape, "plural": plural}
    environment.globals |= {"outcomes": OUTCOMES, "as_teacher": formats.as_teacher}
    environment.globals |= {"listed": formats.listed, "heading": formats.heading}
    environment.globals |= {"value_of": formats.value_of, "with_code": formats.with_code}
    much = figures.detail(tables)
    mistakes = find_mistakes(results, tables) if much.charts else {}
    views = [_view(results, table, study, mistakes.get(table.pair), much) for table in tables]
    made_at = commits(results.origins)
    return environment.get_template("page.html.j2").render(
        title=study.params.report.title,
        light=LIGHT,
        dark=DARK,
        views=views,
        probes=probes,
        num_pairs=len(study.pairs),
        num_students=len(study.pairs) * len(study.methods) * len(study.seeds),
        methods=list(study.methods),
        seeds=list(study.seeds),
        confidence=100 * study.params.report.confidence,
        runs=results.runs.head(MOST_RUNS if much.tables else 0).to_dict("records"),
        num_runs=len(results.runs),
        shown=_known(results.metrics, results.runs),
        teachers_curves=figures.teachers(results.teacher_curves),
        hours=formats.duration(float(_training(results.origins)["seconds"].sum())),
        origins=_origins(results.origins),
        accepted=results.accepted,
        checks=results.checks,
        several_teachers=several,
        exports=list(map(export_view, results.exports)),
        tuning=tuning_of(study, results.tunings),
        costs=[
            (name, figures.costs(group, results.metrics), figures.scale_of(group[0]))
            for name, group in figures.by_dataset(tables)
        ],
        qualities=_qualities(results.scores),
        data=results.data,
        leaks=_leaks(results.data),
        much=much,
        most_lines=MOST_LINES,
        sheets=sheets(results, tables, mistakes),
        sheet_numbers={name: number for number, name in enumerate(results.data)},
        commits=made_at,
        commands=commands(made_at, kdsteps_version()),
        version=kdsteps_version(),
        digest=results_digest(results),
        bibtex=bibtex(study.method_names),
        markers=MARKERS,
        scores=SCORES,
        params=yaml.safe_dump(study.described, sort_keys=False, allow_unicode=True),
    )


def _view(
    results: Results,
    table: PairTable,
    study: Study,
    mistakes: Mistakes | None,
    much: figures.Detail,
) -> PairView:
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
        resizing=_resizing(table, study, results.data[table.dataset]),
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


def _leaks(data: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(data set, entry of `duplicates`) of test images that are in another split as well."""
    return [
        (name, entry)
        for name, summary in data.items()
        for entry in summary.get("duplicates", [])
        if "test" in entry["splits"] and len(set(entry["splits"])) > 1
    ]


def _qualities(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Each teacher with scores: its charts, and its layers as rows."""
    return [
        {
            "teacher": teacher,
            "dataset": dataset,
            "charts": figures.qualities(rows, f"{teacher}-{dataset}"),
            "rows": rows.sort_values("depth").to_dict("records"),
            "chosen": rows.sort_values("depth").loc[rows["chosen"].astype(bool), "layer"].tolist(),
        }
        for (dataset, teacher), rows in scores.groupby(["dataset", "teacher"], sort=False)
    ]


def _known(metrics: Sequence[Metric], runs: pd.DataFrame) -> list[Metric]:
    """Metrics that were measured for some run."""
    return [metric for metric in metrics if runs[metric.name].notna().any()]


def _there(metrics: Sequence[Metric], table: PairTable, sources: Sequence[str]) -> list[Metric]:
    """Metrics of some sources that were measured for some student of a pair."""
    known = {"accuracy"}.union(*(row.metrics for row in table.rows))
    return [metric for metric in metrics if metric.source in sources and metric.name in known]


def _networks(table: PairTable, metrics: Sequence[Metric]) -> list[CostRow]:
    """One row per deployed network; methods that deploy the same one are in the same row."""
    methods: dict[tuple[float | None, ...], list[str]] = {}
    for row in table.rows:
        methods.setdefault(_costs(row, metrics), []).append(row.method)
    names = [metric.name for metric in metrics]
    students = [
        CostRow(formats.listed(group), False, dict(zip(names, values, strict=True)))
        for values, group in methods.items()
    ]
    if table.teacher is None:
        return students
    teacher = {name: table.teacher.get(name) for name in names}
    return [CostRow(table.teacher_name, True, teacher), *students]


def _costs(row: MethodRow, metrics: Sequence[Metric]) -> tuple[float | None, ...]:
    """Means over seeds, rounded so that equal networks have equal numbers."""
    samples = (row.metrics.get(metric.name) for metric in metrics)
    return tuple(float(f"{sample.mean:.9g}") if sample else None for sample in samples)


def _resizing(table: PairTable, study: Study, summary: Mapping[str, Any]) -> str:
    """Which networks of a pair are built for another size than that of the images."""
    images = tuple(summary["image_shape"][1:])
    names = [] if table.teacher is None else [table.teacher_name]
    sizes = {name: study.models[name].image_size for name in (*names, table.student_name)}
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


def _training(origins: pd.DataFrame) -> pd.DataFrame:
    return origins[origins["stage"].isin(["train", "distil"])]


def _origins(origins: pd.DataFrame) -> list[Mapping[str, Any]]:
    """One row for all files made with the same code, device and versions."""
    places = ["git_commit", "device", "threads", "versions"]
    filled = origins.assign(
        git_commit=origins["git_commit"].fillna("no commit"),
        device=origins["device"].fillna("unknown"),
        threads=origins["threads"].fillna(0).astype(int),
    )
    return [
        dict(zip(places, key, strict=True))
        | {
            "files": len(rows),
            "stages": formats.listed(list(dict.fromkeys(rows["stage"]))),
            "seconds": float(rows["seconds"].sum()),
        }
        for key, rows in filled.groupby(places, sort=False)
    ]
