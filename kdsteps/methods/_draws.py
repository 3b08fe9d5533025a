"""Random draws that continue unchanged when a run is resumed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsteps.errors import KdstepsError


class Draws(nn.Module):
    """A new generator for each step, seeded by a seed and the number of the step.

    The seed is drawn from torch's global generator at construction; seed and step are
    part of the state dict, so a resumed run draws what it would have drawn.
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


class Sampler(nn.Module):
    """Draw a positive and negatives of other classes for training images."""

    labels: Tensor
    by_class: Tensor
    first: Tensor
    counts: Tensor

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        """Args:
        labels: (M,) class numbers of the training images.
        num_classes: K.

        Raises:
            KdstepsError: All images are of one class, so there are no negatives.
        """
        super().__init__()
        labels = labels.long().cpu()
        counts = torch.bincount(labels, minlength=num_classes)  # (K,)
        if counts.max() == len(labels):
            raise KdstepsError(
                "methods.crd: all training images are of one class; it needs at least two classes"
            )
        self.draws = Draws()
        # not saved: they follow from the labels
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, own: Tensor, negatives: int, *, relax: bool) -> Tensor:
        """Rows (N, 1 + negatives) of the memories for the images `own` (N,)."""
        own = own.to(self.labels.device)
        generator = self.draws.generator(own.device)
        label = self.labels[own]
        first, count = self.first[label, None], self.counts[label, None]  # (N, 1)
        shape = (len(own), 1 + negatives)
        chance = torch.rand(shape, generator=generator, device=own.device, dtype=torch.float64)
        others = (chance[:, 1:] * (len(self.labels) - count)).long()  # numbered past the own class
        rows = self.by_class[others + count * (others >= first)]
        friends = self.by_class[first + (chance[:, :1] * count).long()]
        return torch.cat([friends if relax else own[:, None], rows], dim=1)
