"""Validation accuracy and every loss term by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from kdsteps.report.charts.theme import LIGHT, SERIES, Chart, log_ticks, whole_ticks
from kdsteps.report.results import finished

NOT_LOSSES = ("learning_rate", "train_accuracy", "validation_accuracy", "validation_loss", "total")
HEIGHT = 130
MOST_LINES = 6  # seeds; more of them are drawn as one range
_ABRUPT = 30  # losses that fall further than this are shown on a logarithmic scale


def thinned(curves: pd.DataFrame, points: int) -> pd.DataFrame:
    """About `points` epochs, evenly spaced, including the first and the last."""
    epochs = sorted(curves["epoch"].unique())
    if len(epochs) <= points:
        return curves
    steps = {epochs[round(k * (len(epochs) - 1) / (points - 1))] for k in range(points)}
    return curves[curves["epoch"].isin(steps)]


def validation(
    curves: pd.DataFrame,
    method: str,
    references: Sequence[str],
    domain: Sequence[float],
    width: int,
) -> Chart | None:
    """Validation accuracy of one method, its seeds, and the means of the references.

    Args:
        curves: Of one pair.
        references: Methods to compare with: the first as a solid line, the second dashed.
        domain: Lowest and highest accuracy shown, as fractions, the same for all methods.
    """
    rows = curves[curves["name"] == "validation_accuracy"].assign(
        percent=lambda t: 100 * t["value"]
    )
    rows = rows.dropna(subset=["value"])
    mine = rows[rows["method"] == method]
    if mine.empty:
        return None
    scale = alt.Scale(domain=[100 * value for value in domain], nice=False)
    x = alt.X("epoch:Q", title="epoch", axis=_epochs(mine), scale=_span(mine))
    y = alt.Y("percent:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4))
    layers: list[Chart] = []
    for name, dash in zip(references, ([1, 0], [4, 3]), strict=False):
        if name == method:
            continue
        mean = _mean(rows[rows["method"] == name], "percent")
        layers.append(
            _line(
                mean.assign(label=f"{name}, mean"),
                color=LIGHT["quiet"],
                strokeWidth=1.5,
                strokeDash=dash,
            ).encode(x=x, y=y, description="label")
        )
    layers.append(_seeds(mine, x, y, color=LIGHT["accent"]))
    mean = _mean(mine, "percent").assign(label=f"{method}, mean")
    layers.append(
        _line(mean, color=LIGHT["accent"], strokeWidth=2.5).encode(x=x, y=y, description="label")
    )
    return alt.layer(*layers).properties(width=width, height=HEIGHT)


def validation_domain(curves: pd.DataFrame) -> tuple[float, float]:
    """The range of accuracies to show: without the lowest 5%, which are first epochs mostly.

    At least half of the values of every method are in it.
    """
    rows = curves[curves["name"] == "validation_accuracy"].dropna(subset=["value"])
    values = rows["value"]
    if values.empty:
        return 0.0, 1.0
    halves = rows.groupby("method")["value"].median()
    low, high = float(min(values.quantile(0.05), halves.min())), float(values.max())
    room = max(0.01, 0.05 * (high - low))
    return max(0.0, low - room), min(1.0, high + room)


def losses(curves: pd.DataFrame, width: int) -> Chart | None:
    """Every loss term of one method on one pair: its seeds, and thick lines for means.

    A run that diverged is among the seeds, as far as it goes, and is part of no mean.
    """
    rows = curves[~curves["name"].isin(NOT_LOSSES)]
    rows = rows.dropna(subset=["value"])
    if rows.empty:
        return None
    names = list(dict.fromkeys(rows["name"]))
    low, high = rows["value"].min(), rows["value"].max()
    wide = low > 0 and high / low > _ABRUPT
    x = alt.X("epoch:Q", title="epoch", axis=_epochs(rows), scale=_span(rows))
    scale = alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=True)
    axis = alt.Axis(values=log_ticks(low, high), format="~g") if wide else alt.Axis(tickCount=4)
    y = alt.Y("value:Q", title=None, scale=scale, axis=axis)
    styles = _styles(names)
    colors = alt.Scale(domain=names, range=[LIGHT[color] for color, _ in styles])
    dashes = alt.Scale(domain=names, range=[_DASHES[line] for _, line in styles])
    look: dict[str, Any] = {"color": alt.Color("name:N", scale=colors, legend=None)}
    if len(names) > len(SERIES):
        look["strokeDash"] = alt.StrokeDash("name:N", scale=dashes, legend=None)
    means = finished(rows).groupby(["name", "epoch"], sort=False, as_index=False)["value"].mean()
    means = means.assign(label=means["name"] + ", mean")
    layers = [
        _seeds(rows, x, y, **look),
        _line(means, strokeWidth=2).encode(x=x, y=y, description="label", **look),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT)


def loss_key(curves: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The legend of `losses`: name, color (of `theme.LIGHT`) and CSS style of each line."""
    rows = curves[~curves["name"].isin(NOT_LOSSES)]
    names = list(dict.fromkeys(rows.dropna(subset=["value"])["name"]))
    return [(name, *style) for name, style in zip(names, _styles(names), strict=True)]


_DASHES = {"solid": [1, 0], "dashed": [5, 3], "dotted": [1, 2]}


def _styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """A color and a kind of line for each loss term."""
    lines, colors = list(_DASHES), len(SERIES)
    return [
        (f"series{place % colors + 1}", lines[place // colors % len(lines)])
        for place in range(len(names))
    ]


def _seeds(rows: pd.DataFrame, x: alt.X, y: alt.Y, *, color: Any, **look: Any) -> alt.Chart:
    """A thin line for each seed; for many seeds, the range over all of them.

    Args:
        y: Of the column that is shown.
        color: Of all lines, or by loss term.
    """
    color = alt.value(color) if isinstance(color, str) else color
    if rows["seed"].nunique() <= MOST_LINES:
        lines = _line(rows.assign(label=_labels(rows)), strokeWidth=0.8, opacity=0.45)
        seeds: alt.Chart = lines.encode(
            x=x, y=y, color=color, detail="seed:N", description="label", **look
        )
        return seeds
    column = str(y.shorthand).removesuffix(":Q")
    ends = rows.groupby(["name", "epoch"], sort=False)[column].agg(["min", "max"]).reset_index()
    low = y.copy()
    low.shorthand = "min:Q"
    chart = alt.Chart(ends)
    if rows["epoch"].nunique() > 1:
        marks = chart.mark_area(opacity=0.2, clip=True)
    else:
        marks = chart.mark_rule(strokeWidth=5, opacity=0.3, clip=True)
    ranges: alt.Chart = marks.encode(x=x, y=low, y2="max:Q", color=color)
    return ranges


def _line(rows: pd.DataFrame, **style: Any) -> alt.Chart:
    """Lines over the epochs; points where there is one epoch, which a line would not show."""
    point: Any = False
    if rows["epoch"].nunique() == 1:
        point = {"size": 45, **({"color": style["color"]} if "color" in style else {})}
    lines: alt.Chart = alt.Chart(rows).mark_line(clip=True, point=point, **style)
    return lines


def _epochs(rows: pd.DataFrame) -> alt.Axis:
    ticks = whole_ticks(int(rows["epoch"].min()), int(rows["epoch"].max()))
    return alt.Axis(grid=False, values=ticks, format="d")


def _labels(rows: pd.DataFrame) -> list[str]:
    runs = zip(rows["method"], rows["seed"], rows["name"], strict=True)
    return [f"{method}, seed {seed}: {name.replace('_', ' ')}" for method, seed, name in runs]


def _span(rows: pd.DataFrame) -> alt.Scale:
    first, last = int(rows["epoch"].min()), int(rows["epoch"].max())
    ends: list[float] = [first, last] if first < last else [first - 0.5, first + 0.5]
    return alt.Scale(domain=ends, nice=False)


def _mean(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return finished(rows).groupby("epoch")[[column]].mean().reset_index()
