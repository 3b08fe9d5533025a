"""ShuffleNet, versions 1 and 2, for small images.

State-dict keys are those of the CIFAR-100 benchmark, whose networks are version 1 with 3 groups and
version 2 of size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.blocks import Activated, convolution, pooled
from kdsteps.models.chain import BlockChain
from kdsteps.models.image_size import ImageSize

REPEATS = (4, 8, 4)
STEM_WIDTH = 24
GROUPS = 3
WIDTHS_V1 = (240, 480, 960)
# of the three stages and of the last convolution
WIDTHS_V2 = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    version: Literal[1, 2] = 2,
    size: PositiveFloat = 1.0,
) -> ShuffleNet:
    """A ShuffleNet for images of any size, its stem a 1x1 convolution of stride 1.

    Args:
        version: 1 groups the 1x1 convolutions and adds; 2 splits the channels and joins them.
        size: How wide: 0.5, 1, 1.5 or 2; in version 1 it multiplies the channels of 3 groups.

    Raises:
        KdstepsError: The paper has no such size.

    Source: Zhang et al. 2018, arXiv:1707.01083, table 1 (3 groups); Ma et al. 2018,
    arXiv:1807.11164, table 5. The stem is that of megvii-research/mdistiller.
    """
    if problem := options_problem(size=size):
        raise KdstepsError(f"models: shufflenet: {problem}")
    if version == 1:
        widths: tuple[int, ...] = tuple(int(width * size) for width in WIDTHS_V1)
        return ShuffleNet(num_classes, in_channels, GroupedDown, GroupedBlock, widths, None)
    widths, last_width = WIDTHS_V2[size][:3], WIDTHS_V2[size][3]
    return ShuffleNet(num_classes, in_channels, SplitDown, SplitBlock, widths, last_width)


def options_problem(*, size: float) -> str | None:
    """What is wrong with the size."""
    if size in WIDTHS_V2:
        return None
    return f"size is {size:g}; it should be one of {', '.join(map(str, WIDTHS_V2))}"


class ShuffleNet(BlockChain):
    """Layers: `stem`, `layer1.0` … `layer3.3`, in version 2 `conv2`, and `pool`."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        down: Callable[[int, int], nn.Module],
        block: Callable[[int], nn.Module],
        widths: tuple[int, ...],
        last_width: int | None,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, STEM_WIDTH, 1)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        blocks: dict[str, nn.Module] = {"stem": nn.Sequential(self.conv1, self.bn1, nn.ReLU())}
        inputs = STEM_WIDTH
        for number, (repeat, width) in enumerate(zip(REPEATS, widths, strict=True), start=1):
            stage = nn.Sequential(down(inputs, width), *(block(width) for _ in range(repeat - 1)))
            blocks |= {f"layer{number}.{index}": stage[index] for index in range(repeat)}
            self.add_module(f"layer{number}", stage)
            inputs = width
        if last_width is not None:
            self.conv2 = convolution(inputs, last_width, 1)
            self.bn2 = nn.BatchNorm2d(last_width)
            blocks["conv2"] = nn.Sequential(self.conv2, self.bn2, nn.ReLU())
            inputs = last_width
        self.linear = nn.Linear(inputs, num_classes)
        blocks |= {"pool": pooled(), "head": self.linear}
        stages = tuple(f"layer{n}.{repeat - 1}" for n, repeat in enumerate(REPEATS, start=1))
        self.line_up(blocks, stages=stages)


class Grouped(Activated):
    """The branch of version 1: grouped 1x1, shuffle, 3x3 of each channel, grouped 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first_groups = 1 if inputs == STEM_WIDTH else GROUPS
        inner = outputs // 4
        self.conv1 = convolution(inputs, inner, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.conv2 = convolution(inner, inner, 3, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(inner, outputs, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.inner_relu = nn.ReLU(inplace=True)
        self.relu = nn.ReLU()

    def branch(self, images: Tensor) -> Tensor:
        inner = self.shuffle(self.inner_relu(self.bn1(self.conv1(images))))
        # the paper has no ReLU here, the benchmark has
        inner = self.inner_relu(self.bn2(self.conv2(inner)))
        output: Tensor = self.bn3(self.conv3(inner))
        return output


class GroupedBlock(Grouped):
    """Version 1 where the shape stays: the branch is added."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, stride=1)

    def before(self, images: Tensor) -> Tensor:
        return images + self.branch(images)

    def last_norm(self) -> nn.Module:
        return self.bn3


class GroupedDown(Grouped):
    """Version 1 where the map is halved: the branch fills up the channels of the pooled input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs - inputs, stride=2)
        self.shrink = nn.AvgPool2d(3, stride=2, padding=1)

    def before(self, images: Tensor) -> Tensor:
        return torch.cat((self.branch(images), self.shrink(images)), dim=1)

    def last_norm(self) -> None:
        return None


class SplitBlock(Activated):
    """Version 2 where the shape stays: half of the channels go by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.inner_relu = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)
        self.relu = nn.ReLU()

    def before(self, images: Tensor) -> Tensor:
        # what goes by left a ReLU in the block before
        output: Tensor = self.shuffle(torch.cat(self.halves(images), dim=1))
        return output

    def forward(self, images: Tensor) -> Tensor:
        kept, taken = self.halves(images)
        output: Tensor = self.shuffle(torch.cat((kept, self.relu(taken)), dim=1))
        return output

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The half that goes by, and the other one before its last ReLU."""
        kept, taken = images.chunk(2, dim=1)
        taken = self.inner_relu(self.bn1(self.conv1(taken)))
        return kept, self.bn3(self.conv3(self.bn2(self.conv2(taken))))

    def last_norm(self) -> None:
        return None


class SplitDown(Activated):
    """Version 2 where the map is halved: two branches give half of the channels each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = convolution(inputs, inputs, 3, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = convolution(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = convolution(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.inner_relu = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)
        self.relu = nn.ReLU()

    def before(self, images: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(images))))
        right = self.inner_relu(self.bn3(self.conv3(images)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        output: Tensor = self.shuffle(torch.cat((left, right), dim=1))
        return output

    def last_norm(self) -> None:
        return None
