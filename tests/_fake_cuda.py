"""Training steps on tensors that claim to be on a GPU, where there is none.

Under torch's FakeTensorMode a tensor has a shape, a type and a device but no numbers. An operation
that needs a number, and so would wait for the GPU, raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdsteps.methods._draws import Draws
from kdsteps.methods.base import Batch, Method
from kdsteps.methods.block_kd import BlockKD

UPDATES = ("aten._fused_sgd_", "aten._fused_adamw_")  # unknown to the mode; they return nothing
INDEXING = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it, tensors are fake, and autocast and random draws work for `cuda`."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given: True)
    # there are no fake generators; the default one of a device is not looked for
    monkeypatch.setattr(Draws, "generator", lambda self, device: None)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_fallback_kernels=False):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def number_of(device: torch.device | int | None) -> int:
    """As some functions of torch.cuda do it: only None, a number, or a device with a number."""
    return 0 if device is None else torch._utils._get_device_index(device)


def on_cuda(tensor: Tensor) -> Tensor:
    """A fake tensor like this one."""
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
    ).requires_grad_(tensor.requires_grad)


def method_on_cuda(method: Method) -> Method:
    """The method, its teacher, and its copies of the teacher's blocks, with fake tensors."""
    if method.teacher is not None:
        method.teacher._apply(on_cuda)
    if isinstance(method, BlockKD) and method.stones.norm == "batch":
        for span in method.stones.spans:
            span._apply(on_cuda)
    method._apply(on_cuda)
    return method


def batch_on_cuda(batch: Batch) -> Batch:
    fields = ("images", "labels", "index", "view")
    return replace(batch, **{name: on_cuda(getattr(batch, name)) for name in fields})


class Watch(TorchDispatchMode):
    """Notes every operation.

    Attributes:
        waits: Those that touch the CPU or index by a mask, with the devices of their tensors.
        ran: All, with their arguments that are not tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.ran: list[tuple[str, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        result = None if name in UPDATES else func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs))
        tensors = [each for each in [*given, *tree_leaves(result)] if isinstance(each, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        masked = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors)
        if devices - {"cuda"} or (name in INDEXING and masked):
            self.waits.append(f"{func} on {', '.join(sorted(devices))}")
        self.ran.append((name, [each for each in given if not isinstance(each, Tensor)]))
        return result


def backward(loss: Tensor) -> None:
    """The gradients of a fake loss, in `grad` of its leaves.

    Torch's engine looks for a driver if torch was built for CUDA, so the nodes of the graph are
    called here, without hooks of tensors.
    """
    with torch.no_grad():
        waiting: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
        for node in _in_order(loss.grad_fn):
            gradients = waiting.pop(node, None)
            if gradients is None:
                continue
            if hasattr(node, "variable"):
                _accumulate(node.variable, gradients[0])
                continue
            in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
            found = node.apply(*gradients) if in_python else node(*gradients)
            found = found if isinstance(found, tuple) else (found,)
            for gradient, (following, number) in zip(found, node.next_functions, strict=True):
                if following is not None and gradient is not None:
                    _add(waiting, following, number, gradient)


def _in_order(last: Any) -> list[Any]:
    """The nodes of a graph from the loss to the leaves, each after all that it depends on."""
    order: list[Any] = []
    seen, stack = set(), [(last, False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((each, False) for each, _ in node.next_functions if each is not None)
    return order[::-1]


def _add(waiting: dict[Any, list[Tensor | None]], node: Any, number: int, new: Tensor) -> None:
    leaf = hasattr(node, "variable")
    inputs = [node.variable] if leaf else node._input_metadata
    new = new.sum_to_size(inputs[number].shape).to(inputs[number].dtype)
    gradients = waiting.setdefault(node, [None] * len(inputs))
    there = gradients[number]
    gradients[number] = new if there is None else there + new


def _accumulate(weight: Tensor, gradient: Tensor | None) -> None:
    assert gradient is not None
    assert gradient.device == weight.device
    weight.grad = gradient.detach() if weight.grad is None else weight.grad + gradient.detach()
