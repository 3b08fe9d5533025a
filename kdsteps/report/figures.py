"""All charts of a report: as SVG for the page, and as PNG for slides."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd
from markupsafe import Markup

from kdsteps.evaluation.metrics import Metric
from kdsteps.jobs.words import plural
from kdsteps.report.charts import accuracy, cost, curves, layers, sweep
from kdsteps.report.charts.theme import SMALL, WIDE, Chart, note, picture, png
from kdsteps.report.formats import decimals, with_sign
from kdsteps.report.results import Results
from kdsteps.report.sweep import Sweep
from kdsteps.report.tables import PairTable

_BYTES = 4_500_000  # of the page, as estimated from the numbers of pairs and methods
_DOTS = 1000  # runs that are drawn one by one
_CURVES = 60  # methods with curves, over all pairs
_POINTS = 6000  # of all curves of one kind together
_FEWEST, _MOST = 16, 160  # of one curve


@dataclass(frozen=True)
class Small:
    """One of several charts side by side.

    Attributes:
        key: Its legend: name, color and kind of line of each entry.
    """

    title: str
    drawing: Markup
    key: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Detail:
    """How much the charts of a study show, so that the page stays small whatever its size.

    Attributes:
        tables: Whether every pair has tables and a chart of its accuracies; else one line.
        charts: Whether every pair has all other charts, and its mistakes.
        runs: Whether each run is a point; else means and spreads.
        methods: Methods of each pair with curves: the references, and the best ones.
        points: Of each curve, at most.
    """

    tables: bool
    charts: bool
    runs: bool
    methods: int
    points: int

    def with_curves(self, table: PairTable) -> list[str]:
        """The methods of a pair that have curves, the best first."""
        order = [*table.references.values(), *(row.method for row in table.rows)]
        chosen = list(dict.fromkeys(order))[: self.methods]
        return [row.method for row in table.rows if row.method in chosen]


def detail(tables: Sequence[PairTable]) -> Detail:
    """The detail for all pairs of a study."""
    runs = sum(len(row.values) for table in tables for row in table.rows)
    rows = sum(len(table.rows) for table in tables)
    methods = max(3, _CURVES // max(1, len(tables)))
    shown = sum(min(methods, len(table.rows)) for table in tables)
    points = max(_FEWEST, min(_MOST, _POINTS // (10 * max(1, shown))))
    return Detail(
        tables=25_000 * len(tables) + 2_500 * rows < _BYTES,
        charts=60_000 * len(tables) + 5_500 * rows < _BYTES,
        runs=runs <= _DOTS,
        methods=methods,
        points=points,
    )


def strip(table: PairTable, detail: Detail) -> Markup:
    return picture(
        f"strip-{table.pair}",
        f"Test accuracy of every run of {table.pair}, by method",
        lambda width: accuracy.strip(table, width, runs=detail.runs),
    )


def forests(table: PairTable) -> list[Small]:
    return [
        _small(f"against {name}", f"forest-{word}-{table.pair}", chart)
        for word, name in table.references.items()
        if (chart := accuracy.forest(table, word, SMALL)) is not None
    ]


def validations(table: PairTable, rows: pd.DataFrame, detail: Detail) -> list[Small]:
    """Validation accuracy, one chart per method.

    Args:
        rows: Curves of this pair.
    """
    charts = _validations(table, rows, detail)
    return [_small(name, f"validation-{name}-{table.pair}", chart) for name, chart in charts]


def losses(table: PairTable, rows: pd.DataFrame, detail: Detail) -> list[Small]:
    """Every named loss, one chart per method; `rows` as for `validations`."""
    thin = curves.thinned(rows, detail.points)
    found = []
    for method in detail.with_curves(table):
        mine = thin[thin["method"] == method]
        if (chart := curves.losses(mine, SMALL)) is not None:
            name = f"loss-{method}-{table.pair}"
            found.append(_small(method, name, chart, curves.loss_key(mine)))
    return found


def teachers(table: pd.DataFrame) -> list[Small]:
    """Validation accuracy and losses of every teacher.

    Args:
        table: `Results.teacher_curves`.
    """
    found = []
    for (dataset, teacher), rows in table.groupby(["dataset", "teacher"], sort=False):
        name = str(teacher)
        thin = curves.thinned(rows, _MOST).assign(method=name, seed="the teacher's")
        domain = curves.validation_domain(thin)
        for what, chart, key in (
            ("validation accuracy, %", curves.validation(thin, name, [], domain, SMALL), ()),
            ("losses", curves.losses(thin, SMALL), curves.loss_key(thin)),
        ):
            if chart is not None:
                title, slug = f"{teacher} on {dataset}: {what}", f"{what}-{teacher}-{dataset}"
                found.append(_small(title, slug, chart, key))
    return found


def qualities(scores: pd.DataFrame, teacher: str) -> list[Small]:
    """Q, S, I and E over the depth of one teacher."""
    charts = ((score, layers.depth(scores, score, SMALL)) for score in layers.SCORES)
    return [
        _small(layers.SCORES[score], f"{score}-{teacher}", chart)
        for score, chart in charts
        if chart is not None
    ]


def costs(tables: Sequence[PairTable], metrics: Sequence[Metric]) -> list[Small]:
    """Accuracy against each charted metric, for pairs on the same images."""
    charts = ((metric, cost.against(tables, metric, SMALL)) for metric in metrics if metric.charted)
    return [
        _small(f"against {metric.label}", f"{metric.name}-{tables[0].dataset}", chart)
        for metric, chart in charts
        if chart is not None
    ]


def sweeps(found: Sweep) -> list[Small]:
    return [
        _small(
            layers.SCORES[score],
            f"sweep-{score}-{found.pair}",
            sweep.scatter(found.points, score, SMALL),
        )
        for score in layers.SCORES
    ]


def pictures(results: Results, tables: Sequence[PairTable], title: str) -> dict[str, bytes]:
    """The PNG files next to the page, by the names of the outputs."""
    much = detail(tables)
    strips = [
        accuracy.strip(table, WIDE, runs=much.runs).properties(
            title=f"{table.pair}: {scale_of(table)}"
        )
        for table in tables
        if table.rows
    ]
    lines = [
        chart.properties(title=f"{table.pair}: {name}")
        for table in tables
        for name, chart in _validations(table, _curves_of(results, table), much)
    ]
    depths = [
        chart.properties(title=_titled(f"{teacher} on {dataset}: {layers.SCORES[score]}", scores))
        for (dataset, teacher), scores in results.scores.groupby(["dataset", "teacher"])
        for score in layers.SCORES
        if (chart := layers.depth(scores, score, SMALL)) is not None
    ]
    sizes = [
        chart.properties(title=f"{dataset}: {scale_of(group[0])}")
        for dataset, group in by_dataset(tables)
        for metric in results.metrics
        if metric.charted and (chart := cost.against(group, metric, SMALL)) is not None
    ]
    empty = [
        note("Nothing to draw: no run finished, no layer was scored or nothing was validated.")
    ]
    return {
        "accuracy": png(strips or empty, title),
        "curves": png(
            lines or empty, "Validation accuracy, % (gray: labels; dashed: kd)", columns=3
        ),
        "quality": png(depths or empty, "Knowledge quality of the teachers’ layers", columns=4),
        "size": png(sizes or empty, "Accuracy against cost", columns=3),
    }


def _titled(title: str, scores: pd.DataFrame) -> alt.TitleParams:
    """A title with the chosen layers below it, a few on each line."""
    names = scores.sort_values("depth").loc[scores["chosen"].astype(bool), "layer"].tolist()
    lines = textwrap.wrap(f"chosen: {', '.join(names)}", 50) if names else []
    return alt.TitleParams(title, subtitle=lines)


def scale_of(table: PairTable) -> str:
    """Context for an accuracy: `360 test images, chance 10.0%`."""
    digits = decimals(table.num_images)
    return f"{plural(table.num_images, 'test image')}, chance {with_sign(table.chance, digits)}"


def by_dataset(tables: Sequence[PairTable]) -> Iterator[tuple[str, list[PairTable]]]:
    """Pairs on the same images, whose accuracies can be compared on one axis."""
    for dataset in dict.fromkeys(table.dataset for table in tables):
        yield dataset, [table for table in tables if table.dataset == dataset]


def _curves_of(results: Results, table: PairTable) -> pd.DataFrame:
    return results.curves[results.curves["pair"] == table.pair]


def _validations(table: PairTable, rows: pd.DataFrame, detail: Detail) -> list[tuple[str, Chart]]:
    thin = curves.thinned(rows, detail.points)
    domain = curves.validation_domain(thin)
    references = list(table.references.values())
    charts = (
        (method, curves.validation(thin, method, references, domain, SMALL))
        for method in detail.with_curves(table)
    )
    return [(name, chart) for name, chart in charts if chart is not None]


def _small(title: str, name: str, chart: Chart, key: Sequence[tuple[str, str, str]] = ()) -> Small:
    return Small(title, picture(name, title, lambda _: chart, small=True), key)
