"""Decoupled distillation: the label's probability and the other classes' ranking, weighed apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import same_classes
from kdsteps.methods._schedule import warm_up
from kdsteps.methods._tensors import full_precision, one_label_each, same_shape
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.methods.lskd import standardized
from kdsteps.models.chain import Chain


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """How far the student is from the teacher on the label and, apart, among the other classes.

    For each image `kd` is the first part plus (1 - p) times the second, p the teacher's probability
    of the label; here beta stands in place of 1 - p. The label's column is left out rather than
    masked with a large negative number, which is exact in every precision.

    Args:
        student_logits: (N, K), K at least 2.
        teacher_logits: (N, K), of the same images and classes.
        labels: (N,) class numbers.
        alpha: Weight of label against all others together.
        beta: Weight of the distribution over the others.
        temperature: Above 0.

    Returns:
        Scalar in nats times the squared temperature, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: Zhao et al. 2022, arXiv:2203.08679.
    """
    same_shape(student_logits, teacher_logits, "logits")
    one_label_each(student_logits, labels)
    target, others = _apart(student_logits / temperature, labels)
    teacher_target, teacher_others = _apart(teacher_logits / temperature, labels)
    return temperature**2 * (
        alpha * F.kl_div(target, teacher_target, reduction="batchmean", log_target=True)
        + beta * F.kl_div(others, teacher_others, reduction="batchmean", log_target=True)
    )


class DKD(Method):
    """Labels and decoupled distillation, which grows to its weight over the first epochs.

    With `standardize` both sides' logits are standardized first, as in `lskd`, whose authors then
    multiply alpha and beta by 9.

    Source: Zhao et al. 2022, arXiv:2203.08679; defaults of its CIFAR-100 code, where beta is 2 to 8
    depending on the pair.
    """

    wants = "logits"

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        temperature: PositiveFloat = 4.0,
        alpha: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 8.0,
        weight: NonNegativeFloat = 1.0,
        labels_weight: NonNegativeFloat = 1.0,
        warmup_epochs: NonNegativeInt = 20,
        standardize: bool = False,
    ) -> None:
        super().__init__(teacher, student, task)
        same_classes(teacher, task, "dkd")
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        self.weight, self.labels_weight = weight, labels_weight
        self.warmup_epochs, self.standardize = warmup_epochs, standardize

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits, teacher = self.student_logits(batch), self.teacher_logits(batch)
        student = logits
        if self.standardize:
            student, teacher = standardized(logits), standardized(teacher)
        loss = dkd_loss(student, teacher, batch.labels, self.alpha, self.beta, self.temperature)
        return {
            "labels": self.labels_weight * F.cross_entropy(logits, batch.targets),
            "dkd": self.weight * warm_up(batch.epoch, self.warmup_epochs) * loss,
        }


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, 2) of label or not, and (N, K - 1) among the other classes."""
    every = torch.arange(logits.shape[1] - 1, device=logits.device)
    other_classes = every + (every >= labels[:, None])  # (N, K - 1)
    others = logits.gather(1, other_classes)
    label = logits.gather(1, labels[:, None])
    pair = torch.cat([label, others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)
