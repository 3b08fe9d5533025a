"""What a network costs: parameters, and multiply-adds and activations for images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

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
    counter = _FlopCounter()
    fast = torch.backends.mha.get_fastpath_enabled()
    # fused attention is one opaque operation; spelled out, its products are counted
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(network),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.flops // 2


def activations(network: nn.Module, images: Tensor) -> int:
    """Numbers in the outputs of all modules without submodules, in one forward pass in eval mode.

    Training stores about as many until the backward pass.

    Args:
        network: Any module of one input.
        images: (N, ...): the count is for all N together.
    """
    count = 0

    def add(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in network.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(add) for module in leaves]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return count


class _FlopCounter(TorchDispatchMode):
    """Adds up floating-point operations by torch's formulas, as torch's FlopCounterMode does.

    That one keeps the compiler out of its own code, and so it imports all of the compiler, which
    takes about as long as importing torch. Nothing is compiled here.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # it imports triton

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas: Mapping[Any, Any] = flop_registry
        self.flops: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func.overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=output))
        return output
