"""Building blocks of the built-in families: readable activations, initialization, pooling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Activated(nn.Module, ABC):
    """A block that ends in a ReLU and can be read right before it."""

    relu: nn.Module

    @abstractmethod
    def before(self, images: Tensor) -> Tensor:
        """What enters the last ReLU."""

    @abstractmethod
    def last_norm(self) -> nn.Module | None:
        """The batch normalization of the residual branch, if it covers every channel."""

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.relu(self.before(images))
        return output


class Preactivated(nn.Module, ABC):
    """A block that begins with a batch normalization and its ReLU."""

    @abstractmethod
    def first_norm(self) -> nn.Module:
        """The batch normalization at the block's beginning."""

    @abstractmethod
    def go_on(self, images: Tensor, normed: Tensor) -> Tensor:
        """The block's output from its input and that input normalized."""

    def forward(self, images: Tensor) -> Tensor:
        return self.go_on(images, self.first_norm()(images))


class Ending(NamedTuple):
    """A block in two parts: up to its last ReLU, and that ReLU."""

    before: Callable[[Tensor], Tensor]
    relu: nn.Module
    norm: nn.Module | None


def ending(block: nn.Module) -> Ending | None:
    """The block cut before the ReLU it ends in, or None if it ends in none."""
    if isinstance(block, Activated):
        return Ending(block.before, block.relu, block.last_norm())
    if not isinstance(block, nn.Sequential) or len(block) == 0:
        return None
    *first, last = block
    if isinstance(last, nn.ReLU | nn.ReLU6):
        norm = first[-1] if first and isinstance(first[-1], nn.BatchNorm2d) else None
        return Ending(nn.Sequential(*first), last, norm)
    inner = ending(last)
    if inner is None:
        return None
    start = nn.Sequential(*first)
    return Ending(lambda images: inner.before(start(images)), inner.relu, inner.norm)


def pooled() -> nn.Sequential:
    """A feature map (N, C, H, W) of any size averaged to features (N, C)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias that keeps height and width, up to its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """What a shortcut needs to reach the shape of its block's output: nothing, if it has it."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def draw_weights(network: nn.Module, linear_std: float | None = None) -> None:
    """Draw convolutions by their fan-out, and linear layers with `linear_std` if it is given.

    Source: He et al. 2015, arXiv:1502.01852, section 2.2, backward case.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
