"""All charts of a report: as SVG for the page, and as PNG for slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from kdsteps.evaluation.metrics import Metric
from kdsteps.report.charts import accuracy, cost, curves, layers, sweep
from kdsteps.report.charts.theme import SMALL, WIDE, Chart, note, picture, png
from kdsteps.report.formats import decimals, plural, with_sign
from kdsteps.report.results import Results
from kdsteps.report.sweep import Sweep
from kdsteps.report.tables import PairTable

_POINTS = 6000  # of all curves of one kind together, so that the page stays small
_FEWEST, _MOST = 24, 160  # of one curve


@dataclass(frozen=True)
class Small:
    """One of several charts side by side."""

    title: str
    drawing: Markup


def strip(table: PairTable) -> Markup:
    return picture(
        f"strip-{table.pair}",
        f"Test accuracy of every run of {table.pair}, by method",
        lambda width: accuracy.strip(table, width),
    )


def forests(table: PairTable) -> list[Small]:
    return [
        _small(f"against {name}", f"forest-{word}-{table.pair}", chart)
        for word, name in table.references.items()
        if (chart := accuracy.forest(table, word, SMALL)) is not None
    ]


def validations(table: PairTable, rows: pd.DataFrame) -> list[Small]:
    """Validation accuracy, one chart per method.

    Args:
        rows: Curves of this pair.
    """
    charts = _validations(table, rows)
    return [_small(name, f"validation-{name}-{table.pair}", chart) for name, chart in charts]


def losses(table: PairTable, rows: pd.DataFrame) -> list[Small]:
    """Every named loss, one chart per method."""
    thin = curves.thinned(rows, _budget(len(table.rows)))
    charts = (
        (row.method, curves.losses(thin[thin["method"] == row.method], SMALL)) for row in table.rows
    )
    return [
        _small(name, f"loss-{name}-{table.pair}", chart)
        for name, chart in charts
        if chart is not None
    ]


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
        for what, chart in (
            ("validation accuracy, %", curves.validation(thin, name, [], domain, SMALL)),
            ("losses", curves.losses(thin, SMALL)),
        ):
            if chart is not None:
                found.append(_small(f"{teacher} on {dataset}: {what}", f"{what}-{teacher}", chart))
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
    strips = [
        accuracy.strip(table, WIDE).properties(title=f"{table.pair}: {scale_of(table)}")
        for table in tables
        if table.rows
    ]
    lines = [
        chart.properties(title=f"{table.pair}: {name}")
        for table in tables
        for name, chart in _validations(table, results.curves[results.curves["pair"] == table.pair])
    ]
    depths = [
        chart.properties(title=f"{teacher} on {dataset}: {layers.SCORES[score]}")
        for (dataset, teacher), scores in results.scores.groupby(["dataset", "teacher"])
        for score in layers.SCORES
        if (chart := layers.depth(scores, score, SMALL)) is not None
    ]
    sizes = [
        chart.properties(title=dataset)
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


def scale_of(table: PairTable) -> str:
    """Context for an accuracy: `360 test images, chance 10.0%`."""
    digits = decimals(table.num_images)
    return f"{plural(table.num_images, 'test image')}, chance {with_sign(table.chance, digits)}"


def by_dataset(tables: Sequence[PairTable]) -> Iterator[tuple[str, list[PairTable]]]:
    """Pairs on the same images, whose accuracies can be compared on one axis."""
    for dataset in dict.fromkeys(table.dataset for table in tables):
        yield dataset, [table for table in tables if table.dataset == dataset]


def _validations(table: PairTable, rows: pd.DataFrame) -> list[tuple[str, Chart]]:
    thin = curves.thinned(rows, _budget(len(table.rows)))
    domain = curves.validation_domain(thin)
    references = list(table.references.values())
    charts = (
        (row.method, curves.validation(thin, row.method, references, domain, SMALL))
        for row in table.rows
    )
    return [(name, chart) for name, chart in charts if chart is not None]


def _budget(methods: int) -> int:
    return max(_FEWEST, min(_MOST, _POINTS // (10 * max(1, methods))))


def _small(title: str, name: str, chart: Chart) -> Small:
    return Small(title, picture(name, title, lambda _: chart, small=True))
