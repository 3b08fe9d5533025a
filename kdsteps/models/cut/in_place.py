"""Operations in place: what reads a value after they overwrote it depends on them.

torch.fx notes an operation such as `x.add_(y)` as a node that nobody reads, and what reads `x`
later as if `x` were still what it was. A cut between the two would be wrong. Values that share
memory with `x` (views of it) are not followed.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn


class Overwritable(fx.Proxy):
    """A value of which items can be assigned."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", _with_item, (self, key, value), {})


def overwritten(node: fx.Node, network: nn.Module) -> fx.Node | None:
    """The node whose value an operation of a graph overwrites and returns, or None.

    Weights and buffers do not count: each operation reads them from the network.
    """
    if not _is_in_place(node, network):
        return None
    target = _target(node)
    return target if isinstance(target, fx.Node) and target.op != "get_attr" else None


def written_buffer(node: fx.Node, network: nn.Module) -> fx.Node | None:
    """The buffer or weight into which an operation of a graph writes, as its `get_attr` node."""
    target = node
    while _is_in_place(target, network):
        given = _target(target)
        if not isinstance(given, fx.Node):
            return None
        target = given
    return target if target is not node and target.op == "get_attr" else None


def _is_in_place(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return getattr(network.get_submodule(str(node.target)), "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target is _with_item
        or (name.endswith("_") and not name.endswith("__"))
        or node.kwargs.get("inplace") is True
        or isinstance(node.kwargs.get("out"), fx.Node)
    )


def _target(node: fx.Node) -> Any:
    """What an operation in place overwrites."""
    return node.kwargs.get("out", node.args[0] if node.args else node.kwargs.get("input"))


def _with_item(value: Any, key: Any, item: Any) -> Any:
    value[key] = item
    return value
