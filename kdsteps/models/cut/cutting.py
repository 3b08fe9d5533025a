"""Any network as a chain: its graph finds where it can be cut, its modules name the layers.

The network itself runs in `forward` and `trace`, so that a student trains as it would without
kdsteps; only the spans are graphs, one for eval and one for training mode, and share its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, fx, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, Chain, Layout
from kdsteps.models.cut.layers import block_ends, choose_stages, spots
from kdsteps.models.cut.pieces import CutMap, Sizes
from kdsteps.models.cut.probe import (
    ImageShape,
    layouts,
    measure_sizes,
    same_by_parts,
    visit,
)
from kdsteps.models.cut.span import Piece, Span, Whole
from kdsteps.models.cut.taps import Ending, detached, ending, tapped
from kdsteps.models.cut.tracing import Rules, logits_of, trace_network
from kdsteps.models.evaluating import evaluating


class CutChain(Chain):
    """A network of any make, cut at the ends of its blocks.

    A network whose forward pass has no fixed graph has no layers; its logits are still there.

    Args:
        network: Maps images (N, C, H, W) to logits (N, K). It is what is deployed, and its state
            dict what a checkpoint holds.
        image_shape: (C, H, W) of the images it will see.
        rules: What of it is not looked into.
        stages: Paths of the modules that its makers name as stages; without any, stages are found
            by the size of the maps.

    Attributes:
        network: As given.
        note: A sentence on what is not as one would expect, such as stages that are no cuts.

    Raises:
        KdstepsError: It does not run on such images.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: ImageShape,
        rules: Rules | None = None,
        stages: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.constants = nn.Module()  # tensors that the graphs hold; here they follow .to(device)
        self.layers, self.stages = (), ()
        self.note: str | None = None
        self._layouts: dict[str, Layout] = {}
        self._maps = _Maps(rules or Rules(), image_shape)
        with evaluating(network):
            self._find_layers(stages, image_shape)

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images))

    def trace(
        self,
        images: Tensor,
        layers: Collection[str] | None = None,
        *,
        before_activation: bool = False,
        detach_after: str | None = None,
    ) -> dict[str, Tensor]:
        wanted = self.layers if layers is None else self._known(layers)
        modules = {name: self.network.get_submodule(name) for name in wanted}
        endings = {name: self._ending(name) for name in wanted} if before_activation else {}
        barriers = [] if detach_after is None else self._known([detach_after])
        with tapped(modules, endings) as taken, detached(map(self.network.get_submodule, barriers)):
            logits = self(images)
        return {name: taken[name] for name in wanted} | {HEAD: logits}

    def span(self, start: str | None, stop: str) -> nn.Module:
        """The part that turns the output of `start` (None: images) into that of `stop`.

        It shares its weights with the chain and runs in the chain's mode. Where it needs a size
        that the network reads off its images, it takes that of `image_shape`.

        Raises:
            ValueError: A name is not a place of this chain, or `stop` does not come after `start`.
            KdstepsError: The chain is in training mode, and there one of the two is no cut.
        """
        if self.place(stop) <= self.place(start):
            raise ValueError(f"{stop!r} does not come after {start!r}")
        return Span(self, start, stop) if self.layers else Whole(self)

    def layout(self, layer: str) -> Layout:
        self._known([layer])
        return self._layouts[layer]

    def last_norm(self, layer: str) -> nn.Module | None:
        self._known([layer])
        return self._ending(layer).norm

    def plain(self) -> nn.Module:
        return self.network

    def piece(self, start: str | None, stop: str) -> Piece:
        """The graph between two places, for the mode the network is in.

        Raises:
            KdstepsError: In this mode one of them is no cut.
        """
        cut_map = self._maps.of(self.network, self.constants)
        first = cut_map.images if start is None else cut_map.node_of(start)
        last = cut_map.node_of(stop)
        if first is None or last is None:
            raise KdstepsError(
                f"models: {type(self.network).__name__} cannot be cut between "
                f"{start or 'images'} and {stop} in training mode, only in evaluation; "
                "choose other layers"
            )
        graph, names = cut_map.piece(first, last)
        return Piece(self.network, graph, tuple(map(self._owner, names)))

    def _find_layers(self, named: Sequence[str], image_shape: ImageShape) -> None:
        try:
            cut_map = self._maps.of(self.network, self.constants)
        except KdstepsError as error:
            self.note = str(error)
            visit(self.network, [], image_shape)
            return
        found = visit(self.network, spots(self.network, cut_map, named), image_shape)
        modules = dict(self.network.named_modules())
        asked = {path: cut_map.last_cut(path) for path in named if path in modules}
        ends = block_ends(found, set(asked.values()))
        lies = layouts([spot.shape for spot in ends])
        self.layers = tuple(spot.path for spot in ends)
        self._layouts = dict(zip(self.layers, lies, strict=True))
        self.stages = tuple(spot.path for spot in choose_stages(ends, lies, set(asked.values())))
        self._check(image_shape)
        self.note = self.note or self._lost_stages(asked)

    def _lost_stages(self, asked: Mapping[str, fx.Node | None]) -> str | None:
        lost = [path for path, node in asked.items() if node is None]
        name = type(self.network).__name__
        if not self.layers:
            return (
                f"models: {name} cannot be cut, for at every place several values are alive at "
                "once; it serves with methods that look at logits alone"
            )
        if not lost:
            return None
        return (
            f"models: {name} cannot be cut at {len(lost)} of its {len(asked)} stages "
            f"({', '.join(lost[:3])}{', ...' if lost[3:] else ''}), where several values are alive "
            f"at once; its default cuts are {', '.join(self.stages)}"
        )

    def _check(self, image_shape: ImageShape) -> None:
        """Cut it once in the middle; a network that then answers otherwise is not to be cut."""
        if not self.layers:
            return
        middle = self.layers[len(self.layers) // 2]
        front, tail = self.front(middle), self.tail(middle)
        if not same_by_parts(self, front, tail, image_shape):
            self.layers, self.stages = (), ()
            self.note = (
                f"models: {type(self.network).__name__} cannot be cut, for its parts answer "
                "otherwise than the whole; it serves with methods that look at logits alone"
            )

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the parameter, buffer or constant `name`, and its name there."""
        if name in dict(self.constants.named_buffers()):
            return self.constants, name
        path, _, attribute = name.rpartition(".")
        return self.network.get_submodule(path), attribute

    def _ending(self, layer: str) -> Ending:
        node = self._maps.evaluated.node_of(layer)
        assert node is not None  # it is a layer
        return ending(self.network, node)

    def _known(self, names: Collection[str]) -> list[str]:
        """The names in forward order."""
        strangers = [name for name in names if name not in self.layers]
        if strangers:
            raise ValueError(
                f"{', '.join(map(repr, strangers))}: no layer of this network; "
                f"it has {', '.join(self.layers) or 'none'}"
            )
        return [layer for layer in self.layers if layer in names]


class _Maps:
    """The cuts of a network in each mode, found when first needed.

    They speak of its modules by path and hold none of its tensors: copies of a chain share them.
    """

    def __init__(self, rules: Rules, image_shape: ImageShape) -> None:
        self._rules = rules
        self._image_shape = image_shape
        self._found: dict[bool, CutMap] = {}

    def __deepcopy__(self, _memo: dict[int, object]) -> _Maps:
        return self

    @property
    def evaluated(self) -> CutMap:
        """That of eval mode, which is found when a chain is made."""
        return self._found[False]

    def of(self, network: nn.Module, constants: nn.Module) -> CutMap:
        """That of the mode `network` is in; tensors that the graph holds go to `constants`."""
        if network.training not in self._found:
            self._found[network.training] = self._find(network)
        cut_map = self._found[network.training]
        weight = next(network.parameters())
        for name, value in cut_map.traced.constants.items():
            if not hasattr(constants, name):
                constants.register_buffer(name, value.to(weight.device), persistent=False)
        return cut_map

    def _find(self, network: nn.Module) -> CutMap:
        traced = trace_network(network, self._rules)

        def measure(wanted: set[fx.Node]) -> Sizes:
            return measure_sizes(network, traced, wanted, self._image_shape)

        return CutMap(traced, measure)
