"""Random draws of a method that go on unchanged after a kill."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """One fresh generator for each step, from a seed and the number of the step.

    The seed is drawn from torch's global generator at construction; seed and step travel in the
    state dict, so that a resumed run draws what it would have drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed, self.step = int(torch.randint(2**62, ())), 0

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of the next step, on `device`."""
        self.step += 1
        return torch.Generator(device).manual_seed((self.seed + self.step) % 2**63)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.seed, self.step])

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.step = state.tolist()
