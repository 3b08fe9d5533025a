"""DIST: match the teacher's correlations, between an image's classes and a class's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, same_shape
from kdsteps.methods.base import Batch

NORM_FLOOR = 1e-8  # added to the product of the norms


@double_precision
def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float
) -> Tensor:
    """One minus the Pearson correlation of the softened predictions, between and within classes.

    Args:
        student_logits: (N, K), N at least 2.
        teacher_logits: (N, K), of the same images and classes.
        beta: Weight of the correlation over the classes of each image.
        gamma: Weight of the correlation over the images of each class.
        temperature: Above 0.

    Returns:
        Scalar, 0 to 2 times (beta + gamma) and the squared temperature. If a side is constant,
        the correlation is 0 and has no gradient.

    Raises:
        ValueError: The shapes differ.

    Source: Huang et al. 2022, arXiv:2205.10536.
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    inter = 1 - _correlation(student, teacher, dim=1).mean()
    intra = 1 - _correlation(student, teacher, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


class DIST(LogitMethod):
    """Labels and the teacher's correlations.

    A class that hardly varies within a batch has no well-defined correlation: small batches make
    the second term noisy.

    Source: Huang et al. 2022, arXiv:2205.10536; defaults of its CIFAR-100 configuration.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}

    def __init__(
        self,
        *given: Any,
        beta: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat = 1.0,
        weight: NonNegativeFloat = 2.0,
        **options: Any,
    ) -> None:
        """Args:
        beta: Weight of the correlation over the classes of each image.
        gamma: Weight of the correlation over the images of each class.
        """
        super().__init__(*given, weight=weight, **options)
        self.beta, self.gamma = beta, gamma

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return dist_loss(student, teacher, self.beta, self.gamma, self.temperature)


def _correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`."""
    first = first - first.mean(dim=dim, keepdim=True)
    second = second - second.mean(dim=dim, keepdim=True)
    norms = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    correlation = (first * second).sum(dim=dim) / (norms + NORM_FLOOR)
    # below the floor the gradient is that of the floor, up to 1e8, which is noise
    return torch.where(norms > NORM_FLOOR, correlation, correlation.detach())
