"""What a network costs: parameters, and multiply-adds for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdsteps.models.evaluating import evaluating


def num_parameters(network: nn.Module) -> int:
    """Number of weights, shared ones counted once; buffers such as BN statistics do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Multiplications with the addition that follows, for one forward pass in eval mode.

    Convolutions, linear layers, matrix products and attention count; norms, activations, pooling
    and additions do not, as is usual.

    Args:
        network: Any module of one input.
        images: (N, ...): the count is for all N together, so pass one image for a network's cost.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # fused attention is one opaque operation; spelled out, its products are counted
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(network),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
