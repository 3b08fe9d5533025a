"""Select the layers of a network among its cuts, and the stages among its layers.

A network has far more cuts than anyone wants to read: a plain one has a cut after every
convolution, norm and activation. A layer is the end of a block, and blocks follow from the
network's modules: a repeated module, or a convolution with the norm and activation after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx, nn

from kdsteps.models.chain import HEAD, Layout
from kdsteps.models.cut.pieces import CutMap

T = TypeVar("T")

_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten)
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NUM_STAGES = 4  # of a network that keeps its size throughout: as many as a ResNet has


@dataclass(frozen=True)
class Spot:
    """A cut that is the output of a module.

    Attributes:
        path: Of the module in the network.
        module: Itself.
        node: Its output in the graph.
        is_first: Whether its output is the first of several.
        shape: Of its output, with the images' dimension.
        is_lasting: Whether its output is not overwritten in place later on.
    """

    path: str
    module: nn.Module
    node: fx.Node
    is_first: bool = False
    shape: tuple[int, ...] = ()
    is_lasting: bool = True


def spots(network: nn.Module, cut_map: CutMap, extra: Collection[str] = ()) -> list[Spot]:
    """The modules that may end a block, in forward order, one for each cut.

    Modules compiled by TorchScript are not among them: they take no hooks.

    Args:
        network: The network.
        cut_map: Its cuts.
        extra: Paths that are to be among them if they are cuts.
    """
    outputs = {
        path: node
        for path, node in cut_map.traced.outputs.items()
        if node in cut_map.cuts
        and not isinstance(network.get_submodule(path), torch.jit.ScriptModule)
    }
    last = cut_map.last_weighted(network)
    outputs = {path: node for path, node in outputs.items() if cut_map.order[node] < last}
    chosen: dict[fx.Node, str] = {}
    for path in _Walk(network, outputs).paths(network, ""):
        node = outputs.get(path)
        if node is None or path == HEAD:
            continue
        # of modules with the same output the innermost block: layer1.1 rather than layer1
        outer = network.get_submodule(chosen.get(node, ""))
        if (
            node not in chosen
            or isinstance(outer, _CONTAINERS)
            or _is_block(network.get_submodule(path))
        ):
            chosen[node] = path
    for path in extra:
        if path in outputs and path != HEAD:
            chosen.setdefault(outputs[path], path)
    ordered = sorted(chosen, key=cut_map.order.__getitem__)
    firsts = cut_map.traced.firsts
    return [
        Spot(path, network.get_submodule(path), node, path in firsts)
        for node, path in ((node, chosen[node]) for node in ordered)
    ]


def block_ends(found: Sequence[Spot], wanted: Collection[fx.Node | None]) -> list[Spot]:
    """The spots that are layers: the end of each block and of each run of single modules.

    A run is a convolution (or a linear layer) with what follows it, or a pooling; it ends at its
    last module that does something, or at a wanted one. A pooling belongs to the next convolution.
    """
    runs: list[list[Spot]] = []
    for spot in found:
        if not runs or _starts_run(spot, runs[-1]):
            runs.append([])
        runs[-1].append(spot)
    ends = []
    for run in runs:
        lasting = [spot for spot in run if spot.is_lasting]
        asked = [spot for spot in lasting if spot.node in wanted]
        busy = [spot for spot in lasting if not isinstance(spot.module, _IDLE)]
        ends += asked[-1:] or busy[-1:]
    return ends


def choose_stages(
    ends: Sequence[Spot], layouts: Sequence[Layout], named: Collection[fx.Node | None]
) -> list[Spot]:
    """The default cuts: the stages named by the network's authors, or those found by size.

    Of the named ones neither a stem nor a pooling counts. Where every block is named, as in a ViT,
    four evenly spaced ones are taken.
    """
    stem = _stem(ends)
    stages = [
        (spot, _extent(spot.shape, layout))
        for spot, layout in zip(ends, layouts, strict=True)
        if spot.node in named and spot not in stem and not isinstance(spot.module, _POOLINGS)
    ]
    by_size = _stages_by_size(ends, layouts)
    if not stages or len(stages) < min(len(by_size), len(named)):  # some of the named are no cuts
        return by_size
    chosen = [spot for spot, _ in stages]
    one_size = len({extent for _, extent in stages}) == 1
    return evenly(chosen) if one_size or len(chosen) > 2 * _NUM_STAGES else chosen


def _stages_by_size(ends: Sequence[Spot], layouts: Sequence[Layout]) -> list[Spot]:
    """The last layer of each size of map or sequence; evenly spaced layers if there is one size.

    Only blocks that are repeated count where there are such.
    """
    stem = _stem(ends)
    inner = [
        (spot, _extent(spot.shape, layout))
        for spot, layout in zip(ends, layouts, strict=True)
        if layout != "vector" and spot not in stem and not isinstance(spot.module, _POOLINGS)
    ]
    kinds = [type(spot.module) for spot, _ in inner if _is_block(spot.module)]
    repeated = [pair for pair in inner if kinds.count(type(pair[0].module)) > 1]
    inner = repeated or inner
    following = [*[extent for _, extent in inner], None][1:]
    changes = [
        spot for (spot, extent), after in zip(inner, following, strict=True) if extent != after
    ]
    return changes if len(changes) > 1 else evenly([spot for spot, _ in inner] or ends)


def _stem(ends: Sequence[Spot]) -> list[Spot]:
    """What comes before the blocks and is a single module or called stem.

    A network whose first block is in its second half (VGG with a large classifier) is made of
    single modules: it has no stem.
    """
    first_block = next((i for i, spot in enumerate(ends) if _is_block(spot.module)), len(ends))
    return [
        spot
        for spot in ends[: first_block if 2 * first_block < len(ends) else 0]
        if "stem" in spot.path or not _has_parts(spot.module)
    ]


def evenly(items: Sequence[T], count: int = _NUM_STAGES) -> list[T]:
    """`count` of the items, evenly spaced, the last among them; all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[(index + 1) * len(items) // count - 1] for index in range(count)]


def _extent(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Height and width of a map, length of a sequence."""
    return shape[2:4] if layout == "map" else shape[1:-1]


def _starts_run(spot: Spot, run: Sequence[Spot]) -> bool:
    before = run[-1]
    if _is_block(spot.module) or _is_block(before.module):
        return True
    if len(spot.shape) != len(before.shape):
        return True
    has_weight = any(_num_weighty(member.module) for member in run)
    resizes = spot.shape[2:] != before.shape[2:]
    return has_weight and (_num_weighty(spot.module) > 0 or resizes)


class _Walk:
    """Goes through a network's modules for those that may end a block.

    A residual block is never divided, nor are blocks of the same class that change the map's size
    and, having no shortcut, could be cut inside: a class is whole if one of its modules has no cut
    inside.
    """

    def __init__(self, network: nn.Module, outputs: dict[str, fx.Node]) -> None:
        modules = dict(network.named_modules())
        self._holders: set[str] = {""}  # paths with a cut somewhere inside
        divided: set[str] = {""}  # paths with a cut inside that is not their own end
        for path, node in outputs.items():
            parent = path
            while parent:
                parent = parent.rpartition(".")[0]
                self._holders.add(parent)
                if outputs.get(parent) is not node or _is_block(modules[path]):
                    divided.add(parent)
        self._whole = {
            type(module)
            for path, module in modules.items()
            if path not in divided and not isinstance(module, _CONTAINERS) and _is_block(module)
        }

    def paths(self, module: nn.Module, path: str) -> Iterator[str]:
        """Paths of the modules inside `module`, outer ones first."""
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            yield child_path
            if self._has_line(child, child_path):
                yield from self.paths(child, child_path)

    def _has_line(self, module: nn.Module, path: str) -> bool:
        """Whether it holds blocks in a line: it is a container with cuts inside, or has one."""
        if type(module) in self._whole or path not in self._holders or not _is_block(module):
            return False
        return isinstance(module, _CONTAINERS) or any(
            self._has_line(child, f"{path}.{name}") for name, child in module.named_children()
        )


def _has_parts(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


def _is_block(module: nn.Module) -> bool:
    """Whether it is more than a convolution or linear layer with its norm and activation."""
    return _num_weighty(module) > 1


def _num_weighty(module: nn.Module) -> int:
    """How many modules inside, itself among them, have a weight matrix or kernel."""
    return sum(
        any(p.ndim >= 2 for p in inner.parameters(recurse=False)) for inner in module.modules()
    )
