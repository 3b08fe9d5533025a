"""What methods that read inner layers share: the losses on logits beside them, pooled features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsteps.methods._checks import same_classes
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.methods.kd import kd_loss
from kdsteps.models.chain import Chain
from kdsteps.models.feature_shapes import pooled, to_map


class FeatureMethod(Method):
    """A method that reads inner layers of a live teacher, beside labels and, if asked for, kd."""

    teacher: Chain

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        labels_weight: float,
        kd_weight: float,
        kd_temperature: float,
    ) -> None:
        if teacher is None:
            raise ValueError(f"{type(self).__name__} reads the teacher's layers and was given none")
        super().__init__(teacher, student, task)
        if kd_weight > 0:
            same_classes(teacher, task, f"{type(self).__name__.lower()}.kd_weight")
        self.labels_weight, self.kd_weight = labels_weight, kd_weight
        self.kd_temperature = kd_temperature

    def logit_terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The weighted losses on logits: labels, and kd where it has a weight."""
        terms = {"labels": self.labels_weight * F.cross_entropy(student, batch.targets)}
        if self.kd_weight > 0:
            terms["kd"] = self.kd_weight * kd_loss(student, teacher, self.kd_temperature)
        return terms


def as_map(chain: Chain, layer: str, output: Tensor) -> Tensor:
    """The output of a layer as (N, C, H, W)."""
    return to_map(output, chain.layout(layer), chain.token_grid(layer))


def pooled_layer(chain: Chain) -> str:
    """Where the features in front of the classifier are read: `pool`, else the last layer."""
    return "pool" if "pool" in chain.layers else chain.layers[-1]


def features(chain: Chain, layer: str, output: Tensor) -> Tensor:
    """The output of a layer as (N, D), averaged over its positions."""
    return pooled(output, chain.layout(layer))
