"""Knowledge distillation in its original form: match the teacher's softened predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, kl_divergence, same_shape
from kdsteps.methods.base import Batch


@double_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL divergence between temperature-softened teacher and student predictions.

    Scaled by the squared temperature so that gradient magnitudes do not depend on it.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images and classes.
        temperature: Above 0; 1 leaves the predictions unchanged.

    Returns:
        Scalar in nats, averaged over the N images.

    Raises:
        ValueError: The shapes differ, which broadcasting would otherwise hide.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
    """
    same_shape(student_logits, teacher_logits, "logits")
    return temperature**2 * kl_divergence(
        student_logits / temperature, teacher_logits / temperature
    )


class KD(LogitMethod):
    """Labels and the teacher's softened predictions.

    Source: Hinton et al. 2015; temperature and weights of the CIFAR-100 benchmark.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False

    def __init__(
        self,
        *given: Any,
        weight: NonNegativeFloat = 0.9,
        labels_weight: NonNegativeFloat = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(*given, weight=weight, labels_weight=labels_weight, **options)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return kd_loss(student, teacher, self.temperature)
