"""The page: everything the study found, in one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdsteps.report import figures, formats
from kdsteps.report.charts.layers import SCORES
from kdsteps.report.charts.theme import DARK, LIGHT
from kdsteps.report.published import MARKERS, PublishedRow, published_rows
from kdsteps.report.results import COSTS, Results, Study
from kdsteps.report.stones import Drawing, drawing
from kdsteps.report.sweep import Sweep, find_sweep
from kdsteps.report.tables import PairTable
from kdsteps.report.verdict import Finding, outcome, verdict


@dataclass(frozen=True)
class PairView:
    """One pair as the page shows it."""

    table: PairTable
    finding: Finding
    strip: Markup
    forests: list[figures.Small]
    validations: list[figures.Small]
    losses: list[figures.Small]
    drawings: list[tuple[str, Drawing]]
    sweep: Sweep | None
    sweeps: list[figures.Small]
    published: list[PublishedRow]

    @property
    def digits(self) -> int:
        """Of every percentage on this pair."""
        return formats.decimals(self.table.num_images)


def render(results: Results, tables: Sequence[PairTable], study: Study) -> str:
    """The page as HTML.

    Args:
        tables: Of all pairs, as `pair_tables` gives them.
        study: All of params.yaml, defaults filled in.
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
    environment.globals |= {"shape": formats.shape, "plural": formats.plural, "outcome": outcome}
    environment.globals |= {"listed": formats.listed}
    views = [_view(results, table, study) for table in tables]
    return environment.get_template("page.html.j2").render(
        title=study["report"]["title"],
        light=LIGHT,
        dark=DARK,
        views=views,
        methods=list(study["methods"]),
        seeds=study["seeds"],
        confidence=100 * study["report"]["confidence"],
        runs=results.runs.to_dict("records"),
        teachers=results.teachers.to_dict("records"),
        students=_students(results.runs),
        teachers_curves=figures.teachers(results.teacher_curves),
        hours=formats.duration(float(_training(results.origins)["seconds"].sum())),
        origins=_origins(results.origins),
        accepted=results.accepted,
        costs=[
            (name, figures.costs(group, results.runs)) for name, group in figures.by_dataset(tables)
        ],
        qualities=_qualities(results.scores),
        data=results.data,
        markers=MARKERS,
        scores=SCORES,
        params=yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True),
    )


def _view(results: Results, table: PairTable, study: Study) -> PairView:
    rows = results.curves[results.curves["pair"] == table.pair]
    sweep = find_sweep(table, results.plans, results.scores, list(SCORES))
    named = study["pairs"][table.pair].get("published")
    return PairView(
        table=table,
        finding=verdict(table),
        strip=figures.strip(table),
        forests=figures.forests(table),
        validations=figures.validations(table, rows),
        losses=figures.losses(table, rows),
        drawings=[
            (method, drawing(plan, table.teacher_name, table.student_name))
            for (pair, method), plan in results.plans.items()
            if pair == table.pair
        ],
        sweep=sweep,
        sweeps=figures.sweeps(sweep) if sweep else [],
        published=published_rows(named, table, study["methods"]) if named else [],
    )


def _qualities(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Each scored teacher: its charts, its layers as rows, and why layers were chosen."""
    return [
        {
            "teacher": teacher,
            "dataset": dataset,
            "charts": figures.qualities(rows, f"{teacher}-{dataset}"),
            "rows": rows.sort_values("depth").to_dict("records"),
        }
        for (dataset, teacher), rows in scores.groupby(["dataset", "teacher"], sort=False)
    ]


def _students(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """What each pair's student costs: medians over its runs, whose network is one and the same."""
    costs = runs.groupby(["pair", "student"], sort=False)[list(COSTS)]
    return [
        {"pair": pair, "student": student}
        | {cost: rows[cost].astype(float).median() for cost in COSTS}
        for (pair, student), rows in costs
    ]


def _training(origins: pd.DataFrame) -> pd.DataFrame:
    return origins[origins["stage"].isin(["train", "distil"])]


def _origins(origins: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Files that come from the same code, device and versions, as one row."""
    places = ["git_commit", "device", "threads", "versions"]
    filled = origins.assign(
        git_commit=origins["git_commit"].fillna("not in git"),
        device=origins["device"].fillna("not said"),
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
