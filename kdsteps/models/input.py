"""The input of a network: pixels, resized and normalized as the first step of its chain.

The step belongs to the network, so that it goes wherever the network goes. Weights are saved and
published by the names of the plain network, without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Chain
from kdsteps.models.wrapped import Wrapped
from kdsteps.study import registry

Interpolation = Literal["nearest", "bilinear", "bicubic"]

_MAX = 255  # of a pixel


@dataclass(frozen=True)
class InputContract:
    """How pixels become the input of a network.

    Attributes:
        mean, std: Of each channel, on the scale 0 to 1.
        size: (height, width) that the network is built for; None: that of the images.
        interpolation: How images of another size are resized.
        limits: For each channel, the values that stand for the pixels 0 and 255 in images that are
            normalized already (`after`); None: 0 and 255. Resized images stay between them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    limits: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def of_size(
        cls, size: tuple[int, int], interpolation: Interpolation, channels: int
    ) -> InputContract:
        """The contract that resizes images and leaves their values unchanged."""
        return cls((0.0,) * channels, (1 / _MAX,) * channels, size, interpolation)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputContract:
        """What `as_dict` wrote, also after JSON."""
        size, limits = values["size"], values["limits"]
        return cls(
            tuple(values["mean"]),
            tuple(values["std"]),
            None if size is None else (size[0], size[1]),
            values["interpolation"],
            None if limits is None else tuple((low, high) for low, high in limits),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def keeps_values(self) -> bool:
        """Whether normalization leaves the values of images unchanged."""
        return not any(self.mean) and all(abs(_MAX * std - 1) < 1e-12 for std in self.std)

    def after(self, mean: Sequence[float], std: Sequence[float]) -> InputContract:
        """The contract for images that are normalized already, by another mean and std.

        Both steps are affine, and so is the one that leads from one to the other. Resizing takes
        averages with weights that sum to 1, so it may come before or after an affine step.

        Args:
            mean, std: Of each channel, on the scale 0 to 1: how the images are normalized.
        """
        ratios = [own / (_MAX * given) for own, given in zip(self.std, std, strict=True)]
        shifts = [
            (own - given) / spread * ratio
            for own, given, spread, ratio in zip(self.mean, mean, self.std, ratios, strict=True)
        ]
        limits = tuple(
            (-center / spread, (1 - center) / spread)
            for center, spread in zip(mean, std, strict=True)
        )
        return replace(self, mean=tuple(shifts), std=tuple(ratios), limits=limits)

    def for_channels(self, channels: int, where: str) -> InputContract:
        """The contract for images with another number of channels than three.

        The first convolution is adapted in the same way (`fit_channels`): one channel has the mean
        over the three, further channels repeat them.

        Raises:
            KdstepsError: Neither the contract nor the network is for colors.
        """
        known = len(self.mean)
        if channels == known:
            return self
        if known != 3:
            raise KdstepsError(
                f"{where}: normalize has {known} channels, the images have {channels}; give a mean "
                "and a std for each"
            )
        if channels == 1:
            mean, std = (sum(values) / known for values in (self.mean, self.std))
            return replace(self, mean=(mean,), std=(std,))
        turns = [number % known for number in range(channels)]
        mean_of, std_of = ([values[turn] for turn in turns] for values in (self.mean, self.std))
        return replace(self, mean=tuple(mean_of), std=tuple(std_of))


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
        self.register_buffer("scale", 1 / (_MAX * std), persistent=False)
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
        low, high = torch.tensor(limits or [(0, _MAX)], dtype=torch.float32).T  # (C,) or (1,)
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

    def input(self, images: Tensor) -> Tensor:
        """Pixels as the network takes them."""
        output: Tensor = self.normalize(images if self.resize is None else self.resize(images))
        return output

    def trace(
        self,
        images: Tensor,
        layers: Collection[str] | None = None,
        *,
        before_activation: bool = False,
        detach_after: str | None = None,
    ) -> dict[str, Tensor]:
        return super().trace(
            self.input(images),
            layers,
            before_activation=before_activation,
            detach_after=detach_after,
        )

    def span(self, start: str | None, stop: str) -> nn.Module:
        inner = super().span(start, stop)
        if start is not None:
            return inner
        steps = (self.resize, self.normalize, inner)
        return nn.Sequential(*(step for step in steps if step is not None))


def behind_resize(chain: Chain) -> nn.Module:
    """The deployed module, after the step that resizes images where the network has one.

    It takes images of the data set's size: this is what is timed and whose MACs are counted.
    """
    resize = chain.resize if isinstance(chain, InputChain) else None
    return chain.plain() if resize is None else nn.Sequential(resize, chain.plain())


def published_input(
    family: str, network: nn.Module, options: Mapping[str, Any], channels: int
) -> InputContract | None:
    """The normalization that a family's published weights were trained with; None if unknown.

    Args:
        family: With a function `published_input(network, name)`: timm and torchvision.
        network: The plain network, built.
        options: Of the family.
        channels: Of the images.
    """
    module = import_module(registry.module("models", family))
    find = getattr(module, "published_input", None)
    if find is None:
        return None
    contract: InputContract = find(network, options["name"])
    return contract.for_channels(channels, f"models: {options['name']}")


def known_interpolation(name: str) -> Interpolation:
    """An interpolation by its name in other libraries; bicubic where it has no equal here."""
    known: dict[str, Interpolation] = {"nearest": "nearest", "bilinear": "bilinear"}
    return known.get(name, "bicubic")


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
