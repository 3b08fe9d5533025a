"""Validation accuracy and every loss term by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from kdsteps.report.charts.theme import LIGHT, SERIES, Chart, log_ticks, whole_ticks
from kdsteps.report.results import finished

NOT_LOSSES = ("learning_rate", "train_accuracy", "validation_accuracy", "validation_loss", "total")
HEIGHT = 130
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
    """Validation accuracy of one method, one line per seed, with the means of the references.

    Args:
        curves: Of one pair.
        references: Methods to compare with: the first as a solid line, the second dashed.
        domain: Lowest and highest accuracy shown, as fractions, the same for all methods.
    """
    rows = curves[curves["name"] == "validation_accuracy"].assign(
        percent=lambda t: 100 * t["value"]
    )
    mine = rows[rows["method"] == method]
    if mine.empty:
        return None
    mine = mine.assign(label=_labels(mine))
    scale = alt.Scale(domain=[100 * value for value in domain], nice=False)
    x = alt.X("epoch:Q", title="epoch", axis=_epochs(mine), scale=_span(mine))
    y = alt.Y("percent:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4))
    layers: list[Chart] = []
    for name, dash in zip(references, ([1, 0], [4, 3]), strict=False):
        if name == method:
            continue
        mean = _mean(rows[rows["method"] == name], "percent")
        layers.append(
            alt.Chart(mean.assign(label=f"{name}, mean"))
            .mark_line(color=LIGHT["quiet"], strokeWidth=1.5, strokeDash=dash, clip=True)
            .encode(x=x, y=y, description="label")
        )
    layers.append(
        alt.Chart(mine)
        .mark_line(color=LIGHT["accent"], strokeWidth=1, opacity=0.55, clip=True)
        .encode(x=x, y=y, detail="seed:N", description="label")
    )
    mean = _mean(mine, "percent").assign(label=f"{method}, mean")
    layers.append(
        alt.Chart(mean)
        .mark_line(color=LIGHT["accent"], strokeWidth=2.5, clip=True)
        .encode(x=x, y=y, description="label")
    )
    return alt.layer(*layers).properties(width=width, height=HEIGHT)


def validation_domain(curves: pd.DataFrame) -> tuple[float, float]:
    """The range of accuracies to show: without the lowest 5%, which are first epochs mostly."""
    values = curves.loc[curves["name"] == "validation_accuracy", "value"].dropna()
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.quantile(0.05)), float(values.max())
    room = max(0.01, 0.05 * (high - low))
    return max(0.0, low - room), min(1.0, high + room)


def losses(curves: pd.DataFrame, width: int) -> Chart | None:
    """Every loss term of one method on one pair: thick lines for means, thin ones for seeds.

    A run that diverged has a thin line, as far as it goes, and is part of no mean.
    """
    rows = curves[~curves["name"].isin(NOT_LOSSES)]
    rows = rows[rows["value"].map(pd.notna)]
    if rows.empty:
        return None
    names = list(dict.fromkeys(rows["name"]))
    rows = rows.assign(label=_labels(rows))
    low, high = rows["value"].min(), rows["value"].max()
    wide = low > 0 and high / low > _ABRUPT
    x = alt.X("epoch:Q", title="epoch", axis=_epochs(rows), scale=_span(rows))
    scale = alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=True)
    axis = alt.Axis(values=log_ticks(low, high), format="~g") if wide else alt.Axis(tickCount=4)
    y = alt.Y("value:Q", title=None, scale=scale, axis=axis)
    colors = [SERIES[place % len(SERIES)] for place in range(len(names))]
    color = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=colors),
        legend=alt.Legend(columns=2, labelLimit=90, symbolType="stroke", symbolOpacity=1),
    )
    means = finished(rows).groupby(["name", "epoch"], sort=False, as_index=False)["value"].mean()
    means = means.assign(label=means["name"] + ", mean")
    layers = [
        alt.Chart(rows)
        .mark_line(strokeWidth=0.8, opacity=0.35)
        .encode(x=x, y=y, color=color, detail="seed:N", description="label"),
        alt.Chart(means)
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, color=color, description="label"),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT)


def _epochs(rows: pd.DataFrame) -> alt.Axis:
    ticks = whole_ticks(int(rows["epoch"].min()), int(rows["epoch"].max()))
    return alt.Axis(grid=False, values=ticks, format="d")


def _labels(rows: pd.DataFrame) -> list[str]:
    runs = zip(rows["method"], rows["seed"], rows["name"], strict=True)
    return [f"{method}, seed {seed}: {name.replace('_', ' ')}" for method, seed, name in runs]


def _span(rows: pd.DataFrame) -> alt.Scale:
    return alt.Scale(domain=[int(rows["epoch"].min()), int(rows["epoch"].max())], nice=False)


def _mean(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return finished(rows).groupby("epoch")[[column]].mean().reset_index()
