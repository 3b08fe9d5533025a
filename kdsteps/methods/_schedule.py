"""How the weight of a loss grows at the beginning of training."""

from __future__ import annotations


def warm_up(epoch: int, epochs: int) -> float:
    """The share of its weight a loss has: linear over the first `epochs`, then 1.

    Args:
        epoch: From 0; the first epoch already has a share, as where epochs are counted from 1.
        epochs: 0 for the full weight at once.
    """
    return 1.0 if epochs == 0 else min((epoch + 1) / epochs, 1.0)
