"""Other forms of images, to find out why the predictions of a third-party teacher are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdsteps.models.chain import Chain
from kdsteps.models.input import InputChain, InputContract

IMAGENET = InputContract((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def input_variants(
    network: Chain, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from images (N, C, H, W) to logits, by a description of what differs.

    Args:
        network: Frozen, in eval mode; takes images that are normalized with `mean` and `std`.
        mean, std: Of each channel, on the scale 0 to 1.
    """
    inner = network.chain if isinstance(network, InputChain) else network
    channels, device = len(mean), next(network.parameters()).device
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    contracts = {
        "`normalize: dataset`": InputContract(tuple(mean), tuple(std)),
        "`normalize: none`, pixels from 0 to 1": InputContract(zeros, ones),
        "pixels from 0 to 255 (`normalize` with mean 0 and std 0.00392)": InputContract(
            zeros, (1 / 255,) * channels
        ),
        "ImageNet's normalization (`normalize: {mean: [0.485, 0.456, 0.406], "
        "std: [0.229, 0.224, 0.225]}`)": IMAGENET.for_channels(channels, "models"),
    }
    shown: dict[str, Callable[[Tensor], Tensor]] = {
        what: InputChain(inner, contract.after(mean, std)).to(device)
        for what, contract in contracts.items()
    }
    if channels == 3:
        center = torch.tensor(mean, device=device)[:, None, None]
        spread = torch.tensor(std, device=device)[:, None, None]

        def reversed_channels(images: Tensor) -> Tensor:
            pixels = (images * spread + center).flip(1)
            logits: Tensor = network((pixels - center) / spread)
            return logits

        shown["channels in the order blue, green, red"] = reversed_channels
    return shown
