"""Options common to many methods: the weights of their losses, and a warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._tensors import cross_entropy
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import Chain


class Weighted(Method):
    """A method with a weighted loss in addition to weighted cross-entropy."""

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        weight: NonNegativeFloat = 1.0,
        labels_weight: NonNegativeFloat = 1.0,
    ) -> None:
        """Args:
        weight: Weight of the method's loss.
        labels_weight: Weight of the cross-entropy with the labels.
        """
        super().__init__(teacher, student, task)
        self.weight, self.labels_weight = weight, labels_weight

    def weight_at(self, batch: Batch) -> float:
        """The weight of the method's loss for a batch, which may depend on its epoch."""
        return self.weight

    def labels_term(self, batch: Batch, logits: Tensor) -> Tensor:
        """Weighted cross-entropy of the student's logits (N, K)."""
        return self.labels_weight * cross_entropy(logits, batch.targets)


class WarmUp(Weighted):
    """A method whose loss grows to its full weight at the beginning of training.

    `warmup` is a fraction of the run, or from 1 on a number of epochs. The default is 20 of the 240
    epochs of the CIFAR-100 benchmark.
    """

    lengths: ClassVar[Mapping[str, int]] = {"warmup": 0}

    def __init__(self, *given: Any, warmup: NonNegativeFloat = 1 / 12, **options: Any) -> None:
        """Args:
        warmup: When the loss has its full weight: a fraction of the run, or from 1 on a number of
            epochs; 0: from the start.
        """
        super().__init__(*given, **options)
        self.warmup_epochs = self.epochs_of("warmup", warmup)

    def weight_at(self, batch: Batch) -> float:
        return super().weight_at(batch) * warm_up(batch.epoch, self.warmup_epochs)


def warm_up(epoch: int, epochs: float) -> float:
    """The fraction of its weight that a loss has: linear over the first `epochs`, then 1.

    Args:
        epoch: From 0; the first epoch has a fraction above 0, as where epochs count from 1.
        epochs: 0 for the full weight from the start.
    """
    return 1.0 if epochs == 0 else min((epoch + 1) / epochs, 1.0)
