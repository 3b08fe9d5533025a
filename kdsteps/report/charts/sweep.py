"""Accuracy of students that learned from one layer each, over a score of that layer."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kdsteps.report.charts.layers import SCORES
from kdsteps.report.charts.theme import LIGHT, Chart
from kdsteps.report.formats import with_sign

HEIGHT = 180


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
    near = alt.Scale(zero=False, padding=16)
    x = alt.X(f"{score}:Q", title=SCORES[score], scale=near, axis=alt.Axis(tickCount=4, grid=False))
    y = alt.Y("percent:Q", title="test accuracy, %", scale=near, axis=alt.Axis(tickCount=4))
    base = alt.Chart(rows).encode(x=x, y=y)
    layers = [
        base.mark_circle(color=LIGHT["accent"], size=70, opacity=0.9).encode(description="label"),
        base.mark_text(dy=-11, fontSize=10).encode(text="layer:N"),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT)
