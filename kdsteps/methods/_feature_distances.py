"""Losses between features of one shape: maps (N, C, H, W), tokens (N, T, D), vectors (N, D)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdsteps.methods._tensors import full_precision

FeatureDistance = Literal["mse", "cosine", "huber", "distribution"]


@full_precision
def squared_by_image(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of each image's features, (N,)."""
    return (ours - theirs).square().flatten(1).mean(dim=1)


@full_precision
def cosine_by_image(ours: Tensor, theirs: Tensor) -> Tensor:
    """One minus the cosine of each image's two flattened features, (N,): 0 to 2."""
    return 1 - F.cosine_similarity(ours.flatten(1), theirs.flatten(1))


@full_precision
def huber_by_image(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean Huber loss of each image's features, (N,); quadratic below a difference of 1."""
    return F.huber_loss(ours, theirs, reduction="none").flatten(1).mean(dim=1)


@full_precision
def distribution_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared errors of the features, the batch's geometry, channel means and channel spreads.

    Geometry is the (N, N) matrix of cosines between images. All terms have weight 1.

    Source: ours, after the "distribution-aware alignment" of the abstract of arXiv:2511.14981,
    which has no formula.
    """
    geometry = F.mse_loss(_cosines(ours), _cosines(theirs))
    positions = tuple(dim for dim in range(ours.ndim) if dim != _channels(ours))
    mean = F.mse_loss(ours.mean(dim=positions), theirs.mean(dim=positions))
    spread = F.mse_loss(_spread(ours, positions), _spread(theirs, positions))
    return F.mse_loss(ours, theirs) + geometry + mean + spread


BY_IMAGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_by_image,
    "cosine": cosine_by_image,
    "huber": huber_by_image,
}


def feature_distance(name: FeatureDistance, ours: Tensor, theirs: Tensor) -> Tensor:
    """A loss by name, averaged over the images of the batch: a scalar."""
    if name == "distribution":
        return distribution_distance(ours, theirs)
    return BY_IMAGE[name](ours, theirs).mean()


def _cosines(features: Tensor) -> Tensor:
    """(N, N)."""
    unit = F.normalize(features.flatten(1))
    return unit @ unit.T


def _channels(features: Tensor) -> int:
    """The dimension of the channels: the last for tokens and vectors, the second for maps."""
    return 1 if features.ndim == 4 else features.ndim - 1


def _spread(features: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Standard deviation of each channel; the small number makes its gradient finite at zero."""
    return (features.var(dim=positions, correction=0) + 1e-8).sqrt()
