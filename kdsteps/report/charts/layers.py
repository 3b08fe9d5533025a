"""Scores of a teacher's layers by depth, and which layers were selected."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kdsteps.report.charts.theme import LIGHT, Chart, whole_ticks

SCORES = {
    "quality": "Q, knowledge quality",
    "separation": "S, separation",
    "information": "I, information",
    "efficiency": "E, efficiency",
}
HEIGHT = 130


def depth(scores: pd.DataFrame, score: str, width: int) -> Chart | None:
    """One score over the layers of one teacher; chosen layers are filled.

    Args:
        scores: Rows of one teacher.
        score: A key of `SCORES`.
    """
    rows = scores.dropna(subset=[score]).sort_values("depth")
    if rows.empty:
        return None
    values = zip(rows["layer"], rows[score], rows["shape"], strict=True)
    rows = rows.assign(
        label=[f"{layer}: {value:.3f}, {'×'.join(map(str, size))}" for layer, value, size in values]
    ).drop(columns="shape")
    x = alt.X(
        "depth:Q",
        title="depth",
        axis=alt.Axis(grid=False, format="d", values=whole_ticks(0, int(rows["depth"].max()))),
        scale=alt.Scale(domain=[-0.5, float(rows["depth"].max()) + 0.5], nice=False),
    )
    room = 0.08 * (rows[score].max() - rows[score].min()) or 0.1
    scale = alt.Scale(domain=[rows[score].min() - room, rows[score].max() + room], nice=False)
    y = alt.Y(f"{score}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4))
    base = alt.Chart(rows)
    chosen = alt.Chart(rows[rows["chosen"]])
    layers = [
        base.mark_line(color=LIGHT["quiet"], strokeWidth=1.5, aria=False).encode(x=x, y=y),
        base.mark_circle(color=LIGHT["quiet"], size=34, opacity=1).encode(
            x=x, y=y, description="label"
        ),
        chosen.mark_circle(color=LIGHT["accent"], size=80, opacity=1).encode(
            x=x, y=y, description="label"
        ),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT)
