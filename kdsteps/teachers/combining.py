"""Combine the logits of several teachers into those of one, image by image.

Logits are combined before the softmax, so that every method that learns from logits can use the
result. Computed in float64: the result does not depend on how many images are in a batch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SPREAD_FLOOR = 1e-7  # added to the standard deviation


class Combining(NamedTuple):
    """How logits are combined, and whether as they are or standardized first."""

    combine: Literal["mean", "median", "confidence"] = "mean"
    space: Literal["logits", "standardized"] = "logits"


def combined_logits(logits: Tensor, how: Combining, targets: Tensor | None = None) -> Tensor:
    """The logits of several teachers as those of one.

    `mean` and `median` work class by class; the median of an even number of teachers is the mean of
    the middle two, so for two teachers it is the mean. `confidence` is a mean with the weights of
    `confidence_weights`. With `how.space` "standardized", each teacher's logits are standardized
    before anything else, and so is what the weights are computed from.

    Args:
        logits: (M, N, K), of M teachers.
        targets: For `confidence`: class numbers (N,), or fractions of classes (N, K).

    Returns:
        (N, K), in the type of `logits`.

    Raises:
        ValueError: `logits` has another number of dimensions, or `confidence` has no targets.

    Source: CA-MKD (Zhang, Chen, Wang 2022, arXiv:2201.00007) for `confidence`. It weights the
    losses of the teachers instead of their logits; with logits, a method needs no change.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits of several teachers have shape (M, N, K), not {logits.shape}")
    given = standardized(logits) if how.space == "standardized" else logits.double()
    if how.combine == "median":
        ranked, middle = given.sort(dim=0).values, len(given) // 2
        found = (ranked[middle] + ranked[len(given) - 1 - middle]) / 2
    elif how.combine == "mean":
        found = given.mean(dim=0)
    elif targets is None:
        raise ValueError("confidence needs the classes of the images")
    else:
        weights = confidence_weights(given, targets)  # (M, N)
        found = (weights[:, :, None] * given).sum(dim=0)
    return found.to(logits.dtype)


def standardized(logits: Tensor) -> Tensor:
    """Logits (..., K) at mean 0 and standard deviation 1 (K - 1 in its denominator), in float64.

    Logits that are all equal become zeros.

    Source: Sun et al. 2024, arXiv:2403.01427.
    """
    centered = logits.double() - logits.double().mean(dim=-1, keepdim=True)
    return centered / (centered.std(dim=-1, keepdim=True) + _SPREAD_FLOOR)


def confidence_weights(logits: Tensor, targets: Tensor) -> Tensor:
    """How much each teacher counts for each image, by its cross-entropy with the label.

    w_m = (1 - softmax_m(CE_m)) / (M - 1): the weights of an image add up to 1, and no teacher has
    more than 1 / (M - 1).

    Args:
        logits: (M, N, K), M at least 2.
        targets: Class numbers (N,), or fractions of classes (N, K).

    Returns:
        (M, N).

    Source: CA-MKD, as above.
    """
    losses = torch.stack([F.cross_entropy(each, targets, reduction="none") for each in logits])
    return (1 - losses.softmax(dim=0)) / (len(logits) - 1)
