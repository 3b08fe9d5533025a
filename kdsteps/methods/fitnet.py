"""FitNet: a hint from the middle of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdsteps.methods._features import OneLayer, Outputs, as_map
from kdsteps.methods._tensors import full_precision, same_shape, to_size, to_smaller
from kdsteps.methods.base import Batch
from kdsteps.models.chain import Chain
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes


@full_precision
def fitnet_loss(projected: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean squared difference of two maps of one shape.

    Args:
        projected: (N, C, H, W), the student's map, projected to the teacher's shape.
        teacher_map: (N, C, H, W).

    Returns:
        Scalar, averaged over all elements.

    Raises:
        ValueError: The shapes differ.

    Source: Romero et al. 2015, arXiv:1412.6550.
    """
    same_shape(projected, teacher_map, "maps")
    return F.mse_loss(projected, teacher_map)


class FitNet(OneLayer):
    """Labels and one inner layer of the teacher, matched through a projector.

    The layers are the second stages unless they are named.

    Source: Romero et al. 2015, arXiv:1412.6550, in the form of the CIFAR-100 benchmark: hint and
    labels together, with weight 100.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False
    term = "hint"

    def __init__(self, *given: Any, weight: NonNegativeFloat = 100.0, **options: Any) -> None:
        super().__init__(*given, weight=weight, **options)
        self.projector = Regressor(
            feature_shapes(self.student, self.task.image_shape)[self.student_layer],
            feature_shapes(self.teacher, self.task.image_shape)[self.teacher_layer],
        )

    def default_layer(self, chain: Chain) -> str:
        return chain.stages[:2][-1]  # the second stage, or the only one

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        student = as_map(self.student, self.student_layer, ours[self.student_layer])
        teacher = as_map(self.teacher, self.teacher_layer, theirs[self.teacher_layer])
        return fitnet_loss(*to_smaller(self.projector(student), teacher))


class Regressor(nn.Module):
    """The projector of the benchmark: a convolution that also changes the size, BN and ReLU.

    1x1 for equal sizes, 3x3 with stride 2 for half the size, transposed 4x4 with stride 2 for
    double, and a kernel of the right size for sizes between equal and double. Other sizes,
    which the benchmark does not have, are averaged down to the smaller one first.

    Source: Tian et al. 2020, official code of arXiv:1910.10699.
    """

    def __init__(self, source: FeatureShape, target: FeatureShape) -> None:
        super().__init__()
        source, target = source.as_map(), target.as_map()
        self.size, convolution = _resizing(source, target)
        self.body = nn.Sequential(convolution, nn.BatchNorm2d(target.channels), nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.body(to_size(maps, *self.size))
        return projected


def _resizing(source: FeatureShape, target: FeatureShape) -> tuple[tuple[int, int], nn.Module]:
    """The size to average maps to first, and the convolution to the target's size."""
    size, channels = (source.height, source.width), (source.channels, target.channels)
    sides = ((source.height, target.height), (source.width, target.width))
    if all(ours == 2 * theirs for ours, theirs in sides):
        return size, nn.Conv2d(*channels, 3, stride=2, padding=1)
    if all(2 * ours == theirs for ours, theirs in sides):
        return size, nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    if all(theirs <= ours < 2 * theirs for ours, theirs in sides):
        kernel = (1 + source.height - target.height, 1 + source.width - target.width)
        return size, nn.Conv2d(*channels, kernel)
    smaller = (min(sides[0]), min(sides[1]))
    return smaller, nn.Conv2d(*channels, 1)
