"""The shape of a layer's output for one image, and how outputs of any layout become feature maps.

Class and register tokens (prefix tokens) come before the tokens of the image's patches; a feature
map consists of the patches alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsteps.models.chain import Chain, Layout, TokenGrid
from kdsteps.models.input_type import zeros_for


@dataclass(frozen=True)
class FeatureShape:
    """Layout and size of a layer's output for one image.

    Attributes:
        layout: map, map_last, tokens or vector.
        channels: C, or D for tokens and vectors.
        height, width: Of a map, or of the grid of patches of a token sequence; 1 x 1 for a vector.
        prefix: Number of tokens before those of the patches; 0 for other layouts.
    """

    layout: Layout
    channels: int
    height: int
    width: int
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The network's own shape, without the images' dimension."""
        if self.layout == "map":
            return (self.channels, self.height, self.width)
        if self.layout == "map_last":
            return (self.height, self.width, self.channels)
        if self.layout == "tokens":
            return (self.prefix + self.height * self.width, self.channels)
        return (self.channels,)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the feature map."""
        return self.height, self.width

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_map(self) -> FeatureShape:
        """The shape of the same output as a feature map, without prefix tokens."""
        return FeatureShape("map", self.channels, self.height, self.width)

    def has_tokens_of(self, other: FeatureShape) -> bool:
        """Whether both are token sequences that match token by token."""
        both = self.layout == other.layout == "tokens"
        return both and (self.size, self.prefix) == (other.size, other.prefix)

    def to_map(self, features: Tensor) -> Tensor:
        """Features of this shape as (N, C, H, W)."""
        return to_map(features, self.layout, self._grid)

    def from_map(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) of this size in this layout; prefix tokens are the mean of the map."""
        if self.layout == "map":
            return maps
        if self.layout == "map_last":
            return maps.permute(0, 2, 3, 1)
        if self.layout == "vector":
            return maps.mean(dim=(2, 3))
        tokens = maps.flatten(2).transpose(1, 2)  # (N, patches, D)
        mean = tokens.mean(dim=1, keepdim=True).expand(-1, self.prefix, -1)
        return torch.cat([mean, tokens], dim=1)

    def pool_to(self, features: Tensor, target: FeatureShape) -> Tensor:
        """Features of this shape as a map no larger than `target`; unchanged if that is tokens."""
        if target.layout == "tokens":
            return features
        return F.adaptive_avg_pool2d(self.to_map(features), target.size)

    @property
    def _grid(self) -> TokenGrid | None:
        return TokenGrid(self.prefix, *self.size) if self.layout == "tokens" else None


@torch.no_grad()
def feature_shapes(chain: Chain, image_shape: tuple[int, int, int]) -> dict[str, FeatureShape]:
    """The shape of every layer of `chain` for images of (C, H, W), from one forward pass."""
    was_training = chain.training
    traced = chain.eval().trace(zeros_for(chain, 2, *image_shape))
    chain.train(was_training)
    return {layer: _shape(chain, layer, traced[layer]) for layer in chain.layers}


def to_map(features: Tensor, layout: Layout, grid: TokenGrid | None = None) -> Tensor:
    """Features of any layout as (N, C, H, W), without prefix tokens.

    Args:
        features: Of `layout`.
        layout: Of the features.
        grid: Of token sequences.
    """
    if layout == "map":
        return features
    if layout == "map_last":
        return features.permute(0, 3, 1, 2)
    if layout == "vector":
        return features[:, :, None, None]
    assert grid is not None, "a layer of tokens has a grid"
    tokens = features[:, grid.prefix :]
    output: Tensor = tokens.transpose(1, 2).unflatten(2, (grid.height, grid.width))
    return output


def pooled(features: Tensor, layout: Layout) -> Tensor:
    """Features of any layout as (N, D): the mean over the map or over all tokens."""
    if layout == "vector":
        return features
    if layout == "tokens":
        return features.mean(dim=1)
    return features.mean(dim=(2, 3) if layout == "map" else (1, 2))


def _shape(chain: Chain, layer: str, output: Tensor) -> FeatureShape:
    layout, shape = chain.layout(layer), output.shape[1:]
    if layout == "map":
        return FeatureShape(layout, shape[0], shape[1], shape[2])
    if layout == "map_last":
        return FeatureShape(layout, shape[2], shape[0], shape[1])
    grid = chain.token_grid(layer)
    if grid is not None:
        return FeatureShape(layout, shape[1], grid.height, grid.width, grid.prefix)
    return FeatureShape(layout, shape[0], 1, 1)
