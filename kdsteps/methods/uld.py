"""ULD: learn how peaked the teacher's predictions are, even from a teacher with other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._logits import LogitMethod
from kdsteps.methods._tensors import double_precision, same_images
from kdsteps.methods.base import Batch


@double_precision
def uld_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Difference between the sorted probabilities of student and teacher, rank by rank.

    The order of the classes does not matter on either side. It has to be combined with labels, and
    if the classes are the same, `kd` carries more information.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, any number of classes), of the same images.
        temperature: Above 0, for both sides.

    Returns:
        Scalar, 0 to 2, averaged over the N images.

    Raises:
        ValueError: The numbers of images differ.

    Source: Boizard et al. 2024, arXiv:2402.12030; there for tokens of text, here each image is
    one position.
    """
    same_images(student_logits, teacher_logits, "logits")
    student = F.softmax(student_logits / temperature, dim=1).sort(dim=1, descending=True).values
    teacher = F.softmax(teacher_logits / temperature, dim=1).sort(dim=1, descending=True).values
    classes = max(student.shape[1], teacher.shape[1])
    student = F.pad(student, (0, classes - student.shape[1]))  # (N, classes)
    teacher = F.pad(teacher, (0, classes - teacher.shape[1]))  # (N, classes)
    return (student - teacher).abs().sum(dim=1).mean()


class ULD(LogitMethod):
    """Labels, and the teacher's sorted probabilities.

    Source: Boizard et al. 2024, arXiv:2402.12030; weights and temperature of its configurations.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False
    any_classes = True

    def __init__(
        self,
        *given: Any,
        temperature: PositiveFloat = 1.0,
        weight: NonNegativeFloat = 1.5,
        **options: Any,
    ) -> None:
        super().__init__(*given, temperature=temperature, weight=weight, **options)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return uld_loss(student, teacher, self.temperature)
