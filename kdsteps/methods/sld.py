"""SLD: where a prediction is wrong, swap its logit with the label's before distilling it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import single_labels
from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, one_label_each, same_shape
from kdsteps.methods.base import Batch
from kdsteps.methods.kd import kd_loss

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def swap_logits(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Logits in which the label has the largest value of its image.

    Where another class has it, the two exchange their logits; all others are unchanged.

    Args:
        teacher_logits: (N, K).
        labels: (N,) class numbers.

    Returns:
        (N, K), a new tensor; gradients reach `teacher_logits` through it.

    Raises:
        ValueError: The shapes do not match.

    Source: Limantoro et al. 2025, arXiv:2504.20108, as in the authors' code.
    """
    one_label_each(teacher_logits, labels)
    label = labels[:, None]  # (N, 1)
    largest, predicted = teacher_logits.max(dim=1, keepdim=True)
    swapped = teacher_logits.scatter(1, predicted, teacher_logits.gather(1, label))
    return swapped.scatter(1, label, largest)


@double_precision
def sld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperatures: Sequence[float]
) -> Tensor:
    """The loss of `kd` towards swapped logits, summed over several temperatures.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images and classes, before they are swapped.
        labels: (N,) class numbers.
        temperatures: At least one, each above 0.

    Returns:
        Scalar in nats times the squared temperatures, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: Limantoro et al. 2025, arXiv:2504.20108, as in the authors' code.
    """
    same_shape(student_logits, teacher_logits, "logits")
    teacher = swap_logits(teacher_logits, labels)
    return torch.stack([kd_loss(student_logits, teacher, heat) for heat in temperatures]).sum()


class SLD(LogitMethod):
    """Labels, the teacher's swapped predictions, and later the student's own swapped predictions.

    Source: Limantoro et al. 2025, arXiv:2504.20108, and its code,
    StephenEkaputra/Swapped-Logit-Distillation at e2d0d1d, whose defaults these are: six
    temperatures, weights of 0.1 and 0.9, the student's own predictions from epoch 150 of 240 on.

    The authors add up the losses of two augmented views of each image, one of them strongly
    augmented, at half the benchmark's learning rate (0.025). Here each image has one view, so the
    sum is about half as large, and the learning rate is that of the study. With six temperatures
    the gradient is still five to six times that of `kd`, so a rate that suits `kd` can be too high:
    a student that ends at chance needs a lower one.
    """

    capturable = True
    compares_images = False
    one_class = True
    lengths: ClassVar[Mapping[str, int]] = {"self_after": 0}

    def __init__(
        self,
        *given: Any,
        temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = TEMPERATURES,
        weight: NonNegativeFloat = 0.9,
        labels_weight: NonNegativeFloat = 0.1,
        self_weight: NonNegativeFloat = 0.9,
        self_after: NonNegativeFloat = 0.625,
        self_detach: bool = False,
    ) -> None:
        """Args:
        temperatures: Each divides the logits of both sides; their losses are added up.
        weight: Weight of the loss towards the teacher's swapped logits.
        labels_weight: Weight of the cross-entropy with the labels.
        self_weight: Weight of the loss towards the student's own swapped logits; 0: without it.
        self_after: When that loss begins: a fraction of the run, or from 1 on a number of epochs.
        self_detach: Whether the student's swapped logits are a target without gradient. The
            authors' code lets the gradient pass through them.
        """
        super().__init__(*given, weight=weight, labels_weight=labels_weight)
        self.temperatures = temperatures
        self.self_weight, self.self_detach = self_weight, self_detach
        self.self_after = self.epochs_of("self_after", self_after)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student_logits(batch), self.teacher_logits(batch)
        terms = {
            "labels": self.labels_term(batch, student),
            "teacher": self.weight_at(batch) * self.loss(student, teacher, batch),
        }
        if not self.self_weight:
            return terms
        if batch.epoch < self.self_after:
            return terms | {"self": terms["teacher"].new_zeros(())}
        own = student.detach() if self.self_detach else student
        return terms | {"self": self.self_weight * self.loss(student, own, batch)}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return sld_loss(student, teacher, single_labels(batch, self.name), self.temperatures)
