"""LoCa: correct the teacher's wrong predictions by the label before distilling them."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdsteps.methods._checks import single_labels
from kdsteps.methods._tensors import double_precision, kl_divergence, one_label_each, same_shape
from kdsteps.methods.base import Batch
from kdsteps.methods.kd import KD


@double_precision
def loca_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
) -> Tensor:
    """The loss of `kd` with a teacher whose wrong predictions are calibrated by the label.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images and classes.
        labels: (N,) class numbers.
        alpha: Above 0, at most 1; the label's probability becomes 1 - alpha larger than that of
            the predicted class. Toward 0 the target becomes the label alone.
        temperature: Above 0.

    Returns:
        Scalar in nats times the squared temperature, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: Yang, Wu and Yang 2024, arXiv:2409.04778, read in secondary sources, which do not
    state the temperature of the calibration: here it is that of the loss, so that the label comes
    first in the distribution that the student sees.
    """
    same_shape(student_logits, teacher_logits, "logits")
    one_label_each(student_logits, labels)
    teacher = calibrated(F.softmax(teacher_logits / temperature, dim=1), labels, alpha)
    smallest = torch.finfo(teacher.dtype).tiny  # a probability of 0 has no logarithm
    return temperature**2 * kl_divergence(
        student_logits / temperature, teacher.clamp(min=smallest).log()
    )


def calibrated(probabilities: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Probabilities (N, K) in which the label leads by 1 - alpha wherever another class led.

    All other classes are scaled by one factor, which preserves their ratios. Images on which the
    label leads already are unchanged.
    """
    label = probabilities.gather(1, labels[:, None])  # (N, 1)
    most, predicted = probabilities.max(dim=1, keepdim=True)
    scale = alpha / (1 - label + most)
    others = scale * probabilities
    leading = others.scatter(1, labels[:, None], 1 - scale * (1 - label))
    return torch.where(predicted == labels[:, None], probabilities, leading)


class LoCa(KD):
    """Labels and the teacher's predictions, calibrated where they are wrong.

    Source: Yang, Wu and Yang 2024, arXiv:2409.04778; alpha from the range it reports as robust,
    temperature and weights, which were not recovered, as in `kd`.
    """

    capturable = True
    compares_images = False
    one_class = True

    def __init__(
        self, *given: Any, alpha: Annotated[float, Field(gt=0, le=1)] = 0.9, **options: Any
    ) -> None:
        """Args:
        alpha: Where the teacher is wrong, the label leads by 1 - alpha; toward 0 the target becomes
            the label alone.
        """
        super().__init__(*given, **options)
        self.alpha = alpha

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        labels = single_labels(batch, self.name)
        return loca_loss(student, teacher, labels, self.alpha, self.temperature)
