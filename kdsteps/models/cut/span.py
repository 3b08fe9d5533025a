"""A span of a cut network: graphs that use its weights and follow its mode."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn


class Pieces(Protocol):
    """A cut network, as far as spans use it: its mode, and the graph between two layers."""

    network: nn.Module
    needs_contiguous: bool

    def piece(self, start: str | None, stop: str) -> Piece: ...

    def for_network(self, images: Tensor) -> Tensor: ...

    def ordered(self, features: Tensor) -> Tensor: ...


class Span(nn.Module):
    """Turns the output of one layer of a network into that of a later one.

    It runs in the mode of its network, whatever its own: functional dropout and drop path are
    another graph. Its parameters and modules are the network's, those between the two layers.

    Args:
        chain: The cut network.
        start: A layer, or None for the images.
        stop: A later layer, or `head`.

    Attributes:
        needs_contiguous: As that of the chain.
    """

    def __init__(self, chain: Pieces, start: str | None, stop: str) -> None:
        super().__init__()
        self._chain = (chain,)  # in a tuple, since a span does not own the rest of the network
        self._ends = (start, stop)
        self.needs_contiguous = chain.needs_contiguous
        self.pieces = nn.ModuleDict()
        self._piece()

    def forward(self, features: Tensor) -> Tensor:
        (chain,) = self._chain
        prepare = chain.for_network if self._ends[0] is None else chain.ordered
        outputs: Tensor = self._piece()(prepare(features))
        return outputs

    def _piece(self) -> nn.Module:
        (chain,) = self._chain
        mode = "in_training" if chain.network.training else "in_eval"
        if mode not in self.pieces:
            self.pieces[mode] = chain.piece(*self._ends)
        return self.pieces[mode]


class Piece(nn.Module):
    """A graph of a part of a network, in one mode.

    Args:
        network: Whose modules the graph names.
        graph: Its first placeholder is the features, the others the weights.
        weights: Owner and attribute of each further placeholder. They are read at each call, for a
            buffer is another tensor after `.to(device)`. Those that the owner saves are saved and
            loaded with the piece too, which may be deployed without its owner.
    """

    def __init__(
        self, network: nn.Module, graph: fx.Graph, weights: tuple[tuple[nn.Module, str], ...]
    ) -> None:
        super().__init__()
        self.run = fx.GraphModule(network, graph)
        self._weights = weights
        for index, (owner, name) in enumerate(weights):
            if name in dict(owner.named_parameters(recurse=False)):
                self.register_parameter(f"weight_{index}", getattr(owner, name))
            elif name not in owner._non_persistent_buffers_set:
                self.register_buffer(f"weight_{index}", getattr(owner, name))

    def forward(self, features: Tensor) -> Tensor:
        weights = [getattr(owner, name) for owner, name in self._weights]
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # also restored after an error
            outputs: Tensor = self.run(features, *weights)
        return outputs

    def _save_to_state_dict(self, *args: Any) -> None:
        self._take_buffers()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._take_buffers()
        super()._load_from_state_dict(*args)

    def _take_buffers(self) -> None:
        """Let the saved buffers be those of the owners today."""
        for index, (owner, name) in enumerate(self._weights):
            if f"weight_{index}" in self._buffers:
                self._buffers[f"weight_{index}"] = getattr(owner, name)


class Whole(nn.Module):
    """A network that cannot be cut, from images to logits."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.chain(images)
        return logits
