"""What is measured of a trained network: how right, how sure, how large and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.data.images import Drawn


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[Drawn]) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,) over all batches, on the CPU, the network in eval mode."""
    was_training = network.training
    network.eval()
    found = [(network(batch.images).float().cpu(), batch.labels.cpu()) for batch in batches]
    network.train(was_training)
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(labels)


def judge(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """How right and how sure predictions are.

    Args:
        logits: (N, K).
        labels: (N,).
        bins: Of the calibration error, equally wide over the confidence.

    Returns:
        `accuracy` and `top5` as shares, `nll` in nats, `calibration_error` as a share.
    """
    if logits.shape[0] != labels.shape[0] or not len(labels):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(labels)} labels")
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = top == labels[:, None]
    return {
        "accuracy": hits[:, 0].double().mean().item(),
        "top5": hits.any(dim=1).double().mean().item(),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "calibration_error": calibration_error(logits, labels, bins),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Expected calibration error: how far confidence lies from accuracy, weighted over bins.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5; a confidence of exactly 0 counts to the
    first bin.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, right - confidence)
    return (gap.abs().sum() / len(labels)).item()


def compare(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """How a student's predictions lie to its teacher's, both (N, K) of the same images.

    Returns:
        `agreement`: share of images with the same first class; `kl_to_teacher`: mean KL from
        teacher to student in nats, at temperature 1.
    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits differ in shape: {shapes}")
    student = student_logits.double().log_softmax(dim=1)
    teacher = teacher_logits.double().log_softmax(dim=1)
    same = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return {"agreement": same.double().mean().item(), "kl_to_teacher": kl.item()}


def size_of(network: nn.Module) -> dict[str, Any]:
    """`parameters` and `size_mib`, the latter with buffers, as the network lies in memory."""
    tensors = [*network.parameters(), *network.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
        "size_mib": size / 2**20,
    }


@torch.inference_mode()
def latency(network: nn.Module, image_shape: tuple[int, int, int], runs: int) -> dict[str, float]:
    """Milliseconds for one image: `latency_ms` the median, `latency_p90_ms` the 90th percentile.

    On a CPU one core computes: one image seldom feeds more, and their waiting for each other would
    be measured too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network.eval()
    device = next(network.parameters()).device
    image = torch.zeros(1, *image_shape, device=device)
    took = []
    for _ in range(max(3, runs // 10) + runs):
        start = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    median, p90 = np.percentile(took[-runs:], [50, 90])
    return {"latency_ms": float(median), "latency_p90_ms": float(p90)}
