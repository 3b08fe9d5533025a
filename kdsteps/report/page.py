"""The page: all results of a study in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdsteps.evaluation.metrics import Metric
from kdsteps.jobs.words import plural
from kdsteps.report import figures, formats
from kdsteps.report.charts.curves import MOST_LINES
from kdsteps.report.charts.layers import SCORES
from kdsteps.report.charts.theme import DARK, LIGHT
from kdsteps.report.citation import bibtex, commands, commits, kdsteps_version, results_digest
from kdsteps.report.exports import export_view
from kdsteps.report.gallery import find_mistakes, sheets
from kdsteps.report.pair_view import pair_speeds, pair_view
from kdsteps.report.probes import PairProbes
from kdsteps.report.published import MARKERS
from kdsteps.report.results import Results
from kdsteps.report.several import SeveralTeachers
from kdsteps.report.tables import PairTable
from kdsteps.report.tuning import tuning_of
from kdsteps.report.verdict import OUTCOMES
from kdsteps.study.study import Study

MOST_RUNS = 600  # rows of the table of runs; runs.parquet has all


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
    views = [pair_view(results, table, study, mistakes.get(table.pair), much) for table in tables]
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
        speeds=[
            pair_speeds(results, study, name)
            for name in study.pairs
            if name in results.speeds and not study.has_labels(name)
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
        digest=results_digest(results, probes),
        bibtex=bibtex(study.method_names),
        markers=MARKERS,
        scores=SCORES,
        params=yaml.safe_dump(_settings(study), sort_keys=False, allow_unicode=True),
    )


def _settings(study: Study) -> dict[str, Any]:
    """The study as in params.yaml, with all sections and options in full."""
    parts: dict[str, Mapping[str, Any]] = {
        "datasets": study.datasets,
        "models": study.models,
        "methods": study.methods,
    }
    written = study.described
    in_full = {
        section: {name: entry | entries[name].options for name, entry in written[section].items()}
        for section, entries in parts.items()
    }
    return written | in_full


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
