"""A chain around another one, with an additional step before or after its blocks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kdsteps.models.chain import HEAD, Chain, Layout, TokenGrid


class Wrapped(Chain):
    """A chain with the layers of another one, and with steps before its images or after its logits.

    Attributes:
        chain: The other one; what is saved and deployed is `chain.plain()`.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.layers, self.stages = chain.layers, chain.stages
        self.notes, self.new_weights = chain.notes, chain.new_weights
        self.published = chain.published

    def trace(
        self,
        images: Tensor,
        layers: Collection[str] | None = None,
        *,
        before_activation: bool = False,
        detach_after: str | None = None,
    ) -> dict[str, Tensor]:
        outputs = self.chain.trace(
            self.input(images),
            layers,
            before_activation=before_activation,
            detach_after=detach_after,
        )
        for step in self.last_steps():
            outputs[HEAD] = step(outputs[HEAD])
        return outputs

    def span(self, start: str | None, stop: str) -> nn.Module:
        inner = self.chain.span(start, stop)
        first = self.first_steps() if start is None else ()
        last = self.last_steps() if stop == HEAD else ()
        return nn.Sequential(*first, inner, *last) if first or last else inner

    def input(self, images: Tensor) -> Tensor:
        """Images as the first block takes them."""
        for step in self.first_steps():
            images = step(images)
        return images

    def first_steps(self) -> Sequence[nn.Module]:
        """What images pass through before the first block."""
        return ()

    def last_steps(self) -> Sequence[nn.Module]:
        """What logits pass through after the last block."""
        return ()

    def layout(self, layer: str) -> Layout:
        return self.chain.layout(layer)

    def token_grid(self, layer: str) -> TokenGrid | None:
        return self.chain.token_grid(layer)

    def last_norm(self, layer: str) -> nn.Module | None:
        return self.chain.last_norm(layer)

    def plain(self) -> nn.Module:
        return self.chain.plain()


class SelectClasses(nn.Module):
    """Select and reorder logits: from (N, L), of all classes of a network, to (N, K)."""

    columns: Tensor

    def __init__(self, columns: Collection[int]) -> None:
        """Args:
        columns: For each class, the index of its logit.
        """
        super().__init__()
        self.register_buffer("columns", torch.tensor(list(columns)), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.columns]


class ClassChain(Wrapped):
    """A network with its classes in another order than the study's, or with more of them.

    Attributes:
        outputs: The names of the network's own outputs, in their order.
    """

    def __init__(self, chain: Chain, outputs: Sequence[str], classes: Sequence[str]) -> None:
        """Args:
        chain: Returns the logits of its own classes.
        outputs: Their names.
        classes: Names of the study's classes, all of them among the outputs.
        """
        super().__init__(chain)
        self.outputs = tuple(outputs)
        self.select = SelectClasses([self.outputs.index(name) for name in classes])

    def last_steps(self) -> Sequence[nn.Module]:
        return (self.select,)
