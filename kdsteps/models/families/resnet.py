"""Residual networks of four stages with a small-image stem: ResNet-9, 18, 34 and 50.

ResNet-50 has the state-dict keys of the CIFAR-100 benchmark.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdsteps.models.blocks import Activated, convolution, draw_weights, pooled, projection
from kdsteps.models.chain import BlockChain
from kdsteps.models.families.cifar_resnet import BasicBlock
from kdsteps.models.image_size import ImageSize, height_width

WIDTHS = (64, 128, 256, 512)
REPEATS = {9: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    depth: Literal[9, 18, 34, 50] = 9,
    stem_pool: bool | None = None,
    zero_init: bool | None = None,
) -> ResNet:
    """A residual network for images of any size, its stem a 3x3 convolution of stride 1.

    Args:
        depth: The number in the network's name; 50 has bottleneck blocks, the others basic ones.
        stem_pool: Halve the map after the stem; None: if the smaller side of the images has 64
            pixels or more.
        zero_init: Initialize blocks as the identity, with their last norm's weight at zero; None:
            as published, so for basic blocks and not for bottlenecks.

    Source: He et al. 2016, arXiv:1512.03385, table 1, for the stages. ResNet-50 with this stem is
    that of megvii-research/mdistiller; 9 and 34, their first weights and the pooling at 64 pixels
    are those of Cooper et al. 2025, arXiv:2511.14981.
    """
    bottleneck = depth == 50
    if stem_pool is None:
        stem_pool = image_size is not None and min(height_width(image_size)) >= 64
    if zero_init is None:
        zero_init = not bottleneck
    block = Bottleneck if bottleneck else BasicBlock
    return ResNet(num_classes, in_channels, block, REPEATS[depth], stem_pool, zero_init)


class ResNet(BlockChain):
    """Layers: `stem`, `layer1.0` … `layer4.<n-1>`, `pool`."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        block: type[BasicBlock | Bottleneck],
        repeats: tuple[int, ...],
        stem_pool: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, WIDTHS[0], 3)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        blocks: dict[str, nn.Module] = {"stem": nn.Sequential(self.conv1, self.bn1, nn.ReLU())}
        inputs = WIDTHS[0]
        for number, (repeat, width) in enumerate(zip(repeats, WIDTHS, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(repeat):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(block(inputs, width * block.expansion, stride))
                inputs = width * block.expansion
                blocks[f"layer{number}.{index}"] = stage[index]
            self.add_module(f"layer{number}", stage)
        if stem_pool:
            shrink = nn.MaxPool2d(3, stride=2, padding=1)
            blocks["layer1.0"] = nn.Sequential(shrink, blocks["layer1.0"])
        self.linear = nn.Linear(inputs, num_classes)
        blocks |= {"pool": pooled(), "head": self.linear}
        stages = tuple(f"layer{n}.{repeat - 1}" for n, repeat in enumerate(repeats, start=1))
        self.line_up(blocks, stages=stages)
        draw_weights(self)
        if zero_init:
            self._begin_as_identity()

    def _begin_as_identity(self) -> None:
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm().weight)


class Bottleneck(Activated):
    """A 3x3 convolution on a quarter of the channels, between two 1x1, with a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // self.expansion
        self.conv1 = convolution(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = convolution(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)
        self.inner_relu = nn.ReLU(inplace=True)
        self.relu = nn.ReLU()

    def before(self, images: Tensor) -> Tensor:
        branch = self.inner_relu(self.bn1(self.conv1(images)))
        branch = self.inner_relu(self.bn2(self.conv2(branch)))
        output: Tensor = self.bn3(self.conv3(branch)) + self.shortcut(images)
        return output

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3
