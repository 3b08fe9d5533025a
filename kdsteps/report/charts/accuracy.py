"""Test accuracy of every run, and differences between methods and the references."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kdsteps.report.charts.theme import LIGHT, Chart
from kdsteps.report.formats import as_teacher, decimals, percent, points, with_sign
from kdsteps.report.tables import MethodRow, PairTable

ROW, TALL_ROW = 30, 46  # pixels per method: its name at the side, or above its marks
_LONG = 16  # letters of a name that fit at the side


def strip(table: PairTable, width: int, *, runs: bool = True) -> Chart:
    """One row per method: its runs, mean and spread, and the teacher as a dashed line.

    Args:
        runs: Whether each run is a point.
    """
    digits = decimals(table.num_images)
    seeds = pd.DataFrame(
        [
            {
                "method": row.method,
                "accuracy": 100 * value,
                "role": _role(row, table),
                "label": f"{row.method}, seed {seed}: {with_sign(value, digits)}",
            }
            for row in table.rows
            for seed, value in sorted(row.values.items())
        ]
    )
    means = pd.DataFrame([_mean(row, table) for row in table.rows])
    y, row_height, names = _rows(means)
    scale, axis = _domain(table), alt.Axis(tickCount=max(4, width // 75))
    color = alt.Color("role:N", scale=_ROLES, legend=None)

    def x(column: str) -> alt.X:
        return alt.X(f"{column}:Q", title="test accuracy, %", scale=scale, axis=axis)

    layers: list[Chart] = [
        alt.Chart(means)
        .mark_rule(strokeWidth=9, opacity=0.16, strokeCap="round")
        .encode(y=y, x=x("low"), x2="high:Q", color=color),
        alt.Chart(means)
        .mark_tick(thickness=2, size=20)
        .encode(y=y, x=x("mean"), color=color, description="label"),
        alt.Chart(means)
        .mark_text(align="left", fontSize=12)
        .encode(y=y, x=alt.value(width + 10), text="text:N", color=color),
    ]
    if runs:
        dots = alt.Chart(seeds).mark_circle(size=46, opacity=0.75)
        layers.append(dots.encode(y=y, x=x("accuracy"), color=color, description="label"))
    chart = alt.layer(*layers, *names, *_teacher(table, width))
    return chart.properties(width=width, height=row_height * len(table.rows))


def forest(table: PairTable, reference: str, width: int) -> Chart | None:
    """Differences to one reference with their intervals; None where there is nothing to compare.

    Args:
        reference: A key of `table.references`.
    """
    digits = decimals(table.num_images)
    rows = [row for row in table.rows if reference in row.versus]
    if not rows:
        return None
    content = []
    for row in rows:
        comparison = row.versus[reference]
        found = comparison.difference
        known = found.low is not None and found.high is not None
        content.append(
            {
                "method": row.method,
                "mean": 100 * found.mean,
                "low": 100 * found.low if found.low is not None else None,
                "high": 100 * found.high if found.high is not None else None,
                "verdict": comparison.verdict,
                "text": points(found.mean, digits),
                "label": f"{row.method}: {points(found.mean, digits)} points"
                + (
                    f", {points(found.low, digits)} to {points(found.high, digits)}"
                    if known
                    else ""
                ),
            }
        )
    data = alt.Chart(pd.DataFrame(content))
    y, row_height, names = _rows(pd.DataFrame(content))
    color = alt.Color("verdict:N", scale=_VERDICTS, legend=None)

    def x(column: str) -> alt.X:
        scale, axis = alt.Scale(zero=True, nice=True, padding=6), alt.Axis(tickCount=5)
        return alt.X(f"{column}:Q", title="difference, points", scale=scale, axis=axis)

    zero = alt.Chart(pd.DataFrame([{"zero": 0}])).mark_rule(color=LIGHT["quiet"], strokeWidth=1.5)
    layers = [
        zero.encode(x=x("zero")),
        data.mark_rule(strokeWidth=2.5).encode(y=y, x=x("low"), x2="high:Q", color=color),
        data.mark_circle(size=70, opacity=1).encode(
            y=y, x=x("mean"), color=color, description="label"
        ),
        data.mark_text(align="left", fontSize=12).encode(
            y=y, x=alt.value(width + 8), text="text:N", color=color
        ),
    ]
    chart = alt.layer(*layers, *names)
    return chart.properties(width=width, height=row_height * len(rows))


def _rows(data: pd.DataFrame) -> tuple[alt.Y, int, list[Chart]]:
    """The axis with one row per method, the height of a row, and the names if they are above."""
    order = list(data["method"])
    if max(map(len, order)) <= _LONG:
        return alt.Y("method:N", sort=order, title=None, axis=_NAMES), ROW, []
    y = alt.Y("method:N", sort=order, title=None, axis=None)
    names = (
        alt.Chart(data)
        .mark_text(align="left", dy=-18, fontSize=12, color=LIGHT["ink"])
        .encode(y=y, x=alt.value(0), text="method:N")
    )
    return y, TALL_ROW, [names]


_NAMES = alt.Axis(labelFontSize=12, labelColor=LIGHT["ink"], labelLimit=150, grid=False)
_ROLES = alt.Scale(
    domain=["best", "reference", "other"], range=[LIGHT["accent"], LIGHT["ink"], LIGHT["series1"]]
)
_VERDICTS = alt.Scale(
    domain=["better", "worse", "undecided", "equal", "single"],
    range=[LIGHT["better"], LIGHT["worse"], LIGHT["muted"], LIGHT["muted"], LIGHT["muted"]],
)


def _role(row: MethodRow, table: PairTable) -> str:
    if row is table.best:
        return "best"
    return "reference" if row.method in table.references.values() else "other"


def _mean(row: MethodRow, table: PairTable) -> dict[str, object]:
    found, (low, high) = row.accuracy, _band(row)
    return {
        "method": row.method,
        "mean": 100 * found.mean,
        "low": low,
        "high": high,
        "role": _role(row, table),
        "text": percent(found.mean, decimals(table.num_images)),
        "label": f"{row.method}: mean {with_sign(found.mean, decimals(table.num_images))}",
    }


def _band(row: MethodRow) -> tuple[float, float]:
    """A standard deviation to either side of the mean, in percent, as far as accuracies go."""
    mean, spread = row.accuracy.mean, row.accuracy.spread or 0.0
    return 100 * max(0.0, mean - spread), 100 * min(1.0, mean + spread)


def _domain(table: PairTable) -> alt.Scale:
    """From the lowest to the highest run, mean less or plus a standard deviation, and teacher."""
    values = [100 * value for row in table.rows for value in row.values.values()]
    for row in table.rows:
        values += _band(row)
    if table.teacher_accuracy is not None:
        values.append(100 * table.teacher_accuracy)
    room = max(0.4, 0.06 * (max(values) - min(values)))
    return alt.Scale(domain=[min(values) - room, min(100.0, max(values) + room)], nice=False)


def _teacher(table: PairTable, width: int) -> list[Chart]:
    value = table.teacher_accuracy
    if value is None:
        return []
    text = f"{as_teacher(table.teacher_name)}: {percent(value, decimals(table.num_images))}"
    data = alt.Chart(pd.DataFrame([{"accuracy": 100 * value, "text": text}]))
    x = alt.X("accuracy:Q", scale=_domain(table))
    fits = 6 * len(text) < width
    words = data.mark_text(align="right" if fits else "left", dx=4 if fits else 0)
    return [
        data.mark_rule(strokeDash=[4, 4], color=LIGHT["muted"]).encode(x=x),
        words.encode(x=alt.value(width if fits else 0), y=alt.value(-12), text="text:N"),
    ]
