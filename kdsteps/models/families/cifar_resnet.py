"""Residual networks for small images: three stages of basic blocks.

ResNet-8/14/20/32/44/56/110 are depths of widths (16, 16, 32, 64); the benchmark's 8x4 and 32x4 are
depths 8 and 32 of widths (32, 64, 128, 256). State-dict keys are those of the CIFAR-100 benchmark.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.blocks import Activated, convolution, draw_weights, pooled, projection
from kdsteps.models.chain import BlockChain
from kdsteps.models.families._sizes import Depth, Width
from kdsteps.models.image_size import ImageSize


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    depth: Depth = 20,
    widths: tuple[Width, Width, Width, Width] = (16, 16, 32, 64),
) -> CifarResNet:
    """A residual network for images of any size.

    Args:
        depth: Layers with weights, 6 n + 2 for n blocks a stage.
        widths: Channels of the stem and of the three stages.

    Raises:
        KdstepsError: The depth fits no number of blocks.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2. As in the benchmark, a shortcut that
    changes shape is a 1x1 convolution with batch normalization instead of padding.
    """
    if problem := options_problem(depth=depth):
        raise KdstepsError(f"models: cifar_resnet: {problem}")
    return CifarResNet(num_classes, in_channels, (depth - 2) // 6, tuple(widths))


def options_problem(*, depth: int) -> str | None:
    """What is wrong with the depth."""
    if depth >= 8 and (depth - 2) % 6 == 0:
        return None
    return f"depth is {depth}; it should be 6 n + 2: 8, 14, 20, 32, 56, 110"


class CifarResNet(BlockChain):
    """Layers: `stem`, `layer1.0` … `layer3.<n-1>`, `pool`."""

    def __init__(
        self, num_classes: int, in_channels: int, num_blocks: int, widths: tuple[int, ...]
    ) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = convolution(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        blocks: dict[str, nn.Module] = {"stem": nn.Sequential(self.conv1, self.bn1, nn.ReLU())}
        inputs = stem
        for number, width in enumerate(stages, start=1):
            stage = nn.Sequential()
            for index in range(num_blocks):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(BasicBlock(inputs, width, stride))
                inputs = width
                blocks[f"layer{number}.{index}"] = stage[index]
            self.add_module(f"layer{number}", stage)
        self.fc = nn.Linear(inputs, num_classes)
        blocks |= {"pool": pooled(), "head": self.fc}
        self.line_up(blocks, stages=tuple(f"layer{n}.{num_blocks - 1}" for n in (1, 2, 3)))
        draw_weights(self)


class BasicBlock(Activated):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)
        self.inner_relu = nn.ReLU(inplace=True)
        self.relu = nn.ReLU()

    def before(self, images: Tensor) -> Tensor:
        branch = self.inner_relu(self.bn1(self.conv1(images)))
        output: Tensor = self.bn2(self.conv2(branch)) + self.downsample(images)
        return output

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2
