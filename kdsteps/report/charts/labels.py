"""Names beside the points of a chart, where they cover neither each other nor the edge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_LETTER, LINE = 6.2, 13  # pixels of a letter and of a line of names, at a font size of 11
_GAP = 9  # between a point and its name
SHIFTS = (0, LINE, -LINE)  # of a name, downwards


@dataclass(frozen=True)
class Place:
    """Where a name goes: `left` of its point or not, and `dy` pixels below it."""

    left: bool
    dy: int


def places(points: Iterable[tuple[float, float, str]], width: float) -> list[Place | None]:
    """Places for the names of points, the most important ones first.

    Args:
        points: Left, top (in pixels) and name.
        width: Of the chart in pixels.

    Returns:
        None for a name that fits nowhere; the tooltip has it.
    """
    taken: list[tuple[float, float, float]] = []  # left end, right end, vertical center
    found = []
    for x, y, name in points:
        place = _free(x, y, _LETTER * len(name) + _GAP, width, taken)
        found.append(place)
    return found


def _free(
    x: float, y: float, length: float, width: float, taken: list[tuple[float, float, float]]
) -> Place | None:
    """The first free place beside a point, which is then taken."""
    for left in (x > width / 2, x <= width / 2):
        start, end = (x - length, x) if left else (x, x + length)
        if start < 0 or end > width:
            continue
        for dy in SHIFTS:
            box = (start, end, y + dy)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                return Place(left, dy)
    return None


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < LINE
