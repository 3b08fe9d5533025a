"""Numbers as text. Fractions become percentages here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from markupsafe import Markup

from kdsteps.evaluation.metrics import Metric

MISSING = "–"
_MINUS = "−"


def as_teacher(name: str) -> str:
    """A teacher's name among students: `resnet20, teacher`; `kdsteps init` names one `teacher`."""
    return name if name == "teacher" else f"{name}, teacher"


def decimals(num_images: int) -> int:
    """Decimals of a percentage over N images, of which one is worth 100 / N points."""
    return 1 if num_images < 2000 else 2


def heading(metric: Metric) -> str:
    """Label and unit of a metric, as in `latency, ms`."""
    unit = {"fraction": "%", "count": ""}.get(metric.unit, metric.unit)
    return f"{metric.label}, {unit}" if unit else metric.label


def value_of(metric: Metric, value: float | None, decimals: int = 1) -> str:
    """A value of a metric without its unit.

    Args:
        decimals: Of a percentage; other units have those of the metric.
    """
    if metric.unit == "fraction":
        return percent(value, decimals)
    return count(value) if metric.unit == "count" else number(value, metric.digits)


def with_sign(fraction: float | None, digits: int = 1) -> str:
    """A percentage with its sign, or a dash."""
    return f"{percent(fraction, digits)}%" if _known(fraction) else MISSING


def percent(fraction: float | None, digits: int = 1) -> str:
    return _printed(f"{100 * fraction:.{digits}f}") if _known(fraction) else MISSING


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return signed(None if difference is None else 100 * difference, digits)


def number(value: float | None, digits: int = 3) -> str:
    return _printed(f"{value:,.{digits}f}") if _known(value) else MISSING


def signed(value: float | None, digits: int = 1) -> str:
    return _printed(f"{value:+.{digits}f}") if _known(value) else MISSING


def p_value(p: float | None) -> str:
    """Three decimals below 0.1, and more where these would hide on which side of 0.05 it is."""
    if not _known(p):
        return MISSING
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if abs(p - 0.05) >= 0.0005 else f"{p:.5f}"


def count(value: float | None) -> str:
    """A large number with three digits and k, M, G or T."""
    if not _known(value):
        return MISSING
    rounded = float(f"{value:.3g}")
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{rounded:.3g}"


def duration(seconds: float | None) -> str:
    if not _known(seconds):
        return MISSING
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shape(sizes: Sequence[int]) -> str:
    return " × ".join(str(size) for size in sizes)


def with_code(sentence: str) -> Markup:
    """A sentence as HTML, with `what is in backquotes` as code."""
    parts = enumerate(sentence.split("`"))
    return Markup().join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in parts
    )


def listed(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _printed(number: str) -> str:
    """A number with a true minus sign; zero has no sign."""
    return number.replace("-", _MINUS) if number.strip("+-0.") else number.lstrip("+-")


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)
