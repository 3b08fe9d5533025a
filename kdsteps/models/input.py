"""The input of a network: pixels, resized and normalized as the first step of its chain.

The step belongs to the network, so that it goes wherever the network goes. Weights are saved and
published by the names of the plain network, without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.models.chain import Chain
from kdsteps.models.input_contract import PIXEL_MAX
from kdsteps.models.input_contract import InputContract as InputContract
from kdsteps.models.input_contract import Interpolation as Interpolation
from kdsteps.models.wrapped import Wrapped


class Normalize(nn.Module):
    """Pixels (N, C, H, W), uint8 or floating from 0 to 255, as (x / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Args:
        mean, std: (C,) on the scale 0 to 1.
        """
        super().__init__()
        mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (mean, std))
        self.register_buffer("scale", 1 / (PIXEL_MAX * std), persistent=False)
        self.register_buffer("shift", mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        floats = images.to(self.scale.dtype)
        if floats is images:
            floats = images.clone()
        aligned, scale, shift = _aligned(floats, self.scale, self.shift)
        aligned.mul_(scale).sub_(shift)  # a view of `floats`
        return floats


class Center(nn.Module):
    """Pixels minus their mean: what is left of `Normalize` once a convolution has its scale."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        """Args:
        mean: (C,) on the scale 0 to 255.
        """
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        aligned, mean = _aligned(images, self.mean)
        centered = torch.sub(aligned, mean)  # uint8 is converted in the same pass
        return centered if aligned is images else _as_images(centered, images)


class ToFloat(nn.Module):
    """Pixels as floating numbers: what is left of `Normalize` once a convolution has all of it."""

    kind: Tensor

    def __init__(self, kind: Tensor) -> None:
        """Args:
        kind: A tensor of the type to convert to.
        """
        super().__init__()
        self.register_buffer("kind", kind, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.to(self.kind.dtype)


class Resize(nn.Module):
    """Resize images (N, C, H, W) that have another size; antialiased, as in torchvision and timm.

    Pixels are not rounded to whole numbers. Bicubic interpolation overshoots at edges: its results
    are clamped to the limits.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        interpolation: Interpolation,
        limits: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        """Args:
        size: (height, width).
        interpolation: How values between pixels are computed.
        limits: Lowest and highest value of each channel; None: 0 and 255.
        """
        super().__init__()
        self.size, self.interpolation = size, interpolation
        low, high = torch.tensor(limits or [(0, PIXEL_MAX)], dtype=torch.float32).T  # (C,) or (1,)
        self.register_buffer("low", low[:, None, None].clone(), persistent=False)
        self.register_buffer("high", high[:, None, None].clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) == self.size:
            return images
        floats = images if images.is_floating_point() else images.float()
        if self.interpolation == "nearest":
            return F.interpolate(floats, self.size, mode="nearest-exact")
        resized = F.interpolate(floats, self.size, mode=self.interpolation, antialias=True)
        if self.interpolation == "bilinear":
            return resized
        return resized.clamp(self.low.to(resized.dtype), self.high.to(resized.dtype))


class InputChain(Wrapped):
    """A chain that takes pixels: its first block resizes and normalizes them as well.

    Args:
        chain: Takes normalized images of one size.
        contract: How pixels become such images.

    Attributes:
        resize: The first step; None if the contract has no size.
        normalize: The second step; the identity if it would leave the values unchanged.
    """

    def __init__(self, chain: Chain, contract: InputContract) -> None:
        super().__init__(chain)
        self.contract = contract
        size = contract.size
        self.resize = (
            None if size is None else Resize(size, contract.interpolation, contract.limits)
        )
        self.normalize: nn.Module = (
            nn.Identity() if contract.keeps_values else Normalize(contract.mean, contract.std)
        )

    def first_steps(self) -> Sequence[nn.Module]:
        return (self.normalize,) if self.resize is None else (self.resize, self.normalize)


def behind_resize(chain: Chain) -> nn.Module:
    """The deployed module, after the step that resizes images where the network has one.

    It takes images of the data set's size: this is what is timed and whose MACs are counted.
    """
    resize = chain.resize if isinstance(chain, InputChain) else None
    return chain.plain() if resize is None else nn.Sequential(resize, chain.plain())


def _aligned(images: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """A view of images (N, C, H, W), and values (C,) in a shape that broadcasts with it.

    With the channels last, it is rows of all channels (N, H, W C): the channels alone are too short
    to be fast.
    """
    if images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last):
        width = images.shape[3]
        rows = images.permute(0, 2, 3, 1).flatten(2)
        return rows, *(value.repeat(width) for value in values)
    return images, *(value[:, None, None] for value in values)


def _as_images(rows: Tensor, images: Tensor) -> Tensor:
    """Rows (N, H, W C) in the shape of images (N, C, H, W), channels last."""
    output: Tensor = rows.unflatten(2, (images.shape[3], images.shape[1])).permute(0, 3, 1, 2)
    return output
