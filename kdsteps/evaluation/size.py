"""How large a network is: parameters, memory, and multiply-adds for one image."""

from __future__ import annotations

from torch import Tensor, nn

from kdsteps.models.cost import multiply_adds, num_parameters


def parameters(network: nn.Module, image: Tensor) -> int:
    """Number of weights, counting shared ones once."""
    return num_parameters(network)


def size_mib(network: nn.Module, image: Tensor) -> float:
    """Memory of weights and buffers in MiB."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def macs(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulate operations for one image.

    Args:
        network: Behind the step that resizes its images, if it has one. By convention that step
            counts as little as norms and activations do.
        image: (1, C, H, W) as in the data set; its values do not matter.
    """
    return multiply_adds(network, image)
