"""From one place of a network to a place of another: connectors and projectors.

Both are chosen from the two shapes alone, and say what was chosen and why. A connector joins a
student's front to a teacher's tail and runs as part of the stone; a projector serves one loss.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.models.chain import Chain, Layout

AdapterKind = Literal["identity", "conv_norm", "conv", "three_layer"]
"""identity; 1x1 convolution + BN; 1x1 convolution; 1x1, 3x3, 1x1 with BN and ReLU between."""


@dataclass(frozen=True)
class Place:
    """The output of a layer for one image: how it lies and how large it is.

    Attributes:
        layout: map, map_last, tokens or vector.
        channels: C, or D for tokens and vectors.
        height, width: Of a map; a token sequence is T x 1, a vector 1 x 1.
    """

    layout: Layout
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the images' dimension, as the network has it."""
        if self.layout == "map":
            return (self.channels, self.height, self.width)
        if self.layout == "map_last":
            return (self.height, self.width, self.channels)
        return (self.height, self.channels) if self.layout == "tokens" else (self.channels,)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_map(self) -> Place:
        """The same place seen as a map; class tokens in front of a token grid are left out."""
        height, width = grid(self)
        return Place("map", self.channels, height, width)

    def bring(self, features: Tensor, place: Place) -> Tensor:
        """Features at this place as a map no larger than `place`, or as they are for tokens."""
        if place.layout == "tokens":
            return features
        return F.adaptive_avg_pool2d(to_map(features, self.layout), (place.height, place.width))


@torch.no_grad()
def places(chain: Chain, image_shape: tuple[int, int, int]) -> dict[str, Place]:
    """The place after every layer of `chain` for images of (C, H, W), by one forward pass."""
    was_training = chain.training
    first = next(chain.parameters(), torch.zeros(()))
    images = torch.zeros(2, *image_shape, device=first.device, dtype=first.dtype)
    traced = chain.eval().trace(images)
    chain.train(was_training)
    return {layer: _place(chain.layout(layer), traced[layer]) for layer in chain.layers}


def adapter(source: Place, target: Place, kind: AdapterKind) -> tuple[nn.Module, str]:
    """A module from outputs at `source` to the shape at `target`, and why it is what it is."""
    if kind == "identity" and source != target:
        raise ValueError(f"identity cannot turn {source.shape} into {target.shape}")
    if kind == "identity":
        return nn.Identity(), "the shapes are equal"
    module = Adapter(source, target, kind)
    return module, module.why()


class Adapter(nn.Module):
    """Turn (N, *source.shape) into (N, *target.shape).

    Whatever lies differently is first seen as a map: tokens as their grid, less the class tokens
    in front, a vector as a 1 x 1 map. Token sequences of one length are matched token by token.
    A map that is larger than its target is pooled before the convolution, a smaller one enlarged
    after it (nearest neighbour), so that the convolution always runs at the smaller size.

    Source: 1x1 convolution with BN as connector: our reading of what arXiv:2411.01547 leaves open;
    the projectors of one and of three layers: arXiv:2511.14981, official code.
    """

    def __init__(self, source: Place, target: Place, kind: AdapterKind) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.token_by_token = (
            source.layout == target.layout == "tokens" and source.height == target.height
        )
        self.body = _body(source.channels, target.channels, kind)

    def forward(self, features: Tensor) -> Tensor:
        source, target = self.source, self.target
        if self.token_by_token:
            return self.body(features.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        maps = to_map(features, source.layout)
        height, width = grid(target)
        if maps.shape[2] > height or maps.shape[3] > width:
            maps = F.adaptive_avg_pool2d(
                maps, (min(maps.shape[2], height), min(maps.shape[3], width))
            )
        maps = self.body(maps)
        if maps.shape[2:] != (height, width):
            maps = F.interpolate(maps, size=(height, width), mode="nearest")
        return from_map(maps, target)

    def why(self) -> str:
        """What is done to the features, in words for the plan."""
        steps = []
        (height, width), source = grid(self.source), self.source
        to_height, to_width = grid(self.target)
        if self.token_by_token:
            return f"{source.channels} to {self.target.channels} channels, token by token"
        if source.layout != self.target.layout:
            steps.append(f"{source.layout} to {self.target.layout}")
        if height > to_height or width > to_width:
            smaller = f"{min(height, to_height)}x{min(width, to_width)}"
            steps.append(f"pooled from {height}x{width} to {smaller}")
        steps.append(f"{source.channels} to {self.target.channels} channels")
        if height < to_height or width < to_width:
            steps.append(f"enlarged to {to_height}x{to_width}")
        return ", ".join(steps)


def to_map(features: Tensor, layout: Layout) -> Tensor:
    """Features of any layout as (N, C, H, W), without class tokens in front of a token grid."""
    if layout == "map":
        return features
    if layout == "map_last":
        return features.permute(0, 3, 1, 2)
    if layout == "vector":
        return features[:, :, None, None]
    side = math.isqrt(features.shape[1])
    tokens = features[:, features.shape[1] - side * side :]
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def pooled(features: Tensor, layout: Layout) -> Tensor:
    """Features of any layout as (N, D): the mean over places or tokens."""
    if layout == "vector":
        return features
    if layout == "tokens":
        return features.mean(dim=1)
    return features.mean(dim=(2, 3) if layout == "map" else (1, 2))


def _place(layout: Layout, output: Tensor) -> Place:
    shape = output.shape[1:]
    if layout == "map":
        return Place(layout, shape[0], shape[1], shape[2])
    if layout == "map_last":
        return Place(layout, shape[2], shape[0], shape[1])
    if layout == "tokens":
        return Place(layout, shape[1], shape[0], 1)
    return Place(layout, shape[0], 1, 1)


def grid(place: Place) -> tuple[int, int]:
    """Height and width of a place seen as a map."""
    if place.layout == "tokens":
        side = math.isqrt(place.height)
        return side, side
    return place.height, place.width


def from_map(maps: Tensor, target: Place) -> Tensor:
    if target.layout == "map":
        return maps
    if target.layout == "map_last":
        return maps.permute(0, 2, 3, 1)
    if target.layout == "vector":
        return maps.mean(dim=(2, 3))
    tokens = maps.flatten(2).transpose(1, 2)  # (N, grid, D)
    extra = target.height - tokens.shape[1]  # class tokens, for which the mean of all stands in
    return torch.cat([tokens.mean(dim=1, keepdim=True).expand(-1, extra, -1), tokens], dim=1)


def _body(channels: int, to_channels: int, kind: AdapterKind) -> nn.Module:
    if kind == "conv":
        return nn.Conv2d(channels, to_channels, 1, bias=False)
    if kind == "conv_norm":
        return nn.Sequential(
            nn.Conv2d(channels, to_channels, 1, bias=False), nn.BatchNorm2d(to_channels)
        )
    middle = 2 * to_channels
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, to_channels, 1, bias=False),
    )
