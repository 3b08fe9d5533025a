"""Separation S: how much more alike images of one class are than images of different classes."""

from __future__ import annotations

from dataclasses import dataclass

from kdsteps.scores.pairs import PairStatistics


@dataclass(frozen=True)
class Separation:
    """Mean absolute cosines of a layer, within classes and between them, each from 0 to 1."""

    intra: float
    inter: float

    @property
    def value(self) -> float:
        """S, greater is better, at most 1."""
        return self.intra - self.inter


def separation(pairs: PairStatistics, *, with_diagonal: bool) -> Separation:
    """How much more alike images of one class are than images of different classes.

    Each class counts the same within classes, and each pair of classes between them, whatever
    their sizes.

    Args:
        pairs: Of one layer.
        with_diagonal: Whether an image counts as a pair with itself, of cosine 1. The authors'
            code does so, because it uses indices of the upper triangle as indices of rows; this
            adds (1 - intra) / n for a class of n images.

    Source: arXiv:2511.14981 and its code (Scripts/TrainerUtils.py, Arch/Analysis/Analysis.py).
    """
    counts = pairs.counts
    within = pairs.cosine_sums.diagonal()  # (K,)
    intra = (within + counts) / counts**2 if with_diagonal else within / (counts * (counts - 1))
    between = pairs.cosine_sums / (counts[:, None] * counts)  # (K, K)
    num_pairs = len(counts) * (len(counts) - 1)
    inter = (between.sum() - between.trace()) / num_pairs
    return Separation(intra=intra.mean().item(), inter=inter.item())
