"""Logit standardization: distill how a teacher ranks the classes, not how large its logits are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._tensors import double_precision, full_precision, same_shape
from kdsteps.methods.base import Batch
from kdsteps.methods.kd import KD, kd_loss

SPREAD_FLOOR = 1e-7  # added to the standard deviation


@full_precision
def standardized(logits: Tensor) -> Tensor:
    """Logits (N, K) of each image at mean 0 and standard deviation 1 (K - 1 in its denominator).

    An image whose logits are all equal becomes zeros without a gradient, which would be of the
    order of 1e7: a student with a zero-initialized head starts there.
    """
    centered = logits - logits.mean(dim=1, keepdim=True)
    spread = centered.std(dim=1, keepdim=True)
    scaled = centered / (spread + SPREAD_FLOOR)
    return torch.where(spread > SPREAD_FLOOR, scaled, scaled.detach())


@double_precision
def lskd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of `kd` between logits standardized image by image.

    Unchanged when the student's logits are scaled or shifted, image by image.

    Args:
        student_logits: (N, K), K at least 2.
        teacher_logits: (N, K), of the same images and classes.
        temperature: Above 0; since standardized logits are bounded, it limits how peaked the
            targets can be.

    Returns:
        Scalar in nats times the squared temperature, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: Sun et al. 2024, arXiv:2403.01427.
    """
    same_shape(student_logits, teacher_logits, "logits")
    return kd_loss(standardized(student_logits), standardized(teacher_logits), temperature)


class LSKD(KD):
    """Labels, and the teacher's predictions after both sides' logits are standardized.

    Source: Sun et al. 2024, arXiv:2403.01427; temperature and weights of its CIFAR-100 code.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False

    def __init__(
        self,
        *given: Any,
        temperature: PositiveFloat = 2.0,
        weight: NonNegativeFloat = 9.0,
        **options: Any,
    ) -> None:
        super().__init__(*given, temperature=temperature, weight=weight, **options)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return lskd_loss(student, teacher, self.temperature)
