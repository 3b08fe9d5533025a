"""Trace a network as a graph: every operation once, in the order in which it runs.

The graph of a module in training mode differs from that in eval mode (functional dropout, drop
path), so there is one for each. Modules that should not be traced, and functions that branch on
sizes, are single nodes. Branches on the size of the images are followed for one size; a network
that branches on their pixels has no graph.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from kdsteps.errors import KdstepsError
from kdsteps.models.cut.dependence import dependence
from kdsteps.models.cut.in_place import Overwritable, overwritten, written_buffer
from kdsteps.models.cut.outputs import OutputRule, average
from kdsteps.models.cut.recording import Weight, len_of_proxies, own_functions
from kdsteps.models.cut.running import reason
from kdsteps.models.evaluating import evaluating
from kdsteps.models.input_type import input_type

ImageShape = tuple[int, int, int]
PROBE_BATCHES = (2, 3)


@dataclass(frozen=True)
class Rules:
    """Modules and functions that become single nodes of the graph instead of being traced.

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
        outputs: The node of a module's output, by the module's path; only modules called once.
        firsts: Modules that return several things, of which `outputs` has the first.
        constants: Tensors made while tracing, by the target of their `get_attr` node.
        writes: Operations that write into a buffer or weight, with its `get_attr` node.
        detached: Operations under `torch.no_grad`.
    """

    graph: fx.Graph
    outputs: dict[str, fx.Node]
    firsts: set[str]
    constants: dict[str, Tensor]
    writes: dict[fx.Node, fx.Node]
    detached: set[fx.Node]


def trace_network(
    network: nn.Module, rules: Rules, image_shape: ImageShape, output: OutputRule
) -> Traced:
    """The graph of `network` in its current mode; the network itself is left unchanged.

    Args:
        network: Maps images to logits.
        rules: Which modules and functions are not traced.
        image_shape: (C, H, W); decides branches on the size of the images.
        output: Where its logits are.

    Raises:
        KdstepsError: Its forward pass branches on what it computes, or draws numbers that would be
            the same in each run of the graph, or assigns a buffer, or TorchScript compiled it.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise KdstepsError(
            "models: a network that TorchScript compiled cannot be cut; use it before "
            "torch.jit.script or torch.jit.trace, or methods that use logits alone"
        )
    twin = _twin(network)
    tracer = _Tracer(rules, network, image_shape)
    before = _random_states(twin)
    try:
        with torch.enable_grad():  # operations under `no_grad` are those that turn it off
            graph = tracer.trace(twin, concrete_args=_defaults(network))
    # third-party code may raise anything on a proxy: TraceError, TypeError, ...
    except Exception as error:
        raise KdstepsError(
            f"models: {type(network).__name__} cannot be cut, because its forward pass has no "
            f"fixed graph ({reason(error)}); methods that use logits alone can use it"
        ) from error
    if _random_states(twin) != before:  # operations of the graph draw when it runs
        raise KdstepsError(
            f"models: {type(network).__name__} cannot be cut, because its forward pass draws "
            "random numbers outside of tensor operations; methods that use logits alone can use it"
        )
    for name, buffer in twin.named_buffers():
        if isinstance(buffer, fx.Proxy):
            raise KdstepsError(
                f"models: {type(network).__name__} cannot be cut, because its forward pass assigns "
                f"the buffer {name!r}; let it write into the buffer (`.copy_`), or use methods "
                "that use logits alone"
            )
    _select_logits(graph, output)
    outputs = {path: node for path, node in tracer.outputs.items() if tracer.calls[path] == 1}
    return Traced(graph, outputs, tracer.firsts, tracer.constants, tracer.writes, tracer.detached)


def main_output(result: Any) -> Any:
    """What a module returns, or the first of several things: features, then sizes (MViT)."""
    return result[0] if isinstance(result, (tuple, list)) and result else result


def noise(network: nn.Module, image_shape: ImageShape, batch: int) -> Tensor:
    """Images that differ from each other; no result may depend on their content."""
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, *image_shape, generator=generator).to(*input_type(network))


class _Tracer(fx.Tracer):
    """Notes the node of each module's output, and leaves the network unchanged."""

    def __init__(self, rules: Rules, network: nn.Module, image_shape: ImageShape) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=rules.functions)
        self._mode = "train" if network.training else "eval"
        self._leaves: tuple[type[nn.Module], ...] = (
            _NormBase,
            torch.jit.ScriptModule,
            *rules.modules,
        )
        self.outputs: dict[str, fx.Node] = {}
        self.calls: dict[str, int] = {}
        self.firsts: set[str] = set()
        self.constants: dict[str, Tensor] = {}
        self.writes: dict[fx.Node, fx.Node] = {}
        self.detached: set[fx.Node] = set()
        self._made: dict[fx.Node, int] = {}
        self._overwritten: dict[fx.Node, fx.Node] = {}  # by what has its value now
        self._names: dict[int, str] = {}
        self._network, self._image_shape = network, image_shape
        self._branches: list[_Values] = []
        self._casts = _casts()
        self._is_running = False  # the network, whose modules call the tracer meanwhile

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        named: Iterable[tuple[str, Tensor]] = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): name for name, tensor in named}
        with len_of_proxies(), own_functions(self):
            return super().trace(root, concrete_args)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self._made[node] = len(self._made)
        if (target := overwritten(node, self.root)) is not None:
            self._overwritten[target] = node
        if (buffer := written_buffer(node, self.root)) is not None:
            self.writes[node] = buffer
        if not torch.is_grad_enabled():
            self.detached.add(node)
        if _casts() != self._casts:
            raise KdstepsError("it turns autocast on or off")
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Overwritable(node, self)

    def _current(self, node: fx.Node) -> fx.Node:
        """The node that has the value of `node` now: the last one that overwrote it, or itself."""
        while node in self._overwritten:
            node = self._overwritten[node]
        return node

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, self._leaves) or super().is_leaf_module(module, path)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if self._is_running:
            return forward(*args, **kwargs)
        path = self.path_of_module(module)
        before = len(self._made)
        result = super().call_module(module, forward, args, kwargs)
        self.calls[path] = self.calls.get(path, 0) + 1
        main = main_output(result)
        # one that returns its input, such as a drop path of rate 0, has no separate output
        if isinstance(main, fx.Proxy) and self._made[self._current(main.node)] >= before:
            self.outputs[path] = self._current(main.node)
            if main is not result:
                self.firsts.add(path)
        return result

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition, where it depends on the size of the images alone and not on their number."""
        nodes = list(self.graph.nodes)
        images = next(node for node in nodes if node.op == "placeholder")
        content, sized = dependence(nodes, images)
        if obj.node in content or obj.node not in sized:
            return super().to_bool(obj)
        self._is_running = True
        try:
            found = {bool(values.of(obj.node)) for values in self._values()}
        finally:
            self._is_running = False
        return found.pop() if len(found) == 1 else super().to_bool(obj)

    def _values(self) -> list[_Values]:
        if not self._branches:
            self._branches = [
                _Values(self._network, self.graph, self.constants, self._image_shape, batch)
                for batch in PROBE_BATCHES
            ]
        return self._branches

    def getattr(self, attr: str, value: Any, cache: dict[str, fx.Proxy]) -> Any:
        """Parameters and buffers as proxies that know their shape, since forwards branch on it."""
        name = self._names.get(id(value)) if isinstance(value, Tensor) else None
        if name is None or self._is_running:
            return value
        if name not in cache:
            node = self.create_node("get_attr", name, (), {})
            cache[name] = Weight(node, self, value)
        return cache[name]

    def create_arg(self, value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            return self._current(value.node)
        if not isinstance(value, Tensor):
            return super().create_arg(value)
        name = self._names.get(id(value))
        if name is None:
            name = f"{self._mode}_constant_{len(self.constants)}"
            self.constants[name] = value
            self._names[id(value)] = name  # the tensor stays in `constants`, so its id stays valid
        return self.create_node("get_attr", name, (), {})


class _Values(fx.Interpreter):
    """The values of a growing graph's nodes for one batch of noise."""

    def __init__(
        self,
        network: nn.Module,
        graph: fx.Graph,
        constants: dict[str, Tensor],
        image_shape: ImageShape,
        batch: int,
    ) -> None:
        twin = copy.deepcopy(network) if network.training else network
        super().__init__(twin, garbage_collect_values=False, graph=graph)
        self._growing, self._constants = graph, constants
        self._twin = twin
        self.args_iter = iter([noise(network, image_shape, batch)])

    def of(self, node: fx.Node) -> Any:
        """The value of a node; each node runs once."""
        with evaluating(self._twin), torch.random.fork_rng(devices=[]):
            for earlier in self._growing.nodes:
                if earlier not in self.env:
                    self.env[earlier] = self.run_node(earlier)
        return self.env[node]

    def fetch_attr(self, target: str) -> Any:
        return self._constants[target] if target in self._constants else super().fetch_attr(target)


def _casts() -> list[bool]:
    """Whether autocast is on, on each kind of device."""
    return [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]


def _random_states(network: nn.Module) -> bytes:
    """The states of all global generators on the CPU, and of those that modules hold."""
    states: list[Any] = [torch.get_rng_state(), random.getstate(), np.random.get_state()]
    for value in (value for module in network.modules() for value in vars(module).values()):
        if isinstance(value, random.Random):
            states.append(value.getstate())
        elif isinstance(value, np.random.Generator):
            states.append(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState | torch.Generator):
            states.append(value.get_state())
    return pickle.dumps([s.tolist() if isinstance(s, Tensor) else s for s in states])


def _twin(network: nn.Module) -> nn.Module:
    """Copies of the modules with the same tensors: tracing leaves proxies in a module's caches."""
    tensors: Collection[Tensor] = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Arguments of forward other than the images, at their defaults."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[2:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _select_logits(graph: fx.Graph, rule: OutputRule) -> None:
    """Let the graph return the logits alone.

    Raises:
        KdstepsError: They cannot be distinguished from other outputs.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    returned = output.args[0]
    if isinstance(returned, fx.Node) and hasattr(returned.target, "_fields"):  # a named tuple
        make: Any = returned.target
        chosen = rule.select(make(*returned.args, **returned.kwargs))
        output.args = (chosen,)
        graph.erase_node(returned)  # else it would keep the auxiliary heads alive
    else:
        chosen = rule.select(returned)
        output.args = (chosen,)
    if chosen is None:
        rule.refuse("several outputs")
    if not isinstance(chosen, fx.Node):
        with graph.inserting_before(output):
            output.args = (graph.call_function(average, (chosen,)),)
