"""Accuracy of students that learned from one layer each, over a score of that layer."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kdsteps.report.charts.labels import places
from kdsteps.report.charts.layers import SCORES
from kdsteps.report.charts.theme import LIGHT, Chart
from kdsteps.report.formats import with_sign

HEIGHT = 180
_ROOM = 16  # pixels between the outermost points and the edges


def scatter(points: pd.DataFrame, score: str, width: int) -> Chart:
    """One point per layer.

    Args:
        points: layer, accuracy as a fraction, and the column `score`.
        score: A key of `charts.layers.SCORES`.
    """
    rows = points.assign(
        percent=100 * points["accuracy"],
        label=[
            f"{layer}: {with_sign(accuracy)}, {value:.3f}"
            for layer, accuracy, value in zip(
                points["layer"], points["accuracy"], points[score], strict=True
            )
        ],
    )
    near = alt.Scale(zero=False, nice=False, padding=_ROOM)
    x = alt.X(f"{score}:Q", title=SCORES[score], scale=near, axis=alt.Axis(tickCount=4, grid=False))
    y = alt.Y("percent:Q", title="test accuracy, %", scale=near, axis=alt.Axis(tickCount=4))
    base = alt.Chart(rows).encode(x=x, y=y)
    marks = base.mark_circle(color=LIGHT["accent"], size=70, opacity=0.9)
    layers: list[Chart] = [marks.encode(description="label")]
    near_points = zip(
        _along(rows[score], width),
        HEIGHT - _along(rows["percent"], HEIGHT),
        rows["layer"],
        strict=True,
    )
    for number, place in enumerate(places(near_points, width)):
        if place is not None:
            name = alt.Chart(rows.iloc[[number]]).mark_text(
                align="right" if place.left else "left", dx=-9 if place.left else 9, dy=place.dy
            )
            layers.append(name.encode(x=x, y=y, text="layer:N"))
    return alt.layer(*layers).properties(width=width, height=HEIGHT)


def _along(values: pd.Series, length: int) -> pd.Series:
    """Where values are on an axis of some pixels, with its padding."""
    span = values.max() - values.min() or 1.0
    along: pd.Series = _ROOM + (length - 2 * _ROOM) * (values - values.min()) / span
    return along
