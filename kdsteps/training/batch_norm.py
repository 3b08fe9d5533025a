"""Batch normalization with the statistics of a batch that several processes compute in parts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize(network: nn.Module, device: torch.device) -> None:
    """Let all batch normalization in `network` use the whole batch, of all processes.

    On a GPU with PyTorch's `SyncBatchNorm`, which does not run on a CPU; there with `_normalized`.
    Weights and buffers stay the same objects, under the same names.

    Args:
        network: Trained by all processes, each with an equal part of every batch.
        device: Of the network.
    """
    from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm

    if device.type == "cuda":
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            activates = isinstance(module, BatchNormAct2d)
            module.__dict__["forward"] = partial(_normalized, module, activates)


def _normalized(module: _BatchNorm, activates: bool, inputs: Tensor) -> Tensor:
    """What `module` computes from inputs (N, C, ...) of this and of all other processes.

    Args:
        activates: Whether it ends in the activation of timm's `BatchNormAct2d`.

    Raises:
        ValueError: There is one value per channel in all processes together.
    """
    if not (module.training or module.running_mean is None):
        return type(module).forward(module, inputs)
    values = inputs.float()
    dims = [dim for dim in range(values.dim()) if dim != 1]
    count = torch.distributed.get_world_size() * values.numel() // values.shape[1]
    if count == 1:
        raise ValueError("batch normalization needs more than one value per channel")
    mean = _everywhere(values.sum(dim=dims, keepdim=True)) / count  # (1, C, 1, ...)
    centered = values - mean
    variance = _everywhere((centered**2).sum(dim=dims, keepdim=True)) / count  # (1, C, 1, ...)
    _follow(module, mean.detach().flatten(), variance.detach().flatten() * count / (count - 1))
    outputs = centered * (variance + module.eps).rsqrt()
    if module.affine:
        outputs = outputs * module.weight.view_as(mean) + module.bias.view_as(mean)
    outputs = outputs.to(inputs.dtype)
    if activates:
        norm: Any = module
        outputs = norm.act(norm.drop(outputs))
    return outputs


@torch.no_grad()
def _follow(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics, if there are any, as PyTorch does."""
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    momentum = module.momentum
    if momentum is None:  # a plain mean over all batches
        momentum = 1 / int(module.num_batches_tracked)
    module.running_mean.lerp_(mean, momentum)
    module.running_var.lerp_(variance, momentum)


def _everywhere(tensor: Tensor) -> Tensor:
    """The sum over all processes; its gradient is the sum of the gradients in all of them."""
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    summed = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(summed)
    return summed
