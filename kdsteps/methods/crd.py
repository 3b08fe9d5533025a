"""Contrastive representation distillation: find an image among thousands by its features."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdsteps.methods._checks import single_labels
from kdsteps.methods._draws import Sampler
from kdsteps.methods._features import OneLayer, Outputs, features, pooled_layer
from kdsteps.methods._tensors import full_precision, same_shape, unit
from kdsteps.methods.base import Batch
from kdsteps.models.feature_shapes import feature_shapes

NOISE_FLOOR = 1e-7  # added to the probability of noise in the denominators


class Contrast(nn.Module):
    """The contrastive loss with its memories: an embedding of each training image for each side.

    The student's embedding is compared with the teacher's memories of the same image and of others,
    and the teacher's with the student's memories. The first call fixes the two normalizers.

    Attributes:
        student_memory, teacher_memory: (M, D), rows of unit length after their first batch.
        student_scale, teacher_scale: ln Z of either side; NaN until the first call.

    Source: Tian et al. 2020, arXiv:1910.10699, and its official code.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    student_scale: Tensor
    teacher_scale: Tensor

    def __init__(
        self,
        student_memory: Tensor,
        teacher_memory: Tensor,
        *,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        """Args:
        student_memory: (M, D), copied.
        teacher_memory: (M, D), copied.
        temperature: Above 0.
        momentum: 0 to 1; fraction of the old memory that remains in each update.
        """
        super().__init__()
        same_shape(student_memory, teacher_memory, "memories")
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("student_memory", student_memory.clone())
        self.register_buffer("teacher_memory", teacher_memory.clone())
        self.register_buffer("student_scale", student_memory.new_tensor(math.nan))
        self.register_buffer("teacher_scale", teacher_memory.new_tensor(math.nan))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, own: Tensor, rows: Tensor) -> Tensor:
        """The loss of one batch; in training mode the memories of its images are updated after it.

        Args:
            student: (N, D), the student's embeddings, of any length.
            teacher: (N, D), the teacher's embeddings, of any length.
            own: (N,) the number of each training image.
            rows: (N, 1 + m) memories to compare with: a positive, then m negatives.

        Returns:
            Scalar, the sum of both sides, averaged over the N images.

        Raises:
            ValueError: The embeddings differ in shape, or the indices are not of N images.
        """
        same_shape(student, teacher, "embeddings")
        if own.shape != student.shape[:1] or rows.dim() != 2 or len(rows) != len(own):
            shapes = f"{tuple(own.shape)} and {tuple(rows.shape)}"
            raise ValueError(
                f"indices of {len(student)} images are (N,) and (N, 1 + m), not {shapes}"
            )
        student, teacher = unit(student, dim=1), unit(teacher, dim=1)
        ours = similarities(student, self.teacher_memory, rows) / self.temperature
        theirs = similarities(teacher, self.student_memory, rows) / self.temperature
        self._fix_scales(ours, theirs)
        count = len(self.student_memory)
        loss = _noise_contrast(ours - self.student_scale, count)
        loss = loss + _noise_contrast(theirs - self.teacher_scale, count)
        if self.training:
            self._remember(self.student_memory, student.detach(), own)
            self._remember(self.teacher_memory, teacher.detach(), own)
        return loss

    @torch.no_grad()
    def _fix_scales(self, ours: Tensor, theirs: Tensor) -> None:
        """Set both normalizers from the first batch, without waiting for the device."""
        for scale, exponents in ((self.student_scale, ours), (self.teacher_scale, theirs)):
            mean = exponents.flatten().logsumexp(dim=0) - math.log(exponents.numel())
            scale.copy_(
                torch.where(scale.isnan(), mean + math.log(len(self.student_memory)), scale)
            )

    @torch.no_grad()
    def _remember(self, memory: Tensor, embeddings: Tensor, own: Tensor) -> None:
        mixed = self.momentum * memory[own] + (1 - self.momentum) * embeddings
        memory[own] = unit(mixed, dim=1).to(memory.dtype)


class CRD(OneLayer):
    """Labels and a contrastive loss between embeddings of the pooled features.

    The positive of an image is the image itself (`exact`) or a random one of its class (`relax`).
    Negatives are drawn with replacement from all images of other classes, while the published code
    draws without: the noise is the same, and nothing has to be sorted.

    Source: Tian et al. 2020, arXiv:1910.10699; defaults of its CIFAR-100 code.
    """

    capturable = True
    one_class = True  # a mixed image is neither the one in the memories nor of one class
    term = "contrast"
    default_layer = staticmethod(pooled_layer)

    def __init__(
        self,
        *given: Any,
        width: PositiveInt = 128,
        negatives: PositiveInt = 16384,
        temperature: PositiveFloat = 0.07,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        mode: Literal["exact", "relax"] = "exact",
        weight: NonNegativeFloat = 0.8,
        **options: Any,
    ) -> None:
        """Args:
        width: Length of the embeddings.
        negatives: Number of negatives for each image.
        temperature: Divides the similarities.
        momentum: Fraction of the old memory that remains in each update.
        mode: Positives: the image itself (`exact`), or a random one of its class (`relax`).
        """
        super().__init__(*given, weight=weight, **options)
        self.mode, self.negatives = mode, negatives
        ours = feature_shapes(self.student, self.task.image_shape)[self.student_layer]
        theirs = feature_shapes(self.teacher, self.task.image_shape)[self.teacher_layer]
        self.student_projector = nn.Linear(ours.channels, width)
        self.teacher_projector = nn.Linear(theirs.channels, width)
        self.contrast = Contrast(
            _first_memory(len(self.task.labels), width),
            _first_memory(len(self.task.labels), width),
            temperature=temperature,
            momentum=momentum,
        )
        self.sampler = Sampler(self.task.labels, self.task.num_classes)

    def draw(self, index: Tensor) -> dict[str, Tensor]:
        rows = self.sampler(index, self.negatives, relax=self.mode == "relax")
        return {"rows": rows}  # (N, 1 + negatives)

    def loss(self, ours: Outputs, theirs: Outputs, batch: Batch) -> Tensor:
        student = features(self.student, self.student_layer, ours[self.student_layer])
        teacher = features(self.teacher, self.teacher_layer, theirs[self.teacher_layer])
        single_labels(batch, self.name)
        rows = (batch.drawn or self.draw(batch.index))["rows"]
        student, teacher = self.student_projector(student), self.teacher_projector(teacher)
        loss: Tensor = self.contrast(student, teacher, batch.index, rows)
        return loss


def similarities(embeddings: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    """Inner products (N, R) of embeddings (N, D) with the rows (N, R) of a memory (M, D).

    With all M at once where that is less work than fetching each row: fetching 16,385 of 50,000
    rows for 64 images moves a gigabyte for a product of a few milliseconds.
    """
    if len(memory) <= 8 * rows.shape[1]:
        before = memory.clone()  # the backward pass needs it as it was before the update
        return (embeddings @ before.T).gather(1, rows)
    return (memory[rows] @ embeddings[:, :, None])[:, :, 0]


def _noise_contrast(logs: Tensor, count: int) -> Tensor:
    """The loss of distinguishing the positive from m draws of the noise.

    Args:
        logs: (N, 1 + m), logarithms of the normalized ratios, the positive's in column 0.
        count: M.
    """
    noise = (logs.shape[1] - 1) / count
    floor = math.log(noise + NOISE_FLOOR)
    own = F.logsigmoid(logs[:, 0] - floor)
    others = F.logsigmoid(floor - logs[:, 1:]) + (math.log(noise) - floor)
    return -(own + others.sum(dim=1)).mean()


def _first_memory(count: int, width: int) -> Tensor:
    """Uniform in ±1/sqrt(width/3), so rows have about unit length."""
    bound = (width / 3) ** -0.5
    return torch.empty(count, width).uniform_(-bound, bound)
