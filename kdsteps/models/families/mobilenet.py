"""MobileNetV2 for small images: the half-width network of the benchmark and the standard one.

The state-dict keys of both are those of the CIFAR-100 benchmark, for the modules that it has.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdsteps.models.blocks import convolution, draw_weights, pooled
from kdsteps.models.chain import BlockChain
from kdsteps.models.image_size import ImageSize, height_width

LAST_WIDTH = 1280


class Stage(NamedTuple):
    """Blocks of one width."""

    expansion: int
    width: int
    repeat: int
    stride: int


STANDARD = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)

# before each stride, and after the last block
CUTS = ("blocks.1.1", "blocks.2.2", "blocks.4.2", "blocks.6.0")


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    form: Literal["benchmark", "standard"] = "benchmark",
    width: PositiveFloat = 0.5,
) -> MobileNetV2:
    """A MobileNetV2 for images of any size.

    Args:
        form: `benchmark` has a stem of stride 2, no stride in stage 1, plain ReLUs and a first
            block that expands; `standard` follows the paper, with a stem of stride 1 up to 32
            pixels.
        width: Times the paper's channels; at 1 the paper's own.

    Source: Sandler et al. 2018, arXiv:1801.04381, table 2. The benchmark form is that of
    megvii-research/mdistiller at width 0.5; the stem of the standard form that of Cooper et al.
    2025, arXiv:2511.14981, at width 1.
    """
    if form == "benchmark":
        stages = tuple(s._replace(width=max(1, int(s.width * width))) for s in STANDARD)
        stages = (stages[0], stages[1]._replace(stride=1), *stages[2:])
        stem = Stage(1, max(1, int(32 * width)), 1, stride=2)
        return MobileNetV2(num_classes, in_channels, stem, stages, LAST_WIDTH, nn.ReLU, expand=True)
    stages = tuple(s._replace(width=eights(s.width * width)) for s in STANDARD)
    large = image_size is not None and min(height_width(image_size)) > 32
    stem = Stage(1, eights(32 * width), 1, stride=2 if large else 1)
    last_width = eights(LAST_WIDTH * max(1.0, width))
    return MobileNetV2(num_classes, in_channels, stem, stages, last_width, nn.ReLU6, expand=False)


class MobileNetV2(BlockChain):
    """Layers: `stem`, `blocks.0.0` … `blocks.6.0`, `conv2`, `pool`.

    A block ends without ReLU. The default cuts are before each stride and after the last block.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stem: Stage,
        stages: tuple[Stage, ...],
        last_width: int,
        relu: type[nn.Module],
        *,
        expand: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            convolution(in_channels, stem.width, 3, stem.stride), nn.BatchNorm2d(stem.width), relu()
        )
        blocks: dict[str, nn.Module] = {"stem": self.conv1}
        self.blocks = nn.ModuleList()
        inputs = stem.width
        for number, (expansion, width, repeat, first_stride) in enumerate(stages):
            stage = nn.Sequential()
            for index in range(repeat):
                stride = first_stride if index == 0 else 1
                inner = inputs * expansion
                expanding = expand or expansion > 1
                stage.append(InvertedResidual(inputs, inner, width, stride, relu, expanding))
                inputs = width
                blocks[f"blocks.{number}.{index}"] = stage[index]
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(
            convolution(inputs, last_width, 1), nn.BatchNorm2d(last_width), relu()
        )
        self.classifier = nn.Sequential(nn.Linear(last_width, num_classes))
        blocks |= {"conv2": self.conv2, "pool": pooled(), "head": self.classifier}
        self.line_up(blocks, stages=CUTS)
        draw_weights(self, linear_std=0.01)


class InvertedResidual(nn.Module):
    """Widen, filter each channel separately, narrow again; added to the input if shapes agree."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int,
        relu: type[nn.Module],
        expanding: bool,
    ) -> None:
        super().__init__()
        first = (convolution(inputs, inner, 1), nn.BatchNorm2d(inner), relu(inplace=True))
        self.conv = nn.Sequential(
            *(first if expanding else ()),
            convolution(inner, inner, 3, stride, groups=inner),
            nn.BatchNorm2d(inner),
            relu(inplace=True),
            convolution(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        branch = self.conv(images)
        output: Tensor = images + branch if self.residual else branch
        return output


def eights(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8."""
    return max(8, round(channels / 8) * 8)
