"""Turn features of one layer into the shape of another: connectors and projectors.

Both follow from the two shapes, with a reason in words. A connector joins a student's front to a
teacher's tail and runs as part of the stone; a projector serves one loss.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.models.feature_shapes import FeatureShape

AdapterKind = Literal["identity", "conv_norm", "conv", "three_layer"]
"""identity; 1x1 convolution + BN; 1x1 convolution; 1x1, 3x3, 1x1 with BN and ReLU between."""


def adapter(source: FeatureShape, target: FeatureShape, kind: AdapterKind) -> tuple[nn.Module, str]:
    """A module from features of shape `source` to those of shape `target`, and the reason."""
    if kind == "identity" and source != target:
        raise ValueError(f"identity cannot turn {source.shape} into {target.shape}")
    if kind == "identity":
        return nn.Identity(), "the shapes are equal"
    module = Adapter(source, target, kind)
    return module, module.why()


class Adapter(nn.Module):
    """Turn (N, *source.shape) into (N, *target.shape).

    Features of different layouts meet as feature maps: tokens as the grid of their patches, a
    vector as a 1 x 1 map. Token sequences of the same grid and prefix are matched token by token.
    A map larger than its target is pooled before the convolution, a smaller one is enlarged after
    it (nearest neighbor), so that the convolution always runs at the smaller size.

    Source: 1x1 convolution with BN as connector: our reading of what arXiv:2411.01547 leaves open;
    the projectors of one and of three layers: arXiv:2511.14981, official code.
    """

    def __init__(self, source: FeatureShape, target: FeatureShape, kind: AdapterKind) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.token_by_token = source.has_tokens_of(target)
        self.body = _body(source.channels, target.channels, kind)

    def forward(self, features: Tensor) -> Tensor:
        if self.token_by_token:
            output: Tensor = self.body(features.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
            return output
        maps = self.source.to_map(features)
        height, width = self.target.size
        if maps.shape[2] > height or maps.shape[3] > width:
            maps = F.adaptive_avg_pool2d(
                maps, (min(maps.shape[2], height), min(maps.shape[3], width))
            )
        maps = self.body(maps)
        if maps.shape[2:] != (height, width):
            maps = F.interpolate(maps, size=(height, width), mode="nearest")
        return self.target.from_map(maps)

    def why(self) -> str:
        """What happens to the features, in words for the plan."""
        source, target = self.source, self.target
        channels = f"{source.channels} to {target.channels} channels"
        if self.token_by_token:
            return f"{channels}, token by token"
        steps = []
        if source.layout != target.layout:
            steps.append(f"{source.layout} to {target.layout}")
        if source.prefix:
            steps.append(f"without {source.prefix} prefix tokens")
        if source.height > target.height or source.width > target.width:
            smaller = f"{min(source.height, target.height)}x{min(source.width, target.width)}"
            steps.append(f"pooled from {source.height}x{source.width} to {smaller}")
        steps.append(channels)
        if source.height < target.height or source.width < target.width:
            steps.append(f"enlarged to {target.height}x{target.width}")
        if target.prefix:
            steps.append(f"the mean as {target.prefix} prefix tokens")
        return ", ".join(steps)


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
