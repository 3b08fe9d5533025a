"""Which layers of a teacher to learn from, given the scores of all, and why these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kdsteps.errors import KdstepsError

Criterion = Literal[
    "quality", "separation", "information", "efficiency", "root_information_efficiency"
]


@dataclass(frozen=True)
class Choice:
    """A layer that was chosen.

    Attributes:
        layer: Its name.
        depth: Its place among the layers that were scored, 0 the first.
        rank: Its place by score, 1 the highest.
        score: The score that decided.
        reason: The choice in words, such as "quality 1.204 is the 2nd highest of 9 layers".
    """

    layer: str
    depth: int
    rank: int
    score: float
    reason: str


def choose_layers(
    scores: Mapping[str, Mapping[str, float]], *, by: Criterion = "quality", count: int
) -> list[Choice]:
    """The layers with the highest scores, in order of depth.

    The authors' code holds lists of layers and no rule; their lists have the form this one gives.
    Where two layers score the same, the deeper one is preferred, for it is nearer to the decision.

    Args:
        scores: For each layer, in order of depth, its scores by name.
        by: The score that decides.
        count: How many layers, at least 1.

    Raises:
        KdstepsError: Fewer layers were scored than are asked for.
        ValueError: The criterion is not known, a score is missing or not finite, or `count` < 1.

    Source: arXiv:2511.14981, code at commit 3abceed: Scripts/ConfigUtils.py.
    """
    if by not in get_args(Criterion):
        raise ValueError(f"layers are chosen by one of {get_args(Criterion)}, not {by!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if count > len(scores):
        raise KdstepsError(
            f"score: {count} layers are to be chosen and {len(scores)} were scored "
            f"({', '.join(scores)}); score more layers or ask for fewer"
        )
    layers = list(scores)
    values = [_score(layer, scores[layer], by) for layer in layers]
    best_first = sorted(range(len(layers)), key=lambda depth: (-values[depth], -depth))
    choices = [
        Choice(
            layer=layers[depth],
            depth=depth,
            rank=rank,
            score=values[depth],
            reason=f"{by.replace('_', ' ')} {values[depth]:.3f} is the {_ordinal(rank)}highest of "
            f"{len(layers)} layers",
        )
        for rank, depth in enumerate(best_first[:count], start=1)
    ]
    return sorted(choices, key=lambda choice: choice.depth)


def _score(layer: str, scores: Mapping[str, float], by: Criterion) -> float:
    if by not in scores:
        raise ValueError(f"layer {layer} has no score {by!r}, only {', '.join(scores)}")
    value = float(scores[by])
    if not math.isfinite(value):
        raise ValueError(f"layer {layer}: its {by} is {value}, not a finite number")
    return value


def _ordinal(rank: int) -> str:
    if rank == 1:
        return ""
    last_two = rank % 100
    ending = "th" if 10 <= last_two <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending} "
