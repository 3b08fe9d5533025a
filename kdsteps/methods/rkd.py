"""Relational distillation: preserve the distances and angles between the images of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdsteps.methods._features import OneLayer, Outputs, features, pooled_layer
from kdsteps.methods._tensors import full_precision, same_images, unit
from kdsteps.methods.base import Batch

SQUARE_FLOOR = 1e-12
CHUNK_ELEMENTS = 2**24  # cosines or differences in memory at once: 64 MiB in float32


@full_precision
def rkd_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    distance_weight: float,
    angle_weight: float,
) -> Tensor:
    """How far the student's distances and angles between images are from the teacher's.

    Args:
        student_features: (N, D).
        teacher_features: (N, any width), of the same images.
        distance_weight: Of the distances, each side in units of its mean.
        angle_weight: Of the cosines of all angles that three images form.

    Returns:
        Scalar; a Huber loss with its corner at 1, averaged over all N^2 distances and all N^3
        angles, including those from an image to itself.

    Raises:
        ValueError: The features are not (N, D) and (N, …) of equally many images.

    Source: Park et al. 2019, arXiv:1904.05068.
    """
    same_images(student_features, teacher_features, "features")
    if student_features.dim() != 2 or teacher_features.dim() != 2:
        shapes = f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}"
        raise ValueError(f"features are (N, D), not {shapes}")
    distance = F.smooth_l1_loss(
        relative_distances(student_features), relative_distances(teacher_features)
    )
    return distance_weight * distance + angle_weight * _angle_loss(
        student_features, teacher_features
    )


class RKD(OneLayer):
    """Labels and the relations within a batch, between pooled features unless layers are named.

    Source: Park et al. 2019, arXiv:1904.05068; weights of the CIFAR-100 benchmark (the authors use
    1 and 2 for metric learning).
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    term = "relations"
    default_layer = staticmethod(pooled_layer)

    def __init__(
        self,
        *given: Any,
        distance_weight: NonNegativeFloat = 25.0,
        angle_weight: NonNegativeFloat = 50.0,
        **options: Any,
    ) -> None:
        """Args:
        distance_weight: Weight of the relative distances between two images.
        angle_weight: Weight of the angles between three images.
        """
        super().__init__(*given, **options)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        return rkd_loss(
            features(self.student, self.student_layer, ours[self.student_layer]),
            features(self.teacher, self.teacher_layer, theirs[self.teacher_layer]),
            self.distance_weight,
            self.angle_weight,
        )


def relative_distances(vectors: Tensor) -> Tensor:
    """Euclidean distances (N, N) in units of the mean over pairs of different images."""
    count = len(vectors)
    centered = vectors - vectors.mean(dim=0).detach()  # same distances, smaller rounding errors
    squares = centered.square().sum(dim=1)
    products = centered @ centered.T
    apart = (squares[:, None] + squares - 2 * products).clamp(min=SQUARE_FLOOR).sqrt()
    apart = apart * (1 - torch.eye(count, dtype=apart.dtype, device=apart.device))
    return apart / (apart.sum() / max(count * (count - 1), 1)).clamp(min=SQUARE_FLOOR)


def _angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over (N, N, N) cosines, a chunk of corners at a time where they are many.

    With more than one chunk the cosines are computed again in the backward pass, not stored.
    """
    count = len(student)
    width = max(student.shape[1], teacher.shape[1], count)
    size = max(1, CHUNK_ELEMENTS // (count * width))
    if size >= count:
        return _corner_loss(student, teacher, 0, count) / count**3
    total = student.new_zeros(())
    for start in range(0, count, size):
        stop = min(start + size, count)
        total = total + checkpoint(
            *(_corner_loss, student, teacher, start, stop),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn; a CUDA graph forbids reading the state
        )
    return total / count**3


def _corner_loss(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Summed over the angles whose corner is one of the images from `start` to `stop`."""
    return F.smooth_l1_loss(
        _cosines(student, start, stop), _cosines(teacher, start, stop), reduction="sum"
    )


def _cosines(vectors: Tensor, start: int, stop: int) -> Tensor:
    """Of the angles at each corner between all pairs of images, (corners, N, N)."""
    edges = unit(vectors[None] - vectors[start:stop, None], dim=2)  # (corners, N, D)
    return edges @ edges.transpose(1, 2)
