"""Which images a network takes: their device and their type."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn


class InputType(NamedTuple):
    """Where images for a network have to be, and of what type."""

    device: torch.device
    dtype: torch.dtype


def zeros_for(network: nn.Module, *shape: int) -> Tensor:
    """Zeros of a shape, where and as a network takes images."""
    device, dtype = input_type(network)
    return torch.zeros(shape, device=device, dtype=dtype)


def input_type(network: nn.Module) -> InputType:
    """The device of a network, and the type of most of its real weights.

    A scale or a table may have another type than the layers that see images.
    """
    weights = list(network.parameters())
    numbers = Counter[torch.dtype]()
    for weight in weights:
        if weight.is_floating_point():
            numbers[weight.dtype] += weight.numel()
    dtype = max(numbers, key=lambda each: numbers[each], default=torch.get_default_dtype())
    return InputType(weights[0].device if weights else torch.device("cpu"), dtype)
