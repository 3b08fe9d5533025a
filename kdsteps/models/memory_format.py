"""The memory format of a batch and of weights with which a network runs fast."""

from __future__ import annotations

import torch
from torch import nn

_FEWEST = 16  # input channels of a strided 1x1 convolution that runs with the channels last


def batch_format(network: nn.Module) -> torch.memory_format:
    """Channels last for a network of convolutions, else contiguous.

    A single convolution, such as the patch embedding of a transformer, does not count. On
    two cores a training step of every convolutional family here took 0.55 to 0.95 of its time
    with the channels last (docs/performance.md).

    With a strided 1x1 convolution of fewer than 16 channels, such as the shortcut of a very narrow
    ResNet, it is contiguous: with the channels last and images from 48 pixels on, the backward pass
    of torch 2.13 on a CPU with AVX-512 writes past its memory, and the process crashes.

    So is a network with a module that declares `needs_contiguous`, as a cut one does that was
    tried and cannot run otherwise: after `x.view(len(x), -1)`, say.
    """
    if any(_needs_contiguous(module) or _is_narrow(module) for module in network.modules()):
        return torch.contiguous_format
    return torch.channels_last if has_convolutions(network) else torch.contiguous_format


def has_convolutions(network: nn.Module) -> bool:
    """Whether a network has more than one convolution with a kernel larger than 1x1."""
    spatial = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    ]
    return len(spatial) > 1


def set_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Bring the weights of convolutions into a memory format.

    Left as they are: those of parts that need contiguous maps, and other weights of four
    dimensions, which a network may read in their order.
    """
    kept = {
        inner
        for module in network.modules()
        if _needs_contiguous(module)
        for inner in module.modules()
    }
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module not in kept:
            for weight in module.parameters():
                if weight.ndim == 4:
                    # `contiguous` would leave strides that fit both formats, and round otherwise
                    weight.data = weight.data.to(weight.device, memory_format=memory_format)


def _needs_contiguous(module: nn.Module) -> bool:
    return getattr(module, "needs_contiguous", False) is True


def _is_narrow(module: nn.Module) -> bool:
    """Whether it is a strided 1x1 convolution of few channels."""
    return (
        isinstance(module, nn.Conv2d)
        and max(module.kernel_size) == 1
        and max(module.stride) > 1
        and module.in_channels // module.groups < _FEWEST
    )
