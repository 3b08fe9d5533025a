"""What a network costs: its parameters, and the multiply-adds of one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(module: nn.Module) -> int:
    """Trained numbers, without the buffers."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def multiply_adds(module: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds of one forward pass in eval mode: convolutions, matrix products, attention.

    Counted by PyTorch as two operations each, norms and activations not at all, as the field does.
    """
    was_training = module.training
    module.eval()
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    module.train(was_training)
    return counter.get_total_flops() // 2
