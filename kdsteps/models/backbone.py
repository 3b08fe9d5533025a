"""Networks without their classifier: backbones, whose output is the classifier's input."""

from __future__ import annotations

from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import HEAD, BlockChain, Chain


def drop_classifier(network: nn.Module, where: str) -> nn.Module:
    """Replace the last linear layer of a network by the identity, in place; return that layer.

    Args:
        where: What the user calls the network, for the message.

    Raises:
        KdstepsError: Its last module with weights is not a linear layer.
    """
    modules = [
        (path, m)
        for path, m in network.named_modules()
        if next(m.parameters(False), None) is not None
    ]
    path, last = modules[-1]
    if not isinstance(last, nn.Linear):
        raise KdstepsError(
            f"models: {where} has no linear classifier at its end, so it cannot be used on images "
            "without labels; use a network of timm"
        )
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return last


def drop_head(chain: BlockChain, where: str) -> None:
    """Take the classifier off one of kdsteps' own networks; its block `head` is what is left."""
    left = drop_classifier(chain, where)
    blocks = chain.blocks_in_order
    head = blocks[HEAD]
    kept = [
        module for module in (head if isinstance(head, nn.Sequential) else ()) if module is not left
    ]
    blocks[HEAD] = nn.Sequential(*kept) if kept else nn.Identity()


def copy_backbone(chain: Chain, full: Chain) -> None:
    """Put the weights of a network into the same one without a classifier."""
    loaded = full.plain().state_dict()
    own = chain.plain().state_dict()
    chain.plain().load_state_dict({name: loaded[name] for name in own})
    chain.notes += full.notes[:-1] if full.new_weights else full.notes  # the last is on these
