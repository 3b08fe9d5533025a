"""Tensor helpers of the losses: precision, shape checks, unit vectors, resizing."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
Result = TypeVar("Result")

SMALLEST_NORM = 1e-12


def full_precision(loss: Callable[P, Result]) -> Callable[P, Result]:
    """Compute `loss` outside autocast, its half-precision tensors widened to float32.

    Sums over classes, images and positions lose too many digits in 16 bits; float64 stays float64.
    """

    @wraps(loss)
    def widened(*args: P.args, **kwargs: P.kwargs) -> Result:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = given[0].device.type if given else "cpu"
        with torch.autocast(device, enabled=False):
            return loss(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})

    return widened


def double_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute a loss between logits in float64, outside autocast; return float32, or float64.

    The divergence of near-equal predictions is a small difference of large terms, and at a high
    temperature all predictions are near equal: in float32 no digit may be right. Logits are small
    tensors, so float64 costs microseconds.
    """

    @wraps(loss)
    def widened(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        result = reduce(torch.promote_types, (value.dtype for value in given), torch.float32)
        with torch.autocast(given[0].device.type, enabled=False):
            doubled = {name: _double(value) for name, value in kwargs.items()}
            return loss(*map(_double, args), **doubled).to(result)

    return widened


@full_precision
def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (N, K) with class numbers (N,) or fractions (N, K), in nats.

    Under autocast on a GPU, PyTorch's takes the logarithm of the softmax in 16 bits.
    """
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher | student) in nats from float64 logits (N, K), averaged over the N images.

    Accurate for predictions that are almost equal, and so are its gradients.
    """
    loss: Tensor = _Divergence.apply(student, teacher)  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    """With r = ln p - ln q, the sum of p r equals that of p r + (q - p), as p and q sum to 1.

    In the latter the rounding errors of r cancel, and so do the terms of first order, if q - p is
    computed as p (exp(-r) - 1). It is also the gradient with respect to the student's logits.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
        ratio, probabilities = theirs - ours, theirs.exp()
        difference = torch.where(
            ratio > -1,  # exp(-r) may overflow below
            probabilities * torch.expm1(-ratio),
            ours.exp() - probabilities,
        )
        by_image = torch.addcmul(difference, probabilities, ratio).sum(dim=1)  # (N,)
        ctx.save_for_backward(difference, probabilities, ratio, by_image)
        return by_image.mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        difference, probabilities, ratio, by_image = ctx.saved_tensors
        scale = gradients[0] / len(by_image)
        to_teacher = None
        if ctx.needs_input_grad[1]:
            to_teacher = scale * probabilities * (ratio - by_image[:, None])
        return scale * difference, to_teacher


def same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Raise ValueError if the shapes differ, which broadcasting would hide."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher {what} differ in shape: {shapes}")


def same_images(student: Tensor, teacher: Tensor, what: str) -> None:
    """Raise ValueError if student and teacher have different numbers of images."""
    if len(student) != len(teacher):
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher {what} are of different images: {shapes}")


def one_label_each(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError where logits (N, K) and labels (N,) do not match."""
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits (N, K) and labels (N,) do not fit: {shapes}")


@full_precision
def unit(vectors: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` divided by their L2 norm; zero vectors stay zero and get no gradient.

    A zero vector has no direction. Dividing it by a small constant, as is usual, would give it a
    gradient as large as the inverse of that constant; a single dead feature map is enough.
    """
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    scaled = vectors / norm.clamp(min=SMALLEST_NORM)
    return torch.where(norm > SMALLEST_NORM, scaled, scaled.detach())


def to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of maps (N, C, H, W), the larger one averaged down to the size of the other."""
    height = min(first.shape[2], second.shape[2])
    width = min(first.shape[3], second.shape[3])
    return to_size(first, height, width), to_size(second, height, width)


def to_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps averaged down to (N, C, height, width); unchanged if they have that size."""
    if maps.shape[2:] == (height, width):
        return maps
    return _averaged(maps, (height, width))


@full_precision
def _averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(maps, size)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
