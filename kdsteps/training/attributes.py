"""State that the user's modules keep in plain attributes, which no state dict has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))
_SIMPLE = (bool, int, float, str)
_TENSOR, _ON_CPU = "kdsteps tensor", "on the CPU"  # keys of a packed tensor


class Attributes:
    """The attributes of a module and of all inside it that hold tensors and simple values.

    A running mean in `self.mean`, say, is as much part of a run as a buffer.
    """

    def __init__(self, module: nn.Module) -> None:
        """Args:
        module: As a run begins with it.
        """
        self._module = module
        # with the values, whose places no new ones can take then
        self._before = {key: (_mark(value), value) for key, value in self._found()}

    def changed(self) -> dict[tuple[str, str], Any]:
        """Those that are not as they were at first, by the path of their module and their name."""
        return {
            key: _packed(value)
            for key, value in self._found()
            if key not in self._before or _mark(value) != self._before[key][0]
        }

    def restore(self, changed: dict[tuple[str, str], Any], device: torch.device) -> None:
        """Set attributes to what `changed` returned in an earlier run."""
        for (path, name), value in changed.items():
            setattr(self._module.get_submodule(path), name, _unpacked(value, device))

    def _found(self) -> Iterator[tuple[tuple[str, str], Any]]:
        for path, module in self._module.named_modules():
            for name, value in vars(module).items():
                if name not in _OF_TORCH and _is_simple(value):
                    yield (path, name), value


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo at the end of the block what it changes in attributes and buffers of a module.

    Args:
        device: Where tensors are that are not on the CPU.
    """
    attributes = Attributes(module)
    kept = {key: (mark, _packed(value)) for key, (mark, value) in attributes._before.items()}
    buffers = [
        (inner, name, buffer, buffer.clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        now = {key: _mark(value) for key, value in attributes._found()}
        for path, name in now.keys() - kept.keys():
            delattr(module.get_submodule(path), name)
        for (path, name), (mark, value) in kept.items():
            if now.get((path, name)) != mark:
                setattr(module.get_submodule(path), name, _unpacked(value, device))
        for inner, name, buffer, value in buffers:
            inner._buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)


def _is_simple(value: object) -> bool:
    """Whether a saved state can hold a value: tensors, simple values, lists and dicts of them."""
    if type(value) in (list, tuple):
        return all(map(_is_simple, value))  # type: ignore[call-overload]
    if type(value) is dict:
        return all(isinstance(key, _SIMPLE) and _is_simple(item) for key, item in value.items())
    return value is None or type(value) in _SIMPLE or type(value) is Tensor


def _mark(value: Any) -> Any:
    """What differs if a value was replaced, or a tensor written to."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, dict):
        return [(key, _mark(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_mark(item) for item in value]
    return repr(value)


def _packed(value: Any) -> Any:
    """A copy of a value, its tensors free of their graph, with whether each is on the CPU."""
    if isinstance(value, Tensor):
        return {_TENSOR: value.detach().clone(), _ON_CPU: value.device.type == "cpu"}
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_packed, value))
    return value


def _unpacked(value: Any, device: torch.device) -> Any:
    """What was packed; tensors that were not on the CPU are on `device`."""
    if isinstance(value, dict) and value.keys() == {_TENSOR, _ON_CPU}:
        return value[_TENSOR] if value[_ON_CPU] else value[_TENSOR].to(device)
    if isinstance(value, dict):
        return {key: _unpacked(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(item, device) for item in value)
    return value
