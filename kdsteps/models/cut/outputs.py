"""The logits among what a network returns: a tensor, several tensors, or a dictionary of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdsteps.errors import KdstepsError

Output = str | int | None
"""Key or index of the logits in what a network returns; None if it returns them alone."""


@dataclass(frozen=True)
class OutputRule:
    """Where the logits are in what a network returns.

    Attributes:
        network: Name of its class, for messages.
        output: Key or index of the logits. A tensor on its own is taken as the logits whatever it
            says, for many networks return further outputs in training mode only.
        averages: Whether two outputs in training mode are the logits of a head for labels and of
            a head for a distillation token (DeiT, LeViT, EfficientFormer), which such a network
            averages in eval mode.
    """

    network: str
    output: Output = None
    averages: bool = False

    def logits(self, returned: Any) -> Tensor:
        """The logits (N, K) in what the network returned.

        Raises:
            KdstepsError: They cannot be distinguished from other outputs.
        """
        found = self.select(returned)
        if isinstance(found, Tensor):
            return found
        return self.refuse(_described(returned)) if found is None else average(found)

    def select(self, returned: Any) -> Any:
        """What holds the logits: one of the outputs, or two to be averaged; None if unclear.

        It also works on the nodes of a graph.
        """
        if isinstance(returned, (Tensor, fx.Node)):
            return returned
        if isinstance(self.output, int):
            return _entry(returned, self.output)
        if isinstance(returned, Mapping):
            return returned.get(self.output or "logits")
        if self.output is None and self.averages and len(returned) == 2:
            return returned
        return getattr(returned, self.output or "logits", None)

    def refuse(self, returned: str) -> Any:
        """Raise the error for outputs whose logits cannot be identified."""
        wrong = "" if self.output is None else f", in which there is no {self.output!r}"
        raise KdstepsError(
            f"models: {self.network} returns {returned}{wrong}; say which are the logits (N, K) by "
            "`output: KEY` or `output: INDEX` of the model"
        )


def rule_for(network: nn.Module, output: Output) -> OutputRule:
    """The rule for a network, with the user's choice if there is one."""
    averages = output is None and hasattr(network, "head_dist")
    return OutputRule(type(network).__name__, output, averages)


def average(logits: Sequence[Tensor]) -> Tensor:
    """The mean (N, K) of several logits (N, K)."""
    return torch.stack(list(logits)).mean(dim=0)


def _entry(returned: Any, index: int) -> Any:
    if isinstance(returned, Mapping):
        return returned.get(index)
    inside = isinstance(returned, Sequence) and -len(returned) <= index < len(returned)
    return returned[index] if inside else None


def _described(returned: Any) -> str:
    """A description of what a network returned."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a dictionary with {', '.join(map(str, returned)) or 'nothing'}"
    if isinstance(returned, (tuple, list)):
        parts = ", ".join(
            str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
            for part in returned
        )
        return f"{len(returned)} outputs ({parts})"
    return f"a {type(returned).__name__}"
