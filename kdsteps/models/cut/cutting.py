"""Any network as a chain: its graph shows where it can be cut, its modules name the layers.

The network itself runs in `forward` and `trace`, so that a student trains as it would without
kdsteps; only the spans are graphs, one for eval and one for training mode, and share its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, fx, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, Chain, Layout, TokenGrid
from kdsteps.models.cut.behavior import check_logits
from kdsteps.models.cut.layers import block_ends, choose_stages, spots
from kdsteps.models.cut.layouts import layouts, token_grid
from kdsteps.models.cut.outputs import Output, OutputRule, rule_for
from kdsteps.models.cut.pieces import CutMap, Sizes
from kdsteps.models.cut.probe import fault_of_parts, measure_sizes, visit
from kdsteps.models.cut.span import Piece, Span, Whole
from kdsteps.models.cut.taps import Ending, detached, ending, tapped
from kdsteps.models.cut.tracing import ImageShape, Rules, trace_network
from kdsteps.models.evaluating import evaluating


class CutChain(Chain):
    """Any network, cut at the ends of its blocks.

    A network whose forward pass has no fixed graph has no layers, only logits.

    Args:
        network: Maps images (N, C, H, W) to logits (N, K). It is what is deployed, and its state
            dict what a checkpoint holds.
        image_shape: (C, H, W) of the images it will see.
        rules: Which modules and functions are not traced.
        stages: Paths of the modules that its authors name as stages; without any, stages are found
            by the size of the maps.
        output: Key or index of the logits, if the network returns several outputs.
        prefix_tokens: Number of class and register tokens before those of the patches; None: as
            the network declares (`num_prefix_tokens`) or as the lengths of its sequences show.

    Attributes:
        network: As given.
        needs_contiguous: Whether it cannot run on images with the channels last.

    Raises:
        KdstepsError: It does not run on such images, or its logits cannot be distinguished from its
            other outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: ImageShape,
        rules: Rules | None = None,
        stages: Sequence[str] = (),
        output: Output = None,
        prefix_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.constants = nn.Module()  # tensors that the graphs hold; here they follow .to(device)
        self.layers, self.stages = (), ()
        self._layouts: dict[str, Layout] = {}
        self._grids: dict[str, TokenGrid] = {}
        self._output = rule_for(network, output)
        self._maps = _Maps(rules or Rules(), image_shape, self._output)
        self._writes, self.needs_contiguous = check_logits(network, self._output, image_shape)
        with evaluating(network):
            self._find_layers(stages, image_shape, prefix_tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self._output.logits(self.network(self.for_network(images)))

    def for_network(self, images: Tensor) -> Tensor:
        """The images, or a copy if the network writes into them: the teacher sees them as well."""
        return self.ordered(images.clone() if self._writes else images)

    def ordered(self, features: Tensor) -> Tensor:
        """Features in the memory format that the network needs."""
        return features.contiguous() if self.needs_contiguous else features

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
        """The blocks that turn the output of `start` (None: images) into that of `stop`.

        They share their weights with the chain and run in the chain's mode. Where they need a size
        that the network reads off its images, they take that of `image_shape`.

        Raises:
            ValueError: A name is not a layer of this chain, or `stop` does not come after `start`.
            KdstepsError: The chain is in training mode, and there one of the two is no cut.
        """
        if self.position(stop) <= self.position(start):
            raise ValueError(f"{stop!r} does not come after {start!r}")
        return Span(self, start, stop) if self.layers else Whole(self)

    def layout(self, layer: str) -> Layout:
        self._known([layer])
        return self._layouts[layer]

    def token_grid(self, layer: str) -> TokenGrid | None:
        self._known([layer])
        return self._grids.get(layer)

    def last_norm(self, layer: str) -> nn.Module | None:
        self._known([layer])
        return self._ending(layer).norm

    def plain(self) -> nn.Module:
        return self.network

    def piece(self, start: str | None, stop: str) -> Piece:
        """The graph between two layers, for the mode the network is in.

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

    def _find_layers(
        self, named: Sequence[str], image_shape: ImageShape, prefix_tokens: int | None
    ) -> None:
        try:
            cut_map = self._maps.of(self.network, self.constants)
        except KdstepsError as error:
            self.notes.append(str(error))
            return
        candidates = spots(self.network, cut_map, named)
        found = visit(self.network, candidates, image_shape)
        modules = dict(self.network.named_modules())
        wanted = {path: cut_map.last_cut(path) for path in named if path in modules}
        ends = block_ends(found.spots, set(wanted.values()))
        size = (image_shape[1], image_shape[2])
        orders = layouts([spot.shape for spot in ends], size, found.maps)
        self.layers = tuple(spot.path for spot in ends)
        self._layouts = dict(zip(self.layers, orders, strict=True))
        self.stages = tuple(spot.path for spot in choose_stages(ends, orders, set(wanted.values())))
        self._check(image_shape)
        if not self.notes and (self.layers or not found.unusable):
            self.notes += self._lost_stages(wanted)
        if found.unusable:
            self.notes.append(
                f"models: {_some(found.unusable)} cannot be layers, because their outputs are not "
                "maps (N, C, H, W), sequences (N, L, C) or vectors of real numbers"
            )
        prefix = _prefix_tokens(self.network) if prefix_tokens is None else prefix_tokens
        self._grids = {
            spot.path: token_grid(spot.shape[1], found.sizes, size, prefix)
            for spot in ends
            if self._layouts[spot.path] == "tokens"
        }
        self._note_grids(prefix_tokens)

    def _note_grids(self, prefix_tokens: int | None) -> None:
        """Report token sequences that are not a grid or have other prefix tokens than requested."""
        columns = [
            layer for layer, (_, height, width) in self._grids.items() if height > 1 and width == 1
        ]
        if columns:
            self.notes.append(
                f"models: the tokens of {_some(columns)} do not form a grid, so a map of them "
                "is one column; set prefix_tokens to the number of tokens before the patches"
            )
        other = [layer for layer, grid in self._grids.items() if grid.prefix != prefix_tokens]
        if prefix_tokens is not None and other:
            self.notes.append(f"models: prefix_tokens {prefix_tokens} does not fit {_some(other)}")

    def _lost_stages(self, wanted: Mapping[str, fx.Node | None]) -> list[str]:
        lost = [path for path, node in wanted.items() if node is None]
        name = type(self.network).__name__
        if not self.layers:
            return [
                f"models: {name} cannot be cut, because several values are alive at once "
                "everywhere; methods that use logits alone can use it"
            ]
        if not lost:
            return []
        return [
            f"models: {name} cannot be cut at {len(lost)} of its {len(wanted)} stages "
            f"({_some(lost)}), where several values are alive at once; its default cuts are "
            f"{', '.join(self.stages)}"
        ]

    def _check(self, image_shape: ImageShape) -> None:
        """Cut it at all layers; a network whose parts then differ from it cannot be cut."""
        if not self.layers:
            return
        starts, stops = (None, *self.layers), (*self.layers, HEAD)
        parts = [self.span(start, stop) for start, stop in zip(starts, stops, strict=True)]
        if fault := fault_of_parts(self, parts, image_shape):
            self.layers, self.stages = (), ()
            self.notes.append(
                f"models: {type(self.network).__name__} cannot be cut, because its parts in a row "
                f"{fault}; methods that use logits alone can use it"
            )

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the parameter, buffer or constant `name`, and its name there."""
        if name in dict(self.constants.named_buffers()):
            return self.constants, name
        path, _, attribute = name.rpartition(".")
        return self.network.get_submodule(path), attribute

    def _ending(self, layer: str) -> Ending:
        cut_map = self._maps.evaluated
        node = cut_map.node_of(layer)
        assert node is not None  # it is a layer
        return ending(self.network, node, cut_map.depth)

    def _known(self, names: Collection[str]) -> list[str]:
        """The names in forward order."""
        unknown = [name for name in names if name not in self.layers]
        if unknown:
            raise ValueError(
                f"{', '.join(map(repr, unknown))}: not a layer of this network; "
                f"it has {', '.join(self.layers) or 'none'}"
            )
        return [layer for layer in self.layers if layer in names]


class _Maps:
    """The cuts of a network in each mode, found when first needed.

    They name its modules by path and hold none of its tensors: copies of a chain share them.
    """

    def __init__(self, rules: Rules, image_shape: ImageShape, output: OutputRule) -> None:
        self._rules, self._output = rules, output
        self._image_shape = image_shape
        self._found: dict[bool, CutMap] = {}

    def __deepcopy__(self, _memo: dict[int, object]) -> _Maps:
        return self

    @property
    def evaluated(self) -> CutMap:
        """The cuts in eval mode, which are found when a chain is made."""
        return self._found[False]

    def of(self, network: nn.Module, constants: nn.Module) -> CutMap:
        """The cuts in the mode `network` is in; tensors that the graph holds go to `constants`."""
        if network.training not in self._found:
            self._found[network.training] = self._find(network)
        cut_map = self._found[network.training]
        weight = next(network.parameters())
        for name, value in cut_map.traced.constants.items():
            if not hasattr(constants, name):
                constants.register_buffer(name, value.to(weight.device), persistent=False)
        return cut_map

    def _find(self, network: nn.Module) -> CutMap:
        traced = trace_network(network, self._rules, self._image_shape, self._output)

        def measure(wanted: set[fx.Node]) -> Sizes:
            return measure_sizes(network, traced, wanted, self._image_shape)

        return CutMap(traced, measure)


def _prefix_tokens(network: nn.Module) -> int | None:
    """Number of prefix tokens as declared by networks of timm."""
    number = getattr(network, "num_prefix_tokens", None)
    return number if isinstance(number, int) else None


def _some(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join([*names[:3], *(["..."] if names[3:] else [])])
