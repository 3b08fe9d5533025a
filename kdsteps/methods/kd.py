"""Knowledge distillation as it began: the student matches the teacher's softened predictions."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import same_classes
from kdsteps.methods._tensors import full_precision, same_shape
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import Chain


@full_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """How far the student's softened predictions lie from the teacher's.

    Scaled by the squared temperature, so that gradients keep their size when it changes.

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K), of the same images and classes.
        temperature: Above 0; at 1 predictions are left as they are.

    Returns:
        Scalar in nats, averaged over the N images.

    Raises:
        ValueError: The shapes differ, which broadcasting would otherwise hide.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class KD(Method):
    """Labels and the teacher's softened predictions, weighted.

    Source: Hinton et al. 2015; temperature and weights of the CIFAR-100 benchmark.
    """

    wants = "logits"

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        temperature: PositiveFloat = 4.0,
        weight: NonNegativeFloat = 0.9,
        labels_weight: NonNegativeFloat = 0.1,
    ) -> None:
        super().__init__(teacher, student, task)
        same_classes(teacher, task, "kd")
        self.temperature, self.weight, self.labels_weight = temperature, weight, labels_weight

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = self.student_logits(batch), self.teacher_logits(batch)
        return {
            "labels": self.labels_weight * F.cross_entropy(student, batch.targets),
            "kd": self.weight * kd_loss(student, teacher, self.temperature),
        }
