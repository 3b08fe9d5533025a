"""Accuracy against what a network costs: its size, its arithmetic, its time for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from kdsteps.report.charts.theme import LIGHT, Chart, log_ticks
from kdsteps.report.formats import count, percent
from kdsteps.report.tables import PairTable

COSTS = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds for one image",
    "latency_ms": "time for one image, ms",
}
HEIGHT = 180
_FAR = 5  # costs that differ by more are shown on a logarithmic scale


def against(tables: Sequence[PairTable], runs: pd.DataFrame, cost: str, width: int) -> Chart | None:
    """Mean accuracy of every student, and of the teachers, over one cost.

    Args:
        tables: Of all pairs that share their images.
        cost: A key of `COSTS`.
    """
    rows = [row for table in tables for row in _rows(table, runs, cost) if row["cost"] > 0]
    if not rows:
        return None
    data = pd.DataFrame(rows).drop_duplicates(["label"])
    costs = data["cost"]
    far = costs.max() / costs.min() > _FAR
    low, high = (costs.min() / 2, costs.max() * 2) if far else (0.0, 1.2 * costs.max())
    scale = alt.Scale(type="log" if far else "linear", domain=[low, high], nice=False)
    axis = alt.Axis(format="~g" if cost == "latency_ms" else "~s", tickCount=4, grid=False)
    if far:
        axis.values = log_ticks(low, high)
    x = alt.X("cost:Q", title=COSTS[cost], scale=scale, axis=axis)
    y = alt.Y(
        "accuracy:Q",
        title="test accuracy, %",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=5),
    )
    colour = alt.Color(
        "role:N",
        legend=None,
        scale=alt.Scale(
            domain=["teacher", "best", "other"],
            range=[LIGHT["ink"], LIGHT["accent"], LIGHT["series1"]],
        ),
    )
    shape = alt.Shape(
        "role:N",
        legend=None,
        scale=alt.Scale(domain=["teacher", "best", "other"], range=["diamond", "circle", "circle"]),
    )
    base = alt.Chart(data)
    points = base.mark_point(filled=True, size=64, opacity=0.85).encode(
        x=x, y=y, color=colour, shape=shape, description="label"
    )
    named = data[data["role"] != "other"].assign(
        left=lambda t: t["cost"] > (costs.min() * costs.max()) ** 0.5
    )
    names = [
        alt.Chart(named[named["left"] == left])
        .mark_text(align="right" if left else "left", dx=-9 if left else 9, fontSize=11)
        .encode(x=x, y=y, text="name:N", color=colour)
        for left in (True, False)
    ]
    return alt.layer(points, *names).properties(width=width, height=HEIGHT)


def _rows(table: PairTable, runs: pd.DataFrame, cost: str) -> list[dict[str, Any]]:
    price = float(
        runs.loc[runs["pair"] == table.pair, cost].median()
    )  # one network for all methods
    found: list[dict[str, Any]] = [
        {
            "name": f"{table.student_name}, {row.method}",
            "role": "best" if row is table.best else "other",
            "cost": price,
            "accuracy": 100 * row.accuracy.mean,
            "label": f"{table.pair}, {row.method}: {percent(row.accuracy.mean)} %, {count(price)}",
        }
        for row in table.rows
        if pd.notna(price)
    ]
    if table.teacher is not None and pd.notna(table.teacher[cost]):
        found.append(
            {
                "name": table.teacher_name,
                "role": "teacher",
                "cost": float(table.teacher[cost]),
                "accuracy": 100 * table.teacher["accuracy"],
                "label": f"teacher {table.teacher_name}: {percent(table.teacher['accuracy'])} %, "
                f"{count(table.teacher[cost])}",
            }
        )
    return found
