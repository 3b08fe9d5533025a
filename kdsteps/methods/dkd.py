"""Decoupled distillation: separate weights for the label and the other classes."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._checks import single_labels
from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, kl_divergence, one_label_each, same_shape
from kdsteps.methods._weights import WarmUp
from kdsteps.methods.base import Batch
from kdsteps.methods.lskd import standardized


@double_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """Divergence from the teacher on the label and, separately, among the other classes.

    For each image, `kd` is the first term plus (1 - p) times the second, where p is the teacher's
    probability of the label; here beta replaces 1 - p. The label's column is left out rather than
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
        alpha * kl_divergence(target, teacher_target) + beta * kl_divergence(others, teacher_others)
    )


class DKD(WarmUp, LogitMethod):
    """Labels and decoupled distillation, which grows to its weight over the first epochs.

    With `standardize` both sides' logits are standardized first, as in `lskd`, whose authors then
    multiply alpha and beta by 9.

    Source: Zhao et al. 2022, arXiv:2203.08679; defaults of its CIFAR-100 code, where beta is 2 to 8
    depending on the pair.
    """

    capturable = True
    compares_images = False
    one_class = True

    def __init__(
        self,
        *given: Any,
        alpha: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 8.0,
        standardize: bool = False,
        **options: Any,
    ) -> None:
        """Args:
        alpha: Weight of the label against all other classes together.
        beta: Weight of the distribution over the other classes.
        standardize: Whether logits are standardized first, as in `lskd`.
        """
        super().__init__(*given, **options)
        self.alpha, self.beta, self.standardize = alpha, beta, standardize

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        labels = single_labels(batch, self.name)
        return dkd_loss(student, teacher, labels, self.alpha, self.beta, self.temperature)


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, 2) of label or not, and (N, K - 1) of the other classes."""
    every = torch.arange(logits.shape[1] - 1, device=logits.device)
    other_classes = every + (every >= labels[:, None])  # (N, K - 1)
    others = logits.gather(1, other_classes)
    label = logits.gather(1, labels[:, None])
    pair = torch.cat([label, others.logsumexp(dim=1, keepdim=True)], dim=1)
    return pair, others
