"""Adapt networks for large images to small ones, and to other numbers of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.errors import KdstepsError

_KERNEL = 3
_STEM_CONVOLUTIONS = 3  # a deep stem has three; a pooling after more of them is not the stem's
_POSITIONS = ("pos_embed", "pos_embedding", "relative_position", "patch_embed", "conv_proj")


@torch.no_grad()
def shrink_stem(network: nn.Module, where: str) -> None:
    """Let the first convolution work on every pixel: 3x3, stride 1, and no max-pooling after it.

    A larger kernel keeps its center, scaled to the spread that the fewer weights call for. Patchify
    stems (ConvNeXt) become an ordinary convolution. A network whose first convolution has stride 1
    (VGG) is small already and stays as it is. Further strides of a stem of several convolutions
    (HRNet, Inception) stay.

    Args:
        network: Changed in place.
        where: What the user calls it, for the message.

    Raises:
        KdstepsError: It is built on patches or positions, whose number a stem cannot change.
    """
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    if any(word in name for name in names for word in _POSITIONS):
        raise KdstepsError(
            f"models: small_stem does not fit {where}, which cuts images into patches; set a "
            "smaller patch_size where the network takes one"
        )
    first = first_convolution(network)
    if max(first.stride) == 1:
        return
    size = max(first.kernel_size)
    if size != _KERNEL:
        scale = max(1.0, size / _KERNEL)
        first.weight = nn.Parameter(_fit_kernel(first.weight) * scale)
        first.kernel_size = (_KERNEL, _KERNEL)
    if type(first) is nn.Conv2d:  # others, such as timm's Conv2dSame, pad by themselves
        first.padding = (1, 1)
    first.stride = (1, 1)
    _drop_pooling(network)


@torch.no_grad()
def fit_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take images of `channels`; in place.

    Weights for one channel are the sum over the old ones, for more they are the old ones in turn,
    scaled so that the sum stays. So does timm.
    """
    first = first_convolution(network)
    old = first.in_channels
    if channels == old:
        return
    if channels == 1:
        weight = first.weight.sum(dim=1, keepdim=True)
    else:
        turns = torch.arange(channels, device=first.weight.device) % old
        weight = first.weight[:, turns] * (old / channels)
    first.weight = nn.Parameter(weight)
    first.in_channels = channels


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The convolution that a network names first, which in all that we know is that of the images.

    Raises:
        KdstepsError: It has none.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise KdstepsError(
        f"models: {type(network).__name__} has no convolution; it takes images as they are"
    )


def _fit_kernel(weight: Tensor) -> Tensor:
    """The center (C, C', 3, 3) of kernels, or kernels with zeros around."""
    missing = _KERNEL - weight.shape[-1]
    before = missing // 2 if missing > 0 else -(-missing // 2)
    return F.pad(weight, (before, missing - before) * 2)


def _drop_pooling(network: nn.Module) -> None:
    """Replace the max-pooling of the stem, if there is one, by nothing."""
    convolutions = 0
    for path, module in network.named_modules():
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > _STEM_CONVOLUTIONS:
            return
        if isinstance(module, nn.MaxPool2d):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Identity())
            return
