"""OFD: the teacher's responses before the ReLU, negative ones only down to a margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdsteps.methods._features import LayerPairs, Outputs
from kdsteps.methods._tensors import full_precision, same_shape, to_smaller
from kdsteps.methods.base import Batch
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes

RARELY_NEGATIVE = 1e-3  # fraction of negative responses below which their mean is not estimated


@full_precision
def ofd_loss(student_map: Tensor, teacher_map: Tensor, margin: Tensor | float) -> Tensor:
    """The squared difference from the teacher, except where the student is already low enough.

    Where the teacher's response is negative, the student's only has to be at most the margin;
    the loss is zero where it is lower.

    Args:
        student_map: (N, C, H, W), projected to the teacher's shape, before the ReLU.
        teacher_map: (N, C, H, W), before the ReLU.
        margin: Of each channel, (C,) or (1, C, 1, 1), or one for all; at most 0.

    Returns:
        Scalar, summed over channels and positions, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: Heo et al. 2019, arXiv:1904.01866.
    """
    same_shape(student_map, teacher_map, "maps")
    margin = torch.as_tensor(margin, dtype=teacher_map.dtype, device=teacher_map.device)
    if margin.numel() not in (1, teacher_map.shape[1]):
        raise ValueError(f"{margin.numel()} margins do not fit {teacher_map.shape[1]} channels")
    margin = margin.reshape(1, -1, *[1] * (teacher_map.dim() - 2))
    target = torch.maximum(teacher_map, margin)
    counts = (student_map > target) | (teacher_map > 0)
    squares = (student_map - target).square() * counts
    return squares.flatten(1).sum(dim=1).mean()


class OFD(LayerPairs):
    """Labels and the responses before the ReLU at the end of all stages, the deepest weighted most.

    The margin of a channel is the mean of its negative responses: from the batch normalization in
    front of the ReLU where there is one, as published; elsewhere, as in a vision transformer, from
    the negative responses of the batch, which the former estimates (of each part of it, with
    `accumulate` or several GPUs).

    Source: Heo et al. 2019, arXiv:1904.01866, and its official code.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False
    term = "responses"
    student_before_activation = teacher_before_activation = True

    def __init__(self, *given: Any, weight: NonNegativeFloat = 1e-3, **options: Any) -> None:
        super().__init__(*given, weight=weight, **options)
        ours = feature_shapes(self.student, self.task.image_shape)
        theirs = feature_shapes(self.teacher, self.task.image_shape)
        self.matches = nn.ModuleList(
            Match(ours[layer], theirs[other], self.teacher.last_norm(other))
            for layer, other in self.pairs
        )

    @classmethod
    def keeps_teacher(cls, options: Mapping[str, Any]) -> bool:
        return True  # it reads the scales and shifts of its norms

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        pairs = self.maps(ours, theirs)
        losses = [match(*pair) for match, pair in zip(self.matches, pairs, strict=True)]
        halving = [0.5**depth * loss for depth, loss in enumerate(reversed(losses))]
        return torch.stack(halving).sum()


class Match(nn.Module):
    """The loss of one pair of layers, with the student's projector and the teacher's margins."""

    margin: Tensor | None

    def __init__(self, source: FeatureShape, target: FeatureShape, norm: nn.Module | None) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Conv2d(source.channels, target.channels, 1, bias=False),
            nn.BatchNorm2d(target.channels),
        )
        scale, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
        known = None
        if isinstance(scale, Tensor) and isinstance(shift, Tensor):
            known = margins(scale, shift)
        self.register_buffer("margin", known, persistent=False)  # follows from the teacher

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        margin = mean_negative(teacher_map) if self.margin is None else self.margin
        return ofd_loss(*to_smaller(self.projector(student_map), teacher_map), margin)


@torch.no_grad()
def margins(scale: Tensor, shift: Tensor) -> Tensor:
    """Expected negative responses (C,) after a batch normalization with `scale` and `shift` (C,).

    Assumes normally distributed channels; where hardly any response is negative, the result is
    three standard deviations below 0.
    """
    spread, mean = scale.double().abs(), shift.double()
    height = mean / spread.clamp(min=1e-12)
    density = (-height.square() / 2).exp() / math.sqrt(2 * math.pi)
    negative = torch.special.ndtr(-height)  # fraction of negative responses
    expected = mean - spread * density / negative.clamp(min=RARELY_NEGATIVE)
    return torch.where(negative > RARELY_NEGATIVE, expected, -3 * spread).to(scale.dtype)


def mean_negative(maps: Tensor) -> Tensor:
    """The mean negative response of each channel, (C,), from maps (N, C, H, W); 0 without any."""
    negative = maps.float().clamp(max=0)
    return negative.sum(dim=(0, 2, 3)) / (negative < 0).sum(dim=(0, 2, 3)).clamp(min=1)
