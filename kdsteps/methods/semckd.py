"""SemCKD: each student layer learns from all teacher layers, weighted by attention."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kdsteps.methods._checks import named_layers
from kdsteps.methods._features import FeatureMethod, Outputs, as_map
from kdsteps.methods._tensors import full_precision, to_size, unit
from kdsteps.methods.base import Batch
from kdsteps.models.adapters import adapter
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes

SMALLEST_MEAN_SQUARE = 1e-12  # maps below it are as good as zero


@full_precision
def semckd_loss(attention: Tensor, distances: Tensor) -> Tensor:
    """Distances between student and teacher layers, weighted by attention.

    Args:
        attention: (N, student layers, teacher layers), summing to 1 over the teacher's.
        distances: Of the same shape: mean squared differences of each image's maps.

    Returns:
        Scalar, averaged over images and student layers.

    Raises:
        ValueError: The shapes differ.

    Source: Chen et al. 2021, arXiv:2012.03236.
    """
    if attention.shape != distances.shape:
        shapes = f"{tuple(attention.shape)} and {tuple(distances.shape)}"
        raise ValueError(f"attention and distances differ in shape: {shapes}")
    return (attention * distances).sum(dim=2).mean()


class SemCKD(FeatureMethod):
    """Labels, kd, and all stages of the teacher for each stage of the student.

    Queries and keys are read from an image's similarities to the others of its batch, so the width
    of the attention is the batch size; a smaller batch is padded with zeros.

    Two things differ from the official code, whose weight is 400:

    - The teacher's maps are scaled to a mean square of 1 before they are compared, so that a weight
      means the same for every teacher, and the default weight is 5. Unscaled, the loss grows with
      the square of their values, which on digits is 0.5 in a ResNet-9, 3 in a ResNet-20 and 17 in
      the last block of a ViT. With that ResNet-20 and a weight of 400, the student's gradient of
      this loss starts 40 times as large as that of the labels: a narrow student learns the maps
      as far as it can and little else. With 5 and scaled maps it starts 0.1 to 0.6 times as large
      with teachers of five families. `scale_teacher: false` with `weight: 400` is the published
      loss.
    - The weight multiplies the gradient of the student alone; projectors and attention follow the
      plain loss. In the official code it multiplies theirs as well: with 400, a learning rate of
      0.05 moves the projectors, which end without a normalization, like a rate of 20, and they
      diverge even if the student is held fixed.

    Source: Chen et al. 2021, arXiv:2012.03236; weight of `kd` from the official code of
    arXiv:2203.14001, sizes of queries and keys from that of arXiv:2511.14981.
    """

    capturable = True
    needs_labels: ClassVar[Mapping[str, int]] = {"labels_weight": 0}
    term = "layers"

    def __init__(
        self,
        *given: Any,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        weight: NonNegativeFloat = 5.0,
        kd_weight: NonNegativeFloat = 1.0,
        scale_teacher: bool = True,
        **options: Any,
    ) -> None:
        """Args:
        student_layers: The student's layers; by default the ends of its stages.
        teacher_layers: The teacher's layers; by default the ends of its stages.
        scale_teacher: Whether each map of the teacher is scaled to a mean square of 1.
        """
        super().__init__(*given, weight=weight, kd_weight=kd_weight, **options)
        self.scale_teacher = scale_teacher
        self.student_layers = named_layers(self.student, student_layers, "student", self.name)
        self.teacher_layers = named_layers(self.teacher, teacher_layers, "teacher", self.name)
        self.attention = Attention(
            len(self.student_layers), len(self.teacher_layers), self.task.batch_size
        )
        ours = feature_shapes(self.student, self.task.image_shape)
        theirs = feature_shapes(self.teacher, self.task.image_shape)
        met = [
            (ours[layer], _smaller(ours[layer], theirs[other]))
            for layer, other in itertools.product(self.student_layers, self.teacher_layers)
        ]
        self.meetings = [meeting for _, meeting in met]
        self.projectors = nn.ModuleList(
            adapter(source, meeting, "three_layer")[0] for source, meeting in met
        )

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        sources = [amplified(ours[layer], self.weight) for layer in self.student_layers]
        targets = [as_map(self.teacher, layer, theirs[layer]) for layer in self.teacher_layers]
        if self.scale_teacher:
            targets = [scaled(target) for target in targets]
        attention = self.attention(sources, targets)
        loss = semckd_loss(attention, self._distances(sources, targets))
        return loss + ((self.weight - 1) * loss).detach()  # the weighted value, for the log

    def weight_at(self, batch: Batch) -> float:
        return 1.0  # `loss` has weighted the student's gradients already

    def _distances(self, sources: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean squared differences of each image's maps, (N, student layers, teacher layers)."""
        pairs = list(itertools.product(sources, targets))
        distances = [
            _squared(projector(source), to_size(target, meeting.height, meeting.width))
            for (source, target), projector, meeting in zip(
                pairs, self.projectors, self.meetings, strict=True
            )
        ]
        stacked = torch.stack(distances, dim=1)
        by_layers: Tensor = stacked.unflatten(1, (len(sources), len(targets)))
        return by_layers


class Attention(nn.Module):
    """The weight of each teacher layer for each student layer, image by image."""

    def __init__(self, num_student: int, num_teacher: int, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.queries = nn.ModuleList(_embedding(batch_size) for _ in range(num_student))
        self.keys = nn.ModuleList(_embedding(batch_size) for _ in range(num_teacher))

    def forward(self, sources: list[Tensor], targets: list[Tensor]) -> Tensor:
        """(N, student layers, teacher layers), summing to 1 over the teacher's."""
        queries = self._embedded(self.queries, sources)  # (N, student layers, D)
        keys = self._embedded(self.keys, targets)  # (N, teacher layers, D)
        return _weights(queries, keys)

    def _embedded(self, embeddings: nn.ModuleList, outputs: list[Tensor]) -> Tensor:
        vectors = [
            embedding(_similarities(output, self.batch_size))
            for embedding, output in zip(embeddings, outputs, strict=True)
        ]
        return unit(torch.stack(vectors, dim=1), dim=2)


@full_precision
def _weights(queries: Tensor, keys: Tensor) -> Tensor:
    """The softmax over the keys (N, T, D) of their inner products with the queries (N, S, D)."""
    return (queries @ keys.transpose(1, 2)).softmax(dim=2)


@full_precision
def _similarities(output: Tensor, batch_size: int) -> Tensor:
    """Inner products of each image's output with those of the batch, (N, batch_size)."""
    if len(output) > batch_size:
        raise ValueError(f"a batch of {len(output)} images, and attention for {batch_size}")
    flat = output.flatten(1)
    return F.pad(flat @ flat.T, (0, batch_size - len(output)))


@full_precision
def _squared(projected: Tensor, target: Tensor) -> Tensor:
    """Mean squared differences image by image, (N,)."""
    return (projected - target).square().flatten(1).mean(dim=1)


@full_precision
def scaled(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) of a batch, divided by one number so that their mean square is 1."""
    return maps * maps.square().mean().clamp(min=SMALLEST_MEAN_SQUARE).rsqrt()


def amplified(features: Tensor, factor: float) -> Tensor:
    """The features as they are; gradients that flow back into them are multiplied by `factor`."""
    seen = features.view_as(features)
    if seen.requires_grad:
        seen.register_hook(lambda gradient: factor * gradient)
    return seen


def _smaller(source: FeatureShape, target: FeatureShape) -> FeatureShape:
    """The shape for comparison: a map with the teacher's channels and the smaller size."""
    height, width = min(source.height, target.height), min(source.width, target.width)
    return FeatureShape("map", target.channels, height, width)


def _embedding(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 256), nn.LeakyReLU(), nn.Linear(256, 128))
