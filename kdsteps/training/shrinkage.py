"""Whether weight decay outweighs the losses, so that the weights of a student fade away."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger("kdsteps")

SHRUNK = 0.05
"""Fraction of their size below which weights are said to fade. Of a teacher that was trained well
by the CIFAR-100 recipe (240 epochs, weight decay 5e-4), 0.22 of the size is left; of a student that
ended at chance by the same recipe, 0.02 (docs/findings.md)."""


class Shrinkage:
    """How much smaller the weights of a network are than when its training began.

    Attributes:
        start: (T,) norms of its trainable tensors at the beginning.
    """

    def __init__(self, network: nn.Module) -> None:
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.start = self._norms()
        self._told = False

    def fraction(self) -> float:
        """The median over the tensors of norm over norm at the beginning; waits for the device.

        Tensors that begin as zeros, such as biases, do not count; 1 where there are no others.
        """
        counts = self.start > 0
        if not counts.any():
            return 1.0
        return float((self._norms()[counts] / self.start[counts]).median())

    def warn(self) -> None:
        """Log a warning, once, if the weights fade away."""
        if self._told or (left := self.fraction()) >= SHRUNK:
            return
        self._told = True
        log.warning(
            "the weights have shrunk to %.1f %% of their initial size: weight decay outweighs the "
            "losses, and the network may learn nothing; try a lower weight_decay, a higher weight "
            "of the method's loss, or `optimizer: adamw`",
            100 * left,
        )

    @torch.no_grad()
    def _norms(self) -> Tensor:
        if not self._weights:
            return torch.zeros(0)
        return torch.stack([weight.float().norm() for weight in self._weights])
