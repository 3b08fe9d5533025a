"""Distillation from embeddings: similarities to a queue of images, and between the patches of one.

Neither loss needs a label or a class, so that the teacher needs no classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods._checks import layer_of, num_outputs
from kdsteps.methods._features import as_map, features, pooled_layer
from kdsteps.methods._tensors import cross_entropy, full_precision, kl_divergence, same_shape, unit
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes

SMALLEST_QUEUE, LARGEST_QUEUE = 16, 8192


@full_precision
def embedding_loss(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """KL divergence between the similarities of student and teacher to a queue of embeddings.

    All embeddings are normalized to unit length here.

    Args:
        student: (N, D).
        teacher: (N, D), of the same images.
        queue: (M, D), the teacher's embeddings of other images.
        temperature: Above 0; divides the cosines.

    Returns:
        Scalar in nats, averaged over the N images.

    Raises:
        ValueError: The shapes differ.

    Source: the global term of LightlyTrain's distillation (version 3), by its documentation.
    """
    same_shape(student, teacher, "embeddings")
    if queue.dim() != 2 or queue.shape[1:] != student.shape[1:]:
        shapes = f"{tuple(queue.shape)} and {tuple(student.shape)}"
        raise ValueError(f"queue (M, D) and embeddings (N, D) do not fit: {shapes}")
    known = unit(queue, dim=1).T  # (D, M)
    return _divergence(unit(student, dim=1) @ known, unit(teacher, dim=1) @ known, temperature)


@full_precision
def patch_loss(student_map: Tensor, teacher_map: Tensor, temperature: float) -> Tensor:
    """KL divergence between the similarities of each patch to all patches of the same image.

    Args:
        student_map: (N, C, H, W), resized to the teacher's height and width.
        teacher_map: (N, any number of channels, h, w), of the same images.
        temperature: Above 0; divides the cosines.

    Returns:
        Scalar in nats, averaged over the N h w patches; 0 for maps of one patch.

    Source: the local term of LightlyTrain's distillation (version 3), by its documentation.
    """
    size = teacher_map.shape[2:]
    if student_map.shape[2:] != size:
        student_map = F.interpolate(student_map, size, mode="bilinear", antialias=True)
    ours, theirs = _patch_cosines(student_map), _patch_cosines(teacher_map)  # (N, P, P)
    return _divergence(ours.flatten(0, 1), theirs.flatten(0, 1), temperature)


class Embedding(Method):
    """Learn the teacher's similarities between images, and between the patches of an image.

    Labels never reach the backbone: where the data set has some, the classifier alone is trained
    with them, on detached features.

    The student's embedding passes through a linear projector, which is discarded after training:
    its pooled features or, if it has no classifier, its output. The queue has the teacher's pooled
    features of the latest images; it starts with random directions, so that the first steps have a
    target.

    Attributes:
        queue: (M, D), rows of unit length.
        position: The row with the oldest embedding.

    Source: version 3 of LightlyTrain's distillation, by its documentation. Here the learning rate
    is that of the study, mixup is a setting of `distil`, and the size of the queue is ours.
    """

    wants = "layers"
    capturable = True
    needs_labels = False
    teacher: Chain
    student_layers: tuple[str, ...]
    queue: Tensor
    position: Tensor

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        weight: NonNegativeFloat = 1.0,
        local_weight: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 0.07,
        queue: Annotated[int, Field(ge=2)] | None = None,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
    ) -> None:
        """Args:
        weight: Weight of the similarities to the queue.
        local_weight: Weight of the similarities between patches; 0: without them.
        temperature: Divides the cosines, of student and teacher.
        queue: Number of embeddings; by default the largest power of two that is at most half of
            the training images, from 16 to 8,192.
        student_layer: The student's layer for patches; by default the last with several of them.
        teacher_layer: The teacher's layer for patches, chosen in the same way.
        """
        super().__init__(teacher, student, task)
        if teacher is None:
            raise ValueError("embedding reads the teacher's layers and got no teacher")
        self.weight, self.local_weight, self.temperature = weight, local_weight, temperature
        ours = feature_shapes(student, task.image_shape)
        theirs = feature_shapes(teacher, task.image_shape)
        # without a classifier, a network's output is its embedding: a ViT's may be its class token
        self.student_pool = pooled_layer(student) if task.num_classes else HEAD
        self.teacher_pool = pooled_layer(teacher)
        self.student_layers, self.feature_layers = (self.student_pool,), (self.teacher_pool,)
        if local_weight > 0:
            self.student_layer = _patches(student, ours, student_layer, "student", self.name)
            self.teacher_layer = _patches(teacher, theirs, teacher_layer, "teacher", self.name)
            self.student_layers = _different(self.student_layer, self.student_pool)
            self.feature_layers = _different(self.teacher_layer, self.teacher_pool)
        width = theirs[self.teacher_pool].channels
        inputs = (
            ours[self.student_pool].channels
            if task.num_classes
            else num_outputs(student, task.image_shape)
        )
        self.projector = nn.Linear(inputs, width)
        size = queue or default_queue(len(task.labels))
        self.register_buffer("queue", unit(torch.randn(size, width), dim=1))  # (M, D)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        ours = self.student.trace(
            batch.images,
            [layer for layer in self.student_layers if layer != HEAD],
            detach_after=self.student.layers[-1] if self.task.labeled else None,
        )
        theirs = self.teacher_features(batch)
        terms = {"queue": self.weight * self._queue_loss(ours, theirs)}
        if self.local_weight > 0:
            terms["patches"] = self.local_weight * patch_loss(
                as_map(self.student, self.student_layer, ours[self.student_layer]),
                as_map(self.teacher, self.teacher_layer, theirs[self.teacher_layer]),
                self.temperature,
            )
        if not self.task.labeled:
            return terms
        return terms | {"labels": cross_entropy(ours[HEAD], batch.targets)}

    def _queue_loss(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        output = ours[self.student_pool]
        if self.student_pool != HEAD:
            output = features(self.student, self.student_pool, output)
        student = self.projector(output)
        teacher = features(self.teacher, self.teacher_pool, theirs[self.teacher_pool])
        queue = self.queue.clone()  # the backward pass needs it as it was before the update
        if self.training:
            self._remember(teacher)
        return embedding_loss(student, teacher, queue, self.temperature)

    @torch.no_grad()
    def _remember(self, embeddings: Tensor) -> None:
        """Replace the oldest embeddings of the queue."""
        size = len(self.queue)
        new = unit(embeddings, dim=1)[-size:].to(self.queue.dtype)
        rows = (self.position + torch.arange(len(new), device=new.device)) % size
        self.queue[rows] = new
        self.position.copy_((self.position + len(new)) % size)


def default_queue(num_images: int) -> int:
    """The number of embeddings in the queue for a number of training images."""
    largest_power = 1 << (max(num_images // 2, 1).bit_length() - 1)
    return min(max(largest_power, SMALLEST_QUEUE), LARGEST_QUEUE)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened cosines, (rows, columns) of either side, averaged over the rows."""
    divergence = kl_divergence(student.double() / temperature, teacher.double() / temperature)
    return divergence.to(student.dtype)


def _patch_cosines(maps: Tensor) -> Tensor:
    """(N, P, P) of maps (N, C, H, W) with P = H W patches."""
    patches = unit(maps.flatten(2), dim=1)  # (N, C, P)
    return patches.transpose(1, 2) @ patches


def _patches(
    chain: Chain, shapes: Mapping[str, FeatureShape], named: str | None, who: str, method: str
) -> str:
    """The layer whose patches are compared: the one that is named, or the last with several.

    Raises:
        KdstepsError: There is no such layer, or it has one patch, which has nothing to compare.
    """
    several = [layer for layer in chain.layers if shapes[layer].height * shapes[layer].width > 1]
    if named is None and several:
        return several[-1]
    if named is not None and layer_of(chain, named, named, who, method) in several:
        return named
    found = f"the {who}" if named is None else f"the {who}'s layer {named!r}"
    raise KdstepsError(
        f"methods.{method}: {found} has no two patches to compare, which local_weight needs; "
        + (f"use one of {', '.join(several)}" if several else "set local_weight: 0")
    )


def _different(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
