"""The look of charts, and their conversion to SVG in the page or PNG next to it.

A chart is drawn once in the light colors. In the page each color becomes a CSS variable, so the
same drawing works in light and dark mode; it refers to nothing outside the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup, escape

LIGHT = {
    "paper": "#faf9f6",
    "card": "#fffffe",
    "ink": "#1f242b",
    "muted": "#66707d",
    "quiet": "#a9b0ba",
    "grid": "#e4e1da",
    "accent": "#0b6e75",
    "soft": "#e3f0ef",
    "better": "#1b7d4f",
    "worse": "#b4442f",
    "series1": "#2b6cb0",
    "series2": "#c96f1b",
    "series3": "#3c8d5a",
    "series4": "#8559ad",
    "series5": "#b83f5b",
    "series6": "#2c8c9c",
    "series7": "#87693b",
    "series8": "#5d6472",
}
DARK = {
    "paper": "#15181c",
    "card": "#1c2025",
    "ink": "#e7e9ec",
    "muted": "#9aa4b0",
    "quiet": "#6a7481",
    "grid": "#30363d",
    "accent": "#4fc0c2",
    "soft": "#1d3335",
    "better": "#5cc58c",
    "worse": "#ee8a73",
    "series1": "#6fa8e6",
    "series2": "#eda35b",
    "series3": "#74c493",
    "series4": "#b993de",
    "series5": "#ec8199",
    "series6": "#66c4d3",
    "series7": "#c5a671",
    "series8": "#a3abb8",
}
SERIES = [LIGHT[f"series{number}"] for number in range(1, 9)]

WIDE, NARROW, SMALL = 780, 195, 200  # of the plot without labels, in pixels
FONT = "Liberation Sans"  # comes with vl-convert, so it need not be installed

_AXIS = {
    "labelColor": LIGHT["muted"],
    "titleColor": LIGHT["muted"],
    "titleFontWeight": "normal",
    "labelFontSize": 11,
    "titleFontSize": 11,
    "titlePadding": 8,
    "labelPadding": 6,
    "labelSeparation": 8,
    "labelFlush": False,  # else the outermost labels move towards, and onto, their neighbors
    "gridColor": LIGHT["grid"],
    "domain": False,
    "ticks": False,
    "aria": False,
}
_CONFIG: dict[str, Any] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisY": {"grid": True},
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": LIGHT["muted"],
        "labelFontSize": 11,
        "symbolStrokeWidth": 2.5,
        "symbolSize": 90,
        "columnPadding": 14,
        "labelLimit": 140,
        "aria": False,
    },
    "text": {"color": LIGHT["muted"], "fontSize": 11, "aria": False},
    "rule": {"aria": False},
    "title": {
        "color": LIGHT["ink"],
        "fontSize": 13,
        "fontWeight": "bold",
        "anchor": "start",
        "offset": 14,
        "subtitleColor": LIGHT["muted"],
        "subtitleFontSize": 11,
        "aria": False,
    },
    "concat": {"spacing": 28},
    "padding": 4,
}

Chart = alt.LayerChart | alt.Chart | alt.FacetChart


def picture(
    name: str, alternative: str, draw: Callable[[int], Chart], *, small: bool = False
) -> Markup:
    """A chart for the page: drawn wide and narrow, and the page shows the one that fits.

    Args:
        name: Unique on the page; prefixes the ids inside the drawing.
        alternative: Text for screen readers.
        draw: Returns the chart for a width in pixels.
        small: One of several side by side, drawn once.
    """
    if small:
        return Markup('<div class="plot">{}</div>').format(_svg(draw(SMALL), name, alternative))
    wide = _svg(draw(WIDE), f"{name}-wide", alternative)
    narrow = _svg(draw(NARROW), f"{name}-narrow", alternative)
    return Markup('<div class="plot wide">{}</div><div class="plot narrow">{}</div>').format(
        wide, narrow
    )


def png(charts: Sequence[Chart], title: str, *, columns: int = 1) -> bytes:
    """Charts side by side in one picture for slides, in the light colors."""
    parts = [
        _spec(chart) for chart in charts
    ]  # concatenated here: Altair copies each one many times
    datasets: dict[str, Any] = {}
    for part in parts:
        datasets |= part.pop("datasets", {})
        del part["config"], part["$schema"]
    spec = {
        "$schema": alt.SCHEMA_URL,
        "title": {"text": title, "fontSize": 16},
        "concat": parts,
        "columns": columns,
        "resolve": {"scale": {"color": "independent"}},
        "datasets": datasets,
        "config": _CONFIG,
        "background": LIGHT["card"],
        "padding": 20,
    }
    return vl_convert.vegalite_to_png(json.dumps(spec), scale=2)


def note(text: str, width: int = WIDE) -> Chart:
    """A chart with a text instead: why there is nothing to draw."""
    words = alt.Chart(pd.DataFrame([{"text": text}])).mark_text(fontSize=13, align="left")
    placed = words.encode(text="text:N", x=alt.value(0), y=alt.value(20))
    return alt.layer(placed).properties(width=width, height=60)


def log_ticks(low: float, high: float) -> list[float]:
    """Labels of a logarithmic axis: powers of ten, and numbers between them on a short one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 1000 else (1,)
    ticks = [step * 10.0**power for power in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def whole_ticks(low: int, high: int, most: int = 5) -> list[int]:
    """Whole numbers to label an axis: multiples of one step, at most about `most`.

    They end at `high` where a step divides it, as 60 does 240; if none does, `high` follows where
    there is room.
    """
    sizes = [lead * 10**power for power in range(9) for lead in (1, 2, 3, 4, 5, 6, 8)]
    steps = sorted(size for size in sizes if (high - low) / size < most)
    close = [step for step in steps if step <= 3 * steps[0]]
    step = next((step for step in close if high % step == 0), steps[0])
    ticks = list(range(low + -low % step, high + 1, step))
    return [*ticks, high] if not ticks or high - ticks[-1] > 0.6 * step else ticks


def _spec(chart: Chart) -> dict[str, Any]:
    spec = chart.to_dict(validate=False)  # vl-convert rejects invalid Vega-Lite
    spec["config"] = _CONFIG
    return spec


def _svg(chart: Chart, name: str, alternative: str) -> Markup:
    spec = _spec(chart) | {"background": "transparent"}
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec))
    opening = re.match(r"<svg[^>]*?width=\"([\d.]+)\"[^>]*?viewBox=\"([\d. -]+)\"[^>]*>", drawn)
    assert opening is not None, "vl-convert starts an SVG with its size"
    width, box = opening.groups()
    head = (
        f'<svg class="chart" role="img" aria-label="{escape(alternative)}" viewBox="{box}" '
        f'style="max-width:{1.25 * float(width):.0f}px">'
    )
    body = drawn[opening.end() :]
    body = re.sub(r"\b((?:clip|gradient)_?)\d+\b", _numbered(name), body)
    body = re.sub(_UNSEEN, "", body)
    body = re.sub(r' (?:d|transform|x2|y2)="[^"]*"', _tenths, body)
    body = body.replace(f'font-family="{FONT}"', "")
    for token, color in LIGHT.items():
        body = body.replace(f'"{color}"', f'"var(--{token})"')
    return Markup(head + body)


# Attributes for programs that edit the drawing; without them a page is half as large.
_UNSEEN = re.compile(
    r'<path [^>]*\bd="(?:M0,0h0v0h0Z)?"[^>]*/>'
    r'| (?:class|role|aria-roledescription|aria-hidden|pointer-events)="[^"]*"'
    r'| (?:opacity="1"|fill="none" stroke-miterlimit="10"|transform="translate\(0,0\)")'
)


def _tenths(attribute: re.Match[str]) -> str:
    """Round coordinates to a tenth of a pixel, which halves the bytes and cannot be seen."""
    return re.sub(r"(\d\.\d)\d+", r"\1", attribute.group())


def _numbered(name: str) -> Callable[[re.Match[str]], str]:
    """Number ids per chart; vl-convert numbers them per process."""
    seen: dict[str, str] = {}
    slug = re.sub(r"\W+", "-", name)
    return lambda match: seen.setdefault(match.group(), f"{slug}-{match.group(1)}{len(seen)}")
