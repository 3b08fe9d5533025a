"""Where a training run diverged: the first loss that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """The first value of a run that is NaN or infinite.

    Attributes:
        term: The name of a loss; None: the weights, after a step whose losses were finite.
        epoch, step: Both from 1.
    """

    term: str | None
    epoch: int
    step: int

    def __str__(self) -> str:
        what = "the weights" if self.term is None else f"the loss {self.term!r}"
        return f"{what} became NaN or infinite in epoch {self.epoch}, step {self.step}"


def first_divergence(
    losses: Sequence[Tensor], names: Sequence[str], epoch: int
) -> Divergence | None:
    """The first loss of an epoch that is not finite; waits for the device.

    Args:
        losses: (terms,) of each step of the epoch so far.
        names: Of the terms.
        epoch: From 1.
    """
    if not losses:
        return None
    wrong = (~torch.stack(list(losses)).isfinite()).nonzero()
    if not len(wrong):
        return None
    step, term = wrong[0].tolist()
    return Divergence(names[term], epoch, step + 1)
