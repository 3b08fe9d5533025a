"""ReviewKD: a stage of the teacher is matched by the student's stage and deeper ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from kdsteps.methods._features import LayerPairs, Outputs, features, pooled_layer
from kdsteps.methods._tensors import full_precision, same_shape
from kdsteps.methods._weights import WarmUp
from kdsteps.methods.base import Batch
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes


@full_precision
def hcl_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared differences of two maps and of their pyramids.

    Args:
        student_map: (N, C, H, W), fused and projected to the teacher's shape.
        teacher_map: (N, C, H, W).

    Returns:
        Scalar; the maps themselves have weight 1, their averages over 4x4, 2x2 and 1x1 cells, as
        far as those are coarser than the maps, 1/2, 1/4 and 1/8, and the weights are scaled to sum
        to 1. A side shorter than the cells keeps its length: the paper has square maps only.

    Raises:
        ValueError: The shapes differ.

    Source: Chen et al. 2021, arXiv:2104.09044.
    """
    same_shape(student_map, teacher_map, "maps")
    total, weights, weight = F.mse_loss(student_map, teacher_map), 1.0, 1.0
    height, width = student_map.shape[2:]
    for side in (4, 2, 1):
        cells = min(side, height), min(side, width)
        if cells == (height, width):
            continue
        weight /= 2
        student_cells = F.adaptive_avg_pool2d(student_map, cells)
        teacher_cells = F.adaptive_avg_pool2d(teacher_map, cells)
        total = total + weight * F.mse_loss(student_cells, teacher_cells)
        weights += weight
    return total / weights


class ReviewKD(WarmUp, LayerPairs):
    """Labels and the fused maps of all stages, growing to their weight over the first epochs.

    The levels are the pairs of stages and, deepest, the pooled features as a 1x1 map. The teacher's
    maps are read before their last ReLU.

    Source: Chen et al. 2021, arXiv:2104.09044. The weight is per pair in the authors' CIFAR-100
    recipe, 0.6 to 8; the default is that of resnet32x4 to resnet8x4. Their teacher there runs in
    training mode; here it is in eval mode, as in the benchmark.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    compares_images = False
    term = "review"
    teacher_before_activation = True

    def __init__(
        self,
        *given: Any,
        max_width: PositiveInt = 512,
        weight: NonNegativeFloat = 5.0,
        **options: Any,
    ) -> None:
        """Args:
        max_width: Largest number of channels inside the projectors.
        """
        super().__init__(*given, weight=weight, **options)
        self.student_pool, self.teacher_pool = (
            pooled_layer(self.student),
            pooled_layer(self.teacher),
        )
        ours = feature_shapes(self.student, self.task.image_shape)
        theirs = feature_shapes(self.teacher, self.task.image_shape)
        self.projector = Review(
            [ours[layer].as_map() for layer, _ in self.pairs]
            + [FeatureShape("map", ours[self.student_pool].channels, 1, 1)],
            [theirs[layer].as_map() for _, layer in self.pairs]
            + [FeatureShape("map", theirs[self.teacher_pool].channels, 1, 1)],
            max_width,
        )
        self.student_layers = [*self.student_layers, self.student_pool]
        self.teacher_layers = [*self.teacher_layers, self.teacher_pool]

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        pairs = self.maps(ours, theirs)
        student = features(self.student, self.student_pool, ours[self.student_pool])
        teacher = features(self.teacher, self.teacher_pool, theirs[self.teacher_pool])
        maps, targets = zip(*pairs, (_dot(student), _dot(teacher)), strict=True)
        levels = zip(self.projector(maps), targets, strict=True)
        return torch.stack([hcl_loss(*level) for level in levels]).sum()


class Review(nn.Module):
    """Fuse a student's maps, the deepest first, and project each to its teacher's shape."""

    def __init__(
        self, sources: Sequence[FeatureShape], targets: Sequence[FeatureShape], max_width: int
    ) -> None:
        """Args:
        sources: Maps of the student, shallow to deep.
        targets: Maps of the teacher, one for each.
        max_width: Most channels that maps have while they are fused.
        """
        super().__init__()
        width = min(max_width, sources[-1].channels)
        deepest = len(sources) - 1
        self.levels = nn.ModuleList(
            Fusion(source.channels, width, target, fuses=number < deepest)
            for number, (source, target) in enumerate(zip(sources, targets, strict=True))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C, H, W) of the teacher's shapes, shallow to deep."""
        outputs, residual = [], None
        for level, source in zip(reversed(self.levels), reversed(maps), strict=True):
            output, residual = level(source, residual)
            outputs.append(output)
        return outputs[::-1]


class Fusion(nn.Module):
    """One level: the student's map, gated together with the fused map of the deeper level."""

    def __init__(self, channels: int, width: int, target: FeatureShape, *, fuses: bool) -> None:
        super().__init__()
        self.size = (target.height, target.width)
        self.narrow = _normed(nn.Conv2d(channels, width, 1, bias=False))
        self.gates = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.widen = _normed(nn.Conv2d(width, target.channels, 3, padding=1, bias=False))

    def forward(self, maps: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map for the teacher, and the fused one for the next level."""
        fused = self.narrow(maps)
        if self.gates is not None:
            assert residual is not None, "only the deepest level has nothing to fuse"
            deeper = F.interpolate(residual, size=fused.shape[2:], mode="nearest")
            gates = self.gates(torch.cat([fused, deeper], dim=1)).sigmoid()  # (N, 2, H, W)
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, size=self.size, mode="nearest")
        return self.widen(fused), fused


def _normed(convolution: nn.Conv2d) -> nn.Module:
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


def _dot(vectors: Tensor) -> Tensor:
    """Features (N, D) as maps of one position, (N, D, 1, 1)."""
    return vectors[:, :, None, None]
