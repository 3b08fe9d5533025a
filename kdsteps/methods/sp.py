"""Similarity-preserving distillation: preserve which images the teacher finds similar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from kdsteps.methods._features import OneLayer, Outputs
from kdsteps.methods._tensors import full_precision, same_images, unit
from kdsteps.methods.base import Batch
from kdsteps.models.chain import Chain


@full_precision
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Difference of the similarities between the images of a batch, for student and teacher.

    Args:
        student_map: (N, …), any layout.
        teacher_map: (N, …), any layout, of the same images.

    Returns:
        Scalar, the mean square over all N x N pairs of images.

    Raises:
        ValueError: The numbers of images differ.

    Source: Tung and Mori 2019, arXiv:1907.09682.
    """
    same_images(student_map, teacher_map, "maps")
    return (_similarities(student_map) - _similarities(teacher_map)).square().mean()


class SP(OneLayer):
    """Labels and the similarities within a batch, at the last stage unless layers are named.

    Source: Tung and Mori 2019, arXiv:1907.09682; weight of the CIFAR-100 benchmark.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    term = "similarity"

    def __init__(self, *given: Any, weight: NonNegativeFloat = 3000.0, **options: Any) -> None:
        super().__init__(*given, weight=weight, **options)

    def default_layer(self, chain: Chain) -> str:
        return chain.stages[-1]

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        return sp_loss(ours[self.student_layer], theirs[self.teacher_layer])


def _similarities(maps: Tensor) -> Tensor:
    """The Gram matrix of a batch, (N, N), each row at unit length."""
    flat = maps.flatten(1)  # (N, D)
    return unit(flat @ flat.T, dim=1)
