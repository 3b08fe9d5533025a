"""Predictions of a network, and how accurate, calibrated and close to a teacher's they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.data.images import ImageBatch

VARYING = (
    "for the same images differ in batches of another size, as with dropout that stays on in "
    "evaluation, or batch normalization by the batch's own statistics; let the network depend on "
    "its mode (`training=self.training`, `track_running_stats=True`)"
)
"""What is wrong with outputs that vary (`varies`)."""
AGAIN, _FEW = 16, 5  # images that are predicted twice, the second time these first alone
_ROUNDING = 0.01  # of the largest output


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[ImageBatch]) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,) over all batches, on the CPU, from the network in eval mode."""
    was_training = network.training
    network.eval()
    try:
        found = [(network(batch.images).float().cpu(), batch.labels.cpu()) for batch in batches]
    finally:
        network.train(was_training)
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def varies(network: nn.Module, outputs: Tensor, images: Tensor) -> bool:
    """Whether a network's outputs for the first images change in another pass, beyond rounding.

    Args:
        network: In eval mode.
        outputs: (M, ...), M at least N.
        images: (N, C, H, W).
    """
    parts = images[:_FEW], images[_FEW:AGAIN]
    again = torch.cat([network(part).float().cpu() for part in parts if len(part)])
    before = outputs[: len(again)].float().cpu()
    return bool((again - before).abs().max() > _ROUNDING * before.abs().max())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose highest logit is that of the label.

    Args:
        logits: (N, K).
        labels: (N,).

    Raises:
        ValueError: There are no images, or not as many logits as labels.
    """
    _check_rows(logits, labels)
    return (logits.argmax(dim=1) == labels).double().mean().item()


def top5_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose label is among the five highest logits; arguments as `accuracy`."""
    _check_rows(logits, labels)
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    return (top == labels[:, None]).any(dim=1).double().mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels in nats; arguments as `accuracy`."""
    _check_rows(logits, labels)
    return F.cross_entropy(logits.double(), labels).item()


def ece(logits: Tensor, labels: Tensor, *, calibration_bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and accuracy, averaged over bins.

    Args:
        logits: (N, K).
        labels: (N,).
        calibration_bins: Bins of equal width over the confidence, from 0 to 1.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5. A confidence of exactly 0 counts in the
    first bin.
    """
    _check_rows(logits, labels)
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)  # (N,) each
    correct = (predicted == labels).double()
    bin_of = (confidence * calibration_bins).ceil().long().clamp(1, calibration_bins) - 1
    gaps = torch.zeros(calibration_bins, dtype=torch.double)
    gaps.index_add_(0, bin_of, correct - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def accuracy_per_class(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Accuracy over the images of each class, (K,); None for a class without images."""
    _check_rows(logits, labels)
    num_classes = logits.shape[1]
    correct = logits.argmax(dim=1) == labels
    images = torch.bincount(labels, minlength=num_classes).tolist()
    hits = torch.bincount(labels[correct], minlength=num_classes).tolist()
    return [hit / count if count else None for hit, count in zip(hits, images, strict=True)]


def agreement(logits: Tensor, teacher_logits: Tensor) -> float:
    """Fraction of images on which student and teacher predict the same class.

    Args:
        logits: (N, K), the student's.
        teacher_logits: (N, K), of the same images.

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(logits, teacher_logits)
    return (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean().item()


def kl_to_teacher(logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean KL divergence from the teacher's to the student's probabilities in nats.

    Temperature 1; arguments as `agreement`.
    """
    _check_shapes(logits, teacher_logits)
    student = logits.double().log_softmax(dim=1)
    teacher = teacher_logits.double().log_softmax(dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True).item()


def _check_rows(logits: Tensor, labels: Tensor) -> None:
    if logits.shape[0] != labels.shape[0] or not len(labels):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(labels)} labels")


def _check_shapes(logits: Tensor, teacher_logits: Tensor) -> None:
    if logits.shape != teacher_logits.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits differ in shape: {shapes}")
