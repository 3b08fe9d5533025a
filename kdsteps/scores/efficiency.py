"""Efficiency E: how wide the gap between classes is, measured by the size of the features."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdsteps.scores.pairs import PairStatistics


@dataclass(frozen=True)
class Efficiency:
    """The components of a layer's efficiency.

    Attributes:
        gap: Smallest distance from an image of a class to another class, mean over classes.
        norm: Mean norm of the features, each class counting the same.
        density: Correction for the number of training images, at least 1 where there are 4.
    """

    gap: float
    norm: float
    density: float

    @property
    def value(self) -> float:
        """E, at least 0, greater is better."""
        return 2.0 * self.gap / self.norm * self.density


def efficiency(pairs: PairStatistics, *, train_size: int, width: int) -> Efficiency:
    """How wide the gap between classes is, measured by the size of the features.

    Args:
        pairs: Of one layer.
        train_size: Images that the teacher was trained on, at least 1.
        width: D. The density correction is (train_size / pi)^(1/r), where r is the smaller one of
            the sample's size and D. The authors meant the rank of the features, but their code
            makes zeros positive before it counts what is not zero; both variants keep this.

    Source: arXiv:2511.14981 and its code (Scripts/TrainerUtils.py, Arch/Analysis/Analysis.py).
    """
    if train_size < 1:
        raise ValueError(f"train_size must be at least 1, not {train_size}")
    num_entries = min(int(pairs.counts.sum()), width)
    return Efficiency(
        gap=pairs.nearest.mean().item(),
        norm=pairs.mean_norms.mean().item(),
        density=(train_size / math.pi) ** (1.0 / num_entries),
    )
