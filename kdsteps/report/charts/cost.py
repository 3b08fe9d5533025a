"""Accuracy against the cost of the deployed network: parameters, MACs, latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import altair as alt
import pandas as pd

from kdsteps.evaluation.metrics import Metric
from kdsteps.report.charts.labels import SHIFTS, places
from kdsteps.report.charts.theme import LIGHT, Chart, log_ticks
from kdsteps.report.formats import heading, value_of, with_sign
from kdsteps.report.tables import MethodRow, PairTable

HEIGHT = 180
_FAR = 5  # costs that differ by more are shown on a logarithmic scale


def against(tables: Sequence[PairTable], metric: Metric, width: int) -> Chart | None:
    """Mean accuracy of every student, and of the teachers, over one metric of cost.

    Args:
        tables: Of all pairs on the same images.
    """
    rows = [row for table in tables for row in _rows(table, metric) if row["cost"] > 0]
    if not rows:
        return None
    data = pd.DataFrame(rows).drop_duplicates(["pair", "name"])  # a teacher of several pairs: once
    costs = data["cost"]
    far = costs.max() / costs.min() > _FAR
    low, high = (costs.min() / 2, costs.max() * 2) if far else (0.0, 1.2 * costs.max())
    scale = alt.Scale(type="log" if far else "linear", domain=[low, high], nice=False)
    axis = alt.Axis(format="~s" if metric.unit == "count" else "~g", tickCount=4, grid=False)
    if far:
        axis.values = log_ticks(low, high)
    x = alt.X("cost:Q", title=heading(metric), scale=scale, axis=axis)
    y = alt.Y(
        "accuracy:Q",
        title="test accuracy, %",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(tickCount=5),
    )
    color = alt.Color(
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
        x=x, y=y, color=color, shape=shape, description="label"
    )
    named = _named(data, low, high, far=far, width=width)
    names = [
        alt.Chart(group)
        .mark_text(align="right" if left else "left", dx=-9 if left else 9, dy=dy, fontSize=11)
        .encode(x=x, y=y, text="name:N", color=color)
        for left, dy in product((True, False), SHIFTS)
        if len(group := named[(named["left"] == left) & (named["dy"] == dy)])
    ]
    return alt.layer(points, *names).properties(width=width, height=HEIGHT)


def _named(data: pd.DataFrame, low: float, high: float, *, far: bool, width: int) -> pd.DataFrame:
    """The teachers and best methods whose names fit, with their place: `left` and `dy`."""
    warp = math.log if far else float
    start = warp(low) if low > 0 else 0.0
    span = warp(high) - start
    top, range_ = data["accuracy"].max(), max(1e-9, data["accuracy"].max() - data["accuracy"].min())
    rows = data[data["role"] != "other"].sort_values("role", ascending=False).to_dict("records")
    points = [
        (
            width * (warp(row["cost"]) - start) / span,
            HEIGHT * (top - row["accuracy"]) / range_,
            row["name"],
        )
        for row in rows
    ]
    found = [
        row | {"left": place.left, "dy": place.dy}
        for row, place in zip(rows, places(points, width), strict=True)
        if place is not None
    ]
    return pd.DataFrame(found, columns=[*data.columns, "left", "dy"])


def _rows(table: PairTable, metric: Metric) -> list[dict[str, Any]]:
    found = [_student(table, row, metric) for row in table.rows if metric.name in row.metrics]
    accuracy, cost = table.teacher_accuracy, (table.teacher or {}).get(metric.name)
    if accuracy is not None and pd.notna(cost):
        found.append(
            {
                "pair": "",
                "name": table.teacher_name,
                "role": "teacher",
                "cost": float(cost),
                "accuracy": 100 * accuracy,
                "label": f"teacher {table.teacher_name}: {_words(accuracy, metric, float(cost))}",
            }
        )
    return found


def _student(table: PairTable, row: MethodRow, metric: Metric) -> dict[str, Any]:
    """One method at the cost of the network that it deploys."""
    cost = row.metrics[metric.name].mean
    return {
        "pair": table.pair,
        "name": f"{table.student_name}, {row.method}",
        "role": "best" if row is table.best else "other",
        "cost": cost,
        "accuracy": 100 * row.accuracy.mean,
        "label": f"{table.pair}, {row.method}: {_words(row.accuracy.mean, metric, cost)}",
    }


def _words(accuracy: float, metric: Metric, cost: float) -> str:
    """`93.1%, latency, ms: 0.26`."""
    return f"{with_sign(accuracy)}, {heading(metric)}: {value_of(metric, cost)}"
