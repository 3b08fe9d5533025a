"""Attention transfer: where in the image the teacher's maps are strong."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdsteps.methods._checks import layer_pairs
from kdsteps.methods._features import FeatureMethod, as_map
from kdsteps.methods._tensors import full_precision, same_images, to_smaller, unit
from kdsteps.methods.base import Batch, Task
from kdsteps.models.chain import Chain


@full_precision
def at_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """How differently two maps spread their energy over the image.

    Args:
        student_map: (N, C, H, W).
        teacher_map: (N, any channels and size), of the same images; the larger of the two is
            averaged down to the smaller.

    Returns:
        Scalar, averaged over images and places. The paper writes an unsquared distance; this is the
        mean square of the authors' code, for which the usual weight of 1000 is meant.

    Raises:
        ValueError: The maps are not of equally many images.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.
    """
    same_images(student_map, teacher_map, "maps")
    student_map, teacher_map = to_smaller(student_map, teacher_map)
    return (attention(student_map) - attention(teacher_map)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """The mean square over channels at each place, (N, H W), at unit length for each image."""
    return unit(maps.square().mean(dim=1).flatten(1), dim=1)


class AT(FeatureMethod):
    """Labels and the attention maps of all stages.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; weight of the CIFAR-100 benchmark.
    """

    wants = "layers"

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        weight: NonNegativeFloat = 1000.0,
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
        self.pairs = layer_pairs(student, self.teacher, student_layers, teacher_layers, "at")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        ours = self.student.trace(batch.images, [student for student, _ in self.pairs])
        theirs = self.teacher_trace(batch, [teacher for _, teacher in self.pairs])
        losses = [
            at_loss(
                as_map(self.student, student, ours[student]),
                as_map(self.teacher, teacher, theirs[teacher]),
            )
            for student, teacher in self.pairs
        ]
        return self.logit_terms(batch, ours["head"], theirs["head"]) | {
            "attention": self.weight * torch.stack(losses).sum()
        }
