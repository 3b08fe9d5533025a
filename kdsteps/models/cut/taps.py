"""Reading inner layers of a running network by hooks, which are removed once it has run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from kdsteps.models.cut.tracing import main_output

_RELUS = (nn.ReLU, nn.ReLU6)


class Ending(NamedTuple):
    """The modules around the activation at the end of a layer.

    Attributes:
        relu: The ReLU the layer ends in; None if it ends in none.
        norm: The batch normalization whose output enters the ReLU, in a residual block that of
            the branch; of a pre-activation network the one the next block begins with.
    """

    relu: nn.Module | None
    norm: nn.Module | None


def ending(network: nn.Module, node: fx.Node, depth: Mapping[fx.Node, int]) -> Ending:
    """How the layer whose output is `node` ends.

    Args:
        network: Whose modules the graph of `node` names.
        node: Of the graph.
        depth: Of each node: the operations on the longest way to it.
    """
    if isinstance(_module(network, node), _RELUS):
        entering = node.all_input_nodes[0]
        if entering.op != "call_module" and entering.all_input_nodes:
            # of an addition the residual branch, which is longer than the shortcut
            entering = max(entering.all_input_nodes, key=depth.__getitem__)
        return Ending(_module(network, node), _norm(network, entering))
    for user in node.users:
        norm, following = _norm(network, user), list(user.users)
        if norm and len(following) == 1 and isinstance(_module(network, following[0]), _RELUS):
            return Ending(None, norm)
    return Ending(None, None)


@contextmanager
def tapped(
    modules: Mapping[str, nn.Module], endings: Mapping[str, Ending]
) -> Iterator[dict[str, Tensor]]:
    """Fills a dictionary while a network runs.

    Args:
        modules: Whose outputs are wanted, by name.
        endings: Layers that are to be read before their activation, by name.
    """
    taken: dict[str, Tensor] = {}
    entering: dict[str, Tensor] = {}
    handles = []

    def keep_output(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            taken[name] = entering.pop(name, main_output(output))

        return hook

    def keep_entering(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # a ReLU may serve several times in a block: the last call before its end counts
            entering[name] = inputs[0].clone()  # it may work in place

        return hook

    def keep_normed(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            taken[name] = output.clone()  # as above

        return hook

    for name, module in modules.items():
        handles.append(module.register_forward_hook(keep_output(name)))
    for name, end in endings.items():
        if end.relu is not None:
            handles.append(end.relu.register_forward_pre_hook(keep_entering(name)))
        elif end.norm is not None:
            handles.append(end.norm.register_forward_hook(keep_normed(name)))
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def detached(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, no gradient flows back through the outputs of these modules.

    To be entered after `tapped`, which then still reads outputs that carry gradients.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        main = main_output(output).detach()
        return main if isinstance(output, Tensor) else type(output)((main, *output[1:]))

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _norm(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """The plain batch normalization whose output is `node`; not one with an activation in it."""
    module = _module(network, node)
    return module if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) else None
