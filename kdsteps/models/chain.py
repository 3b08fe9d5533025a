"""A network as a line of blocks: the one law all distillation here rests on.

For every layer l of a chain, `chain.tail(l)(chain.front(l)(images))` equals `chain(images)`. A
layer is the place after a block and bears the block's name; the last block, `head`, gives the
logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn

from kdsteps.models.blocks import Preactivated, ending

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
            layers: Names out of `self.layers`.
            detach_after: A layer behind which no gradient flows back: the later blocks see its
                output detached.
            before_activation: Give what enters the last ReLU of each layer instead of what leaves
                it, where the layer ends in one. In a pre-activation network, where the next block
                begins with norm and ReLU, give what that norm gives. Other layers give their
                outputs.

        Raises:
            ValueError: A name is not a layer of this chain.
        """

    @abstractmethod
    def layout(self, layer: str) -> Layout:
        """How the output of `layer` lies in memory."""

    def last_norm(self, layer: str) -> nn.Module | None:
        """The batch normalisation before the ReLU that `before_activation` speaks of, if any.

        In a residual block it is that of the residual branch, whose output is added to the
        shortcut before the ReLU.
        """
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
    """A chain written out as blocks: the base of the families that kdsteps writes itself.

    A family registers its modules as its checkpoints name them, then lines the same modules up as
    blocks. The line itself registers nothing, so no weight gets a second name.
    """

    def line_up(
        self, blocks: Mapping[str, nn.Module], *, stages: tuple[str, ...], inner: Layout = "map"
    ) -> None:
        """Name the blocks in forward order.

        Args:
            blocks: All made of registered modules; `pool`, the first whose output is (N, D), and
                `head` are among them.
            stages: The default cuts.
            inner: How outputs before `pool` lie.
        """
        self._line = dict(blocks)  # a plain dict: no registration
        self._inner: Layout = inner
        self.layers = tuple(name for name in blocks if name != HEAD)
        self.stages = stages

    def span(self, start: str | None, stop: str) -> nn.Module:
        first, last = self.place(start), self.place(stop)
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
        self._refuse_strangers(wanted)
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
        self._refuse_strangers({layer})
        return "vector" if self.place(layer) >= self.place("pool") else self._inner

    def last_norm(self, layer: str) -> nn.Module | None:
        self._refuse_strangers({layer})
        names = [*self.layers, HEAD]
        following = self._line[names[names.index(layer) + 1]]
        if isinstance(following, Preactivated):
            return following.first_norm()
        end = ending(self._line[layer])
        return None if end is None else end.norm

    def _refuse_strangers(self, names: Collection[str]) -> None:
        strangers = [name for name in names if name not in self.layers]
        if strangers:
            raise ValueError(
                f"{', '.join(map(repr, strangers))}: no layer of this network; "
                f"it has {', '.join(self.layers)}"
            )
