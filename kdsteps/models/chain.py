"""A network as a chain of blocks, which can be read and cut at every layer.

For every layer l of a chain, `chain.tail(l)(chain.front(l)(images))` equals `chain(images)`. A
layer is the output of a block and has the block's name; the last block, `head`, returns the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from kdsteps.models.blocks import Preactivated, ending
from kdsteps.models.input_contract import Published

Layout = Literal["map", "map_last", "tokens", "vector"]
"""Order of a layer's dimensions: (N, C, H, W), (N, H, W, C), (N, T, D) or (N, D)."""

HEAD = "head"


class TokenGrid(NamedTuple):
    """How the tokens of a layer cover the image.

    Attributes:
        prefix: Number of class and register tokens, which come first.
        height, width: Of the grid of patches, row by row.
    """

    prefix: int
    height: int
    width: int


class Chain(nn.Module, ABC):
    """A network whose inner layers can be read, cut and joined by name.

    Attributes:
        layers: In forward order; the output of `head`, the logits, is not among them.
        stages: The layers where the network is cut by default.
        notes: Sentences on what is not as expected, such as stages that cannot be cut.
        new_weights: Names of weights that were initialized although weights of another number of
            classes were loaded.
        published: What is known of the weights that a library publishes for the network.
    """

    layers: tuple[str, ...]
    stages: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.new_weights: tuple[str, ...] = ()
        self.published: Published | None = None

    @abstractmethod
    def span(self, start: str | None, stop: str) -> nn.Module:
        """The blocks that turn the output of `start` (None: images) into that of `stop`.

        `stop` may be `head`. The span shares its weights with the chain.

        Raises:
            ValueError: A name is not a layer of this chain, or `stop` does not come after `start`.
        """

    @abstractmethod
    def trace(
        self,
        images: Tensor,
        layers: Collection[str] | None = None,
        *,
        before_activation: bool = False,
        detach_after: str | None = None,
    ) -> dict[str, Tensor]:
        """Outputs of `layers` (all when None) in forward order and, last, `head`: the logits.

        Args:
            images: (N, C, H, W).
            layers: Names from `self.layers`.
            detach_after: A layer after which no gradient flows back: the later blocks see its
                output detached.
            before_activation: Return the input of the last ReLU of each layer instead of its
                output, where the layer ends in one. In a pre-activation network, where the next
                block begins with norm and ReLU, return the output of that norm. Other layers
                return their outputs.

        Raises:
            ValueError: A name is not a layer of this chain.
        """

    @abstractmethod
    def layout(self, layer: str) -> Layout:
        """The order of the dimensions of `layer`."""

    def token_grid(self, layer: str) -> TokenGrid | None:
        """How the tokens of `layer` cover the image; None for other layouts."""
        return None

    def last_norm(self, layer: str) -> nn.Module | None:
        """The batch normalization before the ReLU that `before_activation` refers to, if any.

        In a residual block it is that of the residual branch, whose output is added to the
        shortcut before the ReLU.
        """
        return None

    def forward(self, images: Tensor) -> Tensor:
        return self.trace(images, ())[HEAD]

    def front(self, layer: str) -> nn.Module:
        """The blocks up to and including `layer`: images in, its output out."""
        return self.span(None, layer)

    def tail(self, layer: str) -> nn.Module:
        """The blocks after `layer`: its output in, logits out."""
        return self.span(layer, HEAD)

    def plain(self) -> nn.Module:
        """The module that is deployed, whose state dict a checkpoint holds."""
        return self

    def position(self, name: str | None) -> int:
        """Number of blocks up to and including `name`: 0 for None, the images."""
        if name is None:
            return 0
        names = (*self.layers, HEAD)
        if name not in names:
            raise ValueError(f"{name!r} is not a layer of this network; it has {', '.join(names)}")
        return names.index(name) + 1


class BlockChain(Chain):
    """A chain written out as blocks: the base of kdsteps' own families.

    A family registers its modules as its checkpoints name them, then lines the same modules up as
    blocks. The line itself registers nothing, so no weight has two names.
    """

    def line_up(
        self,
        blocks: Mapping[str, nn.Module],
        *,
        stages: tuple[str, ...],
        inner: Layout = "map",
        grid: TokenGrid | None = None,
    ) -> None:
        """Name the blocks in forward order.

        Args:
            blocks: All made of registered modules; `pool`, the first whose output is (N, D), and
                `head` are among them.
            stages: The default cuts.
            inner: Layout of the outputs before `pool`.
            grid: Of the tokens, if that layout is tokens.
        """
        self._line = dict(blocks)  # a plain dict: no registration
        self._inner: Layout = inner
        self._grid = grid
        self.layers = tuple(name for name in blocks if name != HEAD)
        self.stages = stages

    @property
    def blocks_in_order(self) -> dict[str, nn.Module]:
        """The blocks by name, `head` last; changing one changes the chain."""
        return self._line

    def span(self, start: str | None, stop: str) -> nn.Module:
        first, last = self.position(start), self.position(stop)
        if last <= first:
            raise ValueError(f"{stop!r} does not come after {start!r}")
        return nn.Sequential(*list(self._line.values())[first:last])

    def trace(
        self,
        images: Tensor,
        layers: Collection[str] | None = None,
        *,
        before_activation: bool = False,
        detach_after: str | None = None,
    ) -> dict[str, Tensor]:
        wanted = set(self.layers if layers is None else layers)
        self._check_layers(wanted)
        outputs: dict[str, Tensor] = {}
        previous, features = "", images
        for name, block in self._line.items():
            end = ending(block) if before_activation and name in wanted else None
            if before_activation and previous in wanted and isinstance(block, Preactivated):
                normed = block.first_norm()(features)  # once: it counts batches in training
                outputs[previous] = normed
                features = block.go_on(features, normed)
            elif end is not None:
                before = end.before(features)
                features = end.relu(before)
            else:
                features = block(features)
            if name in wanted or name == HEAD:
                outputs[name] = features if end is None else before
            if name == detach_after:
                features = features.detach()
            previous = name
        return outputs

    def layout(self, layer: str) -> Layout:
        self._check_layers({layer})
        return "vector" if self.position(layer) >= self.position("pool") else self._inner

    def token_grid(self, layer: str) -> TokenGrid | None:
        return self._grid if self.layout(layer) == "tokens" else None

    def last_norm(self, layer: str) -> nn.Module | None:
        self._check_layers({layer})
        names = [*self.layers, HEAD]
        following = self._line[names[names.index(layer) + 1]]
        if isinstance(following, Preactivated):
            return following.first_norm()
        end = ending(self._line[layer])
        return None if end is None else end.norm

    def _check_layers(self, names: Collection[str]) -> None:
        unknown = [name for name in names if name not in self.layers]
        if unknown:
            raise ValueError(
                f"{', '.join(map(repr, unknown))}: not a layer of this network; "
                f"it has {', '.join(self.layers)}"
            )
