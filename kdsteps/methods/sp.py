"""Similarity-preserving distillation: images alike to the teacher shall be alike to the student."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import layer_of
from kdsteps.methods._features import FeatureMethod
from kdsteps.methods._tensors import full_precision, same_images, unit
from kdsteps.methods.base import Batch, Task
from kdsteps.models.chain import Chain


@full_precision
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """How differently student and teacher see the images of a batch resemble each other.

    Args:
        student_map: (N, …), any layout.
        teacher_map: (N, …), any layout, of the same images.

    Returns:
        Scalar, the mean square over all N x N pairs of images.

    Raises:
        ValueError: The maps are not of equally many images.

    Source: Tung and Mori 2019, arXiv:1907.09682.
    """
    same_images(student_map, teacher_map, "maps")
    return (_similarities(student_map) - _similarities(teacher_map)).square().mean()


class SP(FeatureMethod):
    """Labels and the similarities within a batch, at the last stage unless layers are named.

    Source: Tung and Mori 2019, arXiv:1907.09682; weight of the CIFAR-100 benchmark.
    """

    wants = "layers"

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
        weight: NonNegativeFloat = 3000.0,
        labels_weight: NonNegativeFloat = 1.0,
        kd_weight: NonNegativeFloat = 0.0,
        kd_temperature: PositiveFloat = 4.0,
    ) -> None:
        super().__init__(
            teacher,
            student,
            task,
            labels_weight=labels_weight,
            kd_weight=kd_weight,
            kd_temperature=kd_temperature,
        )
        self.weight = weight
        self.student_layer = layer_of(student, student_layer, student.stages[-1], "student", "sp")
        self.teacher_layer = layer_of(
            self.teacher, teacher_layer, self.teacher.stages[-1], "teacher", "sp"
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        ours = self.student.trace(batch.images, (self.student_layer,))
        theirs = self.teacher_trace(batch, (self.teacher_layer,))
        loss = sp_loss(ours[self.student_layer], theirs[self.teacher_layer])
        return self.logit_terms(batch, ours["head"], theirs["head"]) | {
            "similarity": self.weight * loss
        }


def _similarities(maps: Tensor) -> Tensor:
    """The Gram matrix of a batch, (N, N), each row at unit length."""
    flat = maps.flatten(1)  # (N, D)
    return unit(flat @ flat.T, dim=1)
