"""Which nodes of a graph depend on the images' pixels, and which on their size alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

_SIZE_READS = {"shape", "ndim", "dtype", "device"}
_SIZE_CALLS = {"size", "dim", "numel"}


def dependence(nodes: Iterable[fx.Node], images: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that depend on the images' pixels, and those that depend on their size alone."""
    content: set[fx.Node] = {images}
    sized: set[fx.Node] = set()
    for node in nodes:
        inputs = node.all_input_nodes
        if any(source in content for source in inputs):
            (sized if _reads_size(node) else content).add(node)
        elif any(source in sized for source in inputs):
            sized.add(node)
    return content, sized


def _reads_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_CALLS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SIZE_READS
