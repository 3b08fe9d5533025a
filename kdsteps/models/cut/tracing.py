"""What a network computes, written down as a graph: every operation once, in the order it runs.

The graph of a module that is in training mode differs from that of one in eval mode (functional
dropout, drop path), so there is one for each. Modules whose inside is not to be looked at, and
functions that branch on sizes, are single nodes.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from kdsteps.errors import KdstepsError


@dataclass(frozen=True)
class Rules:
    """What is a single node of the graph although tracing could or could not go into it.

    Attributes:
        modules: Classes of modules; norms and activations of `torch.nn` always are.
        functions: Functions, found wherever the network's modules name them.
    """

    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()


@dataclass(frozen=True)
class Traced:
    """The graph of a network in one mode.

    Attributes:
        graph: Its first placeholder is the images, its output the logits. Parameters and buffers
            are `get_attr` nodes by their names in the network.
        outputs: Node that a module gives, by the module's path; only modules called once.
        firsts: Modules that give several things, of which `outputs` has the first.
        constants: Tensors made while tracing, by the target of their `get_attr` node.
    """

    graph: fx.Graph
    outputs: dict[str, fx.Node]
    firsts: set[str]
    constants: dict[str, Tensor]


def trace_network(network: nn.Module, rules: Rules) -> Traced:
    """The graph of `network` in the mode it is in; the network itself stays as it was.

    Raises:
        KdstepsError: Its forward pass branches on what it computes.
    """
    twin = _twin(network)
    tracer = _Tracer(rules, "train" if network.training else "eval")
    try:
        graph = tracer.trace(twin, concrete_args=_defaults(network))
    # what a foreign forward makes of a proxy cannot be foreseen: TraceError, TypeError, ...
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KdstepsError(
            f"models: {type(network).__name__} cannot be cut, for its forward pass has no fixed "
            f"graph ({reason}); it serves with methods that look at logits alone"
        ) from error
    _keep_logits(graph)
    outputs = {path: node for path, node in tracer.outputs.items() if tracer.calls[path] == 1}
    return Traced(graph, outputs, tracer.firsts, tracer.constants)


def logits_of(output: Any) -> Tensor:
    """The logits (N, K) in what a network gives.

    Networks with auxiliary heads (Inception, GoogLeNet) name their logits; those with a head for
    labels and one for a distillation token (DeiT, LeViT, EfficientFormer) give both while training
    and their mean otherwise, so the mean it is.

    Raises:
        ValueError: It is neither a tensor nor several of them.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output:
        return torch.stack(list(output)).mean(dim=0)
    raise ValueError(f"a network that gives {type(output).__name__} has no logits")


def main_output(result: Any) -> Any:
    """What a module gives, or the first of several things: features, then sizes (MViT)."""
    return result[0] if isinstance(result, (tuple, list)) and result else result


class _Tracer(fx.Tracer):
    """Notes which node each module gives, and keeps its hands off the network."""

    def __init__(self, rules: Rules, mode: str) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=rules.functions)
        self._mode = mode
        self._leaves: tuple[type[nn.Module], ...] = (_NormBase, *rules.modules)
        self.outputs: dict[str, fx.Node] = {}
        self.calls: dict[str, int] = {}
        self.firsts: set[str] = set()
        self.constants: dict[str, Tensor] = {}
        self._made: dict[fx.Node, int] = {}
        self._names: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        named: Iterable[tuple[str, Tensor]] = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): name for name, tensor in named}
        return super().trace(root, concrete_args)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self._made[node] = len(self._made)
        return node

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, self._leaves) or super().is_leaf_module(module, path)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        path = self.path_of_module(module)
        before = len(self._made)
        result = super().call_module(module, forward, args, kwargs)
        self.calls[path] = self.calls.get(path, 0) + 1
        main = main_output(result)
        # one that hands on what it was given, such as a drop path of rate 0, gives nothing
        if isinstance(main, fx.Proxy) and self._made[main.node] >= before:
            self.outputs[path] = main.node
            if main is not result:
                self.firsts.add(path)
        return result

    def getattr(self, attr: str, value: Any, cache: dict[str, fx.Proxy]) -> Any:
        """Parameters and buffers as proxies that know their shape, for forwards branch on it."""
        name = self._names.get(id(value)) if isinstance(value, Tensor) else None
        if name is None:
            return value
        if name not in cache:
            node = self.create_node("get_attr", name, (), {})
            cache[name] = _Weight(node, self, value)
        return cache[name]

    def create_arg(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return super().create_arg(value)
        name = self._names.get(id(value))
        if name is None:
            name = f"{self._mode}_constant_{len(self.constants)}"
            self.constants[name] = value
            self._names[id(value)] = name  # the tensor lives on in `constants`, so does its id
        return self.create_node("get_attr", name, (), {})


class _Weight(fx.Proxy):
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


def _twin(network: nn.Module) -> nn.Module:
    """The same modules anew with the same tensors: tracing leaves proxies in caches of a module."""
    tensors: Collection[Tensor] = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Arguments of forward other than the images, at their defaults."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[2:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _keep_logits(graph: fx.Graph) -> None:
    """Let the graph give the logits alone."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    given = output.args[0]
    if isinstance(given, fx.Node) and hasattr(given.target, "_fields"):
        output.args = (given.args[given.target._fields.index("logits")],)
        graph.erase_node(given)  # else it would keep the auxiliary heads alive
    elif not isinstance(given, fx.Node):
        with graph.inserting_before(output):
            output.args = (graph.call_function(logits_of, (given,)),)
