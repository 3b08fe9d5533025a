"""Networks without their classifier: backbones, whose output is the classifier's input."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, BlockChain, Chain

DUMMY_CLASSES = 1  # of the classifier that a backbone is built with, so that its layers are found


def drop_classifier(chain: Chain, where: str) -> None:
    """Take the classifier off a network with `DUMMY_CLASSES`, in place; its layers stay the same.

    Networks of timm do so themselves. Of others, the last linear layer with that many outputs is
    replaced by the identity.

    Args:
        where: What the user calls the network, for the message.

    Raises:
        KdstepsError: It has no such layer.
    """
    network: Any = chain.plain()
    if hasattr(network, "reset_classifier"):
        network.reset_classifier(0)
    else:
        dropped = _replaced(network, where)
        if isinstance(chain, BlockChain):
            blocks = chain.blocks_in_order
            head = blocks[HEAD]
            modules = list(head) if isinstance(head, nn.Sequential) else [head]
            blocks[HEAD] = nn.Sequential(*(one for one in modules if one is not dropped))
    if chain.new_weights:  # those of the classifier, which the last note is about
        chain.notes.pop()
        chain.new_weights = ()


def _replaced(network: nn.Module, where: str) -> nn.Module:
    """The classifier, which the identity has replaced."""
    found = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == DUMMY_CLASSES
    ]
    if not found:
        raise KdstepsError(
            f"models: {where} has no linear classifier, so it cannot be used on images without "
            "labels; use a network of timm, or list `classes` of the data set"
        )
    path, classifier = found[-1]
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return classifier
