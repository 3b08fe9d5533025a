"""What torch.fx does not record by itself: shapes of weights, `len`, functions with a gradient."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from kdsteps.models.cut.in_place import Overwritable


class Weight(Overwritable):
    """A parameter or buffer: values unknown while tracing, shape known."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: Tensor) -> None:
        super().__init__(node, tracer)
        self._shape = value.shape

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def size(self, dim: int | None = None) -> Any:
        return self._shape if dim is None else self._shape[dim]

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return self._shape.numel()

    def __len__(self) -> int:
        return self._shape[0]


@contextmanager
def len_of_proxies() -> Iterator[None]:
    """Let `len(images)` be a node of the graph: as a builtin it must return a number."""
    plain = builtins.len

    def length(value: Any) -> Any:
        traced = isinstance(value, fx.Proxy) and not isinstance(value, Weight)
        return value.size(0) if traced else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


@contextmanager
def own_functions(tracer: fx.Tracer) -> Iterator[None]:
    """Let a `torch.autograd.Function` be one node, which keeps the gradient that it defines.

    The base class is replaced, since `apply` may have been bound before: `sign = Sign.apply`.
    """
    base: Any = torch.autograd.function._SingleLevelFunction

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
            return super(base, cls).apply(*args, **kwargs)

        def applied(*args: Any, **kwargs: Any) -> Any:
            return cls.apply(*args, **kwargs)

        applied.__name__ = cls.__name__
        return tracer.create_proxy("call_function", applied, args, kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        del base.apply
