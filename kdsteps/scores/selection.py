"""Select the layers of a teacher to learn from by their scores, with reasons."""

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
        depth: Its index among the scored layers, 0 for the first.
        rank: Its rank by score, 1 for the highest.
        score: The score that decided.
        reason: The reason in words, such as "quality 1.204 is the 2nd highest of 9 layers".
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

    The authors' code has lists of layers but no rule; this rule yields lists of the same form.
    Of two layers with the same score, the deeper one is preferred, which is nearer to the logits.

    Args:
        scores: For each layer, in order of depth, its scores by name.
        by: The score that decides.
        count: How many layers, at least 1.

    Raises:
        KdstepsError: Fewer layers were scored than `count`.
        ValueError: The criterion is not known, a score is missing or not finite, or `count` < 1.

    Source: arXiv:2511.14981, code at commit 3abceed: Scripts/ConfigUtils.py.
    """
    if by not in get_args(Criterion):
        raise ValueError(f"layers are chosen by one of {get_args(Criterion)}, not {by!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if count > len(scores):
        raise KdstepsError(
            f"score: {count} layers should be selected, but {len(scores)} were scored "
            f"({', '.join(scores)}); score more layers or select fewer"
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
