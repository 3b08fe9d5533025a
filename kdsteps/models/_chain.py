"""A network as a line of blocks: the one law all distillation here rests on.

For every layer l of a chain, `chain.tail(l)(chain.front(l)(images))` equals `chain(images)`. A layer
is the place after a block and bears the block's name; the last block, `head`, gives the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn

Layout = Literal["map", "map_last", "tokens", "vector"]
"""How a layer's output lies: (N, C, H, W), (N, H, W, C), (N, T, D) or (N, D)."""

HEAD = "head"


class Chain(nn.Module, ABC):
    """A network whose inner places can be read, cut and joined by name.

    Attributes:
        layers: Places in forward order; the output of `head`, the logits, is not among them.
        stages: The layers where the network is cut unless told otherwise.
    """

    layers: tuple[str, ...]
    stages: tuple[str, ...]

    @abstractmethod
    def span(self, start: str | None, stop: str) -> nn.Module:
        """The part that turns the output of `start` (None: images) into that of `stop`.

        `stop` may be `head`. The part shares its weights with the chain.

        Raises:
            ValueError: A name is not a place of this chain, or `stop` does not come after `start`.
        """

    @abstractmethod
    def trace(
        self, images: Tensor, layers: Collection[str] | None = None, *, before_activation: bool = False
    ) -> dict[str, Tensor]:
        """Outputs of `layers` (all when None) in forward order and, last, `head`: the logits.

        Args:
            images: (N, C, H, W).
            layers: Names out of `self.layers`.
            before_activation: Give what enters the last ReLU of each layer instead of what leaves
                it, where the layer ends in one; the other layers give their outputs.

        Raises:
            ValueError: A name is not a layer of this chain.
        """

    @abstractmethod
    def layout(self, layer: str) -> Layout:
        """How the output of `layer` lies in memory."""

    def last_norm(self, layer: str) -> nn.Module | None:
        """The batch normalisation whose output enters the last ReLU of `layer`, if it ends so."""
        return None

    def forward(self, images: Tensor) -> Tensor:
        return self.trace(images, ())[HEAD]

    def front(self, layer: str) -> nn.Module:
        """The blocks up to and with `layer`: images in, its output out."""
        return self.span(None, layer)

    def tail(self, layer: str) -> nn.Module:
        """The blocks after `layer`: its output in, logits out."""
        return self.span(layer, HEAD)

    def plain(self) -> nn.Module:
        """The module that is deployed, whose state dict is what a checkpoint holds."""
        return self

    def place(self, name: str | None) -> int:
        """How many blocks lie before and at `name`: 0 for None, the images."""
        if name is None:
            return 0
        places = (*self.layers, HEAD)
        if name not in places:
            raise ValueError(f"{name!r} is no layer of this network; it has {', '.join(places)}")
        return places.index(name) + 1


class BlockChain(Chain):
    """A chain written out as blocks: the base of the families that kdsteps writes itself."""

    @abstractmethod
    def blocks(self) -> Mapping[str, nn.Module]:
        """The blocks by name in forward order, `head` last, made of modules already registered."""

    def span(self, start: str | None, stop: str) -> nn.Module:
        first, last = self.place(start), self.place(stop)
        if last <= first:
            raise ValueError(f"{stop!r} does not come after {start!r}")
        return nn.Sequential(*list(self.blocks().values())[first:last])
