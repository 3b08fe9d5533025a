"""Wide residual networks: pre-activation blocks, `width` times as wide as those of a plain ResNet.

WRN-16-1/16-2/40-1/40-2 are the depth and width of their names. State-dict keys are those of the
CIFAR-100 benchmark.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.blocks import Preactivated, convolution, draw_weights, pooled
from kdsteps.models.chain import BlockChain
from kdsteps.models.families._sizes import Depth, Width
from kdsteps.models.image_size import ImageSize


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    depth: Depth = 16,
    width: Width = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> WideResNet:
    """A wide residual network for images of any size.

    Args:
        depth: Layers with weights, 6 n + 4 for n blocks a stage.
        width: Times 16, 32 and 64 channels.
        dropout: Fraction of a block's inner features dropped in training.

    Raises:
        KdstepsError: The depth fits no number of blocks.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, section 2.
    """
    if problem := options_problem(depth=depth):
        raise KdstepsError(f"models: wide_resnet: {problem}")
    return WideResNet(num_classes, in_channels, (depth - 4) // 6, width, dropout)


def options_problem(*, depth: int) -> str | None:
    """What is wrong with the depth."""
    if depth >= 10 and (depth - 4) % 6 == 0:
        return None
    return f"depth is {depth}; it should be 6 n + 4: 10, 16, 22, 28, 34, 40"


class WideResNet(BlockChain):
    """Layers: `stem`, `block1.0` … `block3.<n-1>`, `pool`.

    The last batch normalization and ReLU belong to `pool`: a stage ends in a sum, and the next
    block begins with its own norm.
    """

    def __init__(
        self, num_classes: int, in_channels: int, num_blocks: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, 16, 3)
        blocks: dict[str, nn.Module] = {"stem": self.conv1}
        inputs = 16
        for number, outputs in enumerate((16 * width, 32 * width, 64 * width), start=1):
            stage = nn.Sequential()
            for index in range(num_blocks):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(WideBlock(inputs, outputs, stride, dropout))
                inputs = outputs
                blocks[f"block{number}.{index}"] = stage[index]
            self.add_module(f"block{number}", nn.ModuleDict({"layer": stage}))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        blocks |= {"pool": LastNorm(self.bn1), "head": self.fc}
        self.line_up(blocks, stages=tuple(f"block{n}.{num_blocks - 1}" for n in (1, 2, 3)))
        draw_weights(self)
        nn.init.zeros_(self.fc.bias)


class WideBlock(Preactivated):
    """Norm, ReLU and convolution twice, with a shortcut.

    Where the shape changes, the shortcut too starts from the normalized input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.inner_relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3)
        # the benchmark's name for it
        self.convShortcut = (
            None if inputs == outputs and stride == 1 else convolution(inputs, outputs, 1, stride)
        )

    def first_norm(self) -> nn.Module:
        return self.bn1

    def go_on(self, images: Tensor, normed: Tensor) -> Tensor:
        activated = self.relu(normed)
        branch = self.dropout(self.inner_relu(self.bn2(self.conv1(activated))))
        shortcut = images if self.convShortcut is None else self.convShortcut(activated)
        output: Tensor = shortcut + self.conv2(branch)
        return output


class LastNorm(Preactivated):
    """The norm and ReLU that close the last stage, and the average over the map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.relu = nn.ReLU()
        self.pool = pooled()

    def first_norm(self) -> nn.Module:
        return self.norm

    def go_on(self, images: Tensor, normed: Tensor) -> Tensor:
        output: Tensor = self.pool(self.relu(normed))
        return output
