"""Where a traced network can be cut, and the piece between two cuts as a separate graph.

A node is a cut when its value is all that later operations need of the images. Sizes do not
count: what a network reads off the images' shape (rows of patches, say) is the same for every batch
of images of one size, so it is written into the piece as a number, and the batch is read again.
Tensors of sizes and weights alone (rotary position embeddings) are computed again in the piece.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdsteps.models.chain import HEAD
from kdsteps.models.cut.dependence import dependence
from kdsteps.models.cut.tracing import PROBE_BATCHES, Traced

Sizes = Mapping[fx.Node, tuple[Any, ...]]
"""The value of a node for each probe batch, if it is no tensor."""


class CutMap:
    """A traced network as a line of cuts.

    Args:
        traced: The graph.
        measure: Returns the values of nodes for each of `PROBE_BATCHES`; called at most once,
            where a size is needed after a node that would be a cut.
    """

    def __init__(self, traced: Traced, measure: Callable[[set[fx.Node]], Sizes]) -> None:
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.images = next(node for node in self.nodes if node.op == "placeholder")
        self.logits: fx.Node = self.nodes[-1].args[0]
        self.content, self.sized = dependence(self.nodes, self.images)
        self._sizes: Sizes = {}
        self._known: dict[fx.Node, bool] = {}
        self.cuts = self._find_cuts(measure)

    @cached_property
    def depth(self) -> Mapping[fx.Node, int]:
        """How many operations are on the longest way to each node."""
        found: dict[fx.Node, int] = {}
        for node in self.nodes:
            found[node] = 1 + max((found[source] for source in node.all_input_nodes), default=0)
        return found

    def piece(self, start: fx.Node | None, stop: fx.Node) -> tuple[fx.Graph, tuple[str, ...]]:
        """The operations that turn `start` (None: the images) into `stop`.

        Returns:
            A graph whose placeholders are the value at `start`, then the named parameters, buffers
            and constants that it needs.
        """
        start = start or self.images
        copier = _Copier(self, start)
        for node in self.nodes[self.order[start] + 1 : self.order[stop] + 1]:
            # in order and all of them: an operation in place may have no user, yet it counts
            if node in self.content or node in self.sized or node in self.traced.writes:
                copier.copy(node)
        return copier.finish(stop)

    def node_of(self, path: str) -> fx.Node | None:
        """The cut that is the output of a module, or the logits; None if that is no cut."""
        if path == HEAD:
            return self.logits
        node = self.traced.outputs.get(path)
        return node if node in self.cuts else None

    def last_cut(self, path: str) -> fx.Node | None:
        """The cut that is a module's output; where that is several values, its last one inside."""
        within = [
            node
            for inner, node in self.traced.outputs.items()
            if node in self.cuts and inner.startswith(f"{path}.")
        ]
        return self.node_of(path) or max(within, key=self.order.__getitem__, default=None)

    def last_weighted(self, network: nn.Module) -> int:
        """Order of the last operation with weights, the classifier: no layer comes after it."""
        return max(self.order[node] for node in self.nodes if _has_weights(network, node))

    def size(self, node: fx.Node) -> Any:
        """The value of `node`, if it is a size that can be written after a cut (see `_fixed`)."""
        return _fixed(self._sizes.get(node, (None,)))

    def _is_known(self, node: fx.Node) -> bool:
        """Whether `node` can be written after any cut, or computed again from what can."""
        if node not in self._known:
            made_of = [source for source in node.all_input_nodes if source in self.sized]
            read_off = [source for source in node.all_input_nodes if source in self.content]
            self._known[node] = self.size(node) is not None or (
                node in self.sized and not read_off and all(map(self._is_known, made_of))
            )
        return self._known[node]

    def _find_cuts(self, measure: Callable[[set[fx.Node]], Sizes]) -> set[fx.Node]:
        """Nodes after which nothing else of the images is alive but sizes.

        A size may come out of a function that was not traced, then as an item of its output.
        """
        last_use = {
            node: max((self.order[user] for user in node.users), default=-1) for node in self.nodes
        }
        last_use[self.logits] = len(self.nodes)
        alive: set[fx.Node] = set()
        cuts: set[fx.Node] = set()
        for index, node in enumerate(self.nodes[: self.order[self.logits]]):
            alive = {other for other in alive if last_use[other] > index}
            if (node in self.content or node in self.sized) and last_use[node] > index:
                alive.add(node)
            others = alive - {node}
            if node not in self.content or node is self.images or node not in alive:
                continue
            if not all(other in self.sized or other.target is operator.getitem for other in others):
                continue
            if others and not self._sizes:
                self._sizes = measure(self.content | self.sized)
            if all(map(self._is_known, others)):
                cuts.add(node)
        return cuts


class _Copier:
    """Copies the nodes of one piece into a graph, with what they need from before it."""

    def __init__(self, source: CutMap, start: fx.Node) -> None:
        self._map = source
        self._graph = fx.Graph()
        self._entry = self._graph.placeholder("features")
        self._copies: dict[fx.Node, Any] = {start: self._entry}
        self._weights: dict[str, fx.Node] = {}

    def copy(self, node: fx.Node) -> None:
        if node not in self._map.traced.detached:
            self._copies[node] = self._graph.node_copy(node, self._copied)
            return
        for source in node.all_input_nodes:  # they may not be under `no_grad`
            self._copied(source)
        before = self._graph.call_function(_stop_gradients)
        self._copies[node] = self._graph.node_copy(node, self._copied)
        self._graph.call_function(torch.set_grad_enabled, (before,))

    def finish(self, stop: fx.Node) -> tuple[fx.Graph, tuple[str, ...]]:
        self._graph.output(self._copies[stop])
        return self._graph, tuple(self._weights)

    def _copied(self, node: fx.Node) -> Any:
        if node not in self._copies:
            size = self._map.size(node)
            if size is not None:
                self._copies[node] = self._written(size)
            elif node in self._map.traced.writes:  # it wrote before this piece begins
                self._copies[node] = self._copied(self._map.traced.writes[node])
            elif node.op == "get_attr":
                self._copies[node] = self._weight(str(node.target))
            else:  # depends on parameters and sizes alone: computed again here
                self.copy(node)
        return self._copies[node]

    def _written(self, size: Any) -> Any:
        if size is _BATCH:
            return self._graph.call_method("size", (self._entry, 0))
        return tuple(map(self._written, size)) if isinstance(size, tuple) else size

    def _weight(self, name: str) -> fx.Node:
        if name not in self._weights:
            last = next(reversed(self._weights.values()), self._entry)
            with self._graph.inserting_after(last):
                self._weights[name] = self._graph.placeholder(f"weight_{len(self._weights)}")
        return self._weights[name]


def _stop_gradients() -> bool:
    """Turn gradients off; returns whether they were on."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    return before


class SizeReader(fx.Interpreter):
    """Runs a graph and notes the values of the wanted nodes.

    Args:
        network: Holds the modules, parameters and buffers that the graph names.
        traced: The graph and the constants made while tracing it.
        wanted: Nodes of the graph.
    """

    def __init__(self, network: nn.Module, traced: Traced, wanted: set[fx.Node]) -> None:
        super().__init__(network, graph=traced.graph)
        self._constants = traced.constants
        self._wanted = wanted
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self._wanted and not isinstance(value, Tensor):
            self.found[node] = value
        return value

    def fetch_attr(self, target: str) -> Any:
        return self._constants[target] if target in self._constants else super().fetch_attr(target)


_BATCH = object()
"""In place of the number of images."""


def _fixed(values: tuple[Any, ...]) -> Any:
    """A size as it is written into a piece: a number, `_BATCH`, or a tuple of these.

    None when it is no size, or depends on the batch in another way than being it.
    """
    first = values[0]
    if isinstance(first, (tuple, list)):
        if any(len(value) != len(first) for value in values):
            return None
        parts = tuple(_fixed(part) for part in zip(*values, strict=True))
        return None if any(part is None for part in parts) else parts
    if not isinstance(first, (int, float)):
        return None
    if all(value == first for value in values):
        return first
    return _BATCH if values == PROBE_BATCHES else None


def _has_weights(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return next(network.get_submodule(str(node.target)).parameters(), None) is not None
    return any(source.op == "get_attr" for source in node.all_input_nodes)
