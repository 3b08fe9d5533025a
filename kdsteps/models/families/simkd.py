"""The network that SimKD deploys: a student's front, a projector and a teacher's tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kdsteps.models import architecture, build_model
from kdsteps.models.chain import BlockChain, Chain, Layout, TokenGrid
from kdsteps.models.feature_shapes import FeatureShape
from kdsteps.models.image_size import ImageSize


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    student: dict[str, Any],
    teacher: dict[str, Any],
    student_layer: str,
    teacher_layer: str,
    source: dict[str, Any],
    target: dict[str, Any],
    factor: PositiveInt = 2,
    rectified: bool = True,
) -> Reused:
    """The network of a checkpoint that the method `simkd` wrote, with fresh weights.

    Args:
        student: Its entry {family, options}.
        teacher: Its entry.
        student_layer: Where the student is cut.
        teacher_layer: Where the teacher is cut.
        source: The feature shape of `student_layer`, as a dictionary.
        target: That of `teacher_layer`.
        factor: How many times narrower than the teacher the projector is inside.
        rectified: Whether the projector ends in a ReLU.
    """
    student_chain, teacher_chain = (
        build_model(
            entry["family"],
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=entry.get("image_size") or image_size,
            **architecture(entry["options"]),
        )
        for entry in (student, teacher)
    )
    shapes = FeatureShape(**source), FeatureShape(**target)
    projector = Projector(*shapes, factor, rectified=rectified)
    return Reused(student_chain, student_layer, projector, teacher_chain.eval(), teacher_layer)


class Reused(BlockChain):
    """Layers: `front`, the student up to its cut, and `projector`; `head` is the teacher's tail.

    It owns, and saves, only those parts. The tail stays in eval mode, as the teacher it is shared
    with; the student follows the mode of this network.
    """

    def __init__(
        self,
        student: Chain,
        student_layer: str,
        projector: nn.Module,
        teacher: Chain,
        teacher_layer: str,
    ) -> None:
        super().__init__()
        self._student, self._teacher = (student,), (teacher,)  # in tuples: not owned
        self._layouts: dict[str, Layout] = {
            "front": student.layout(student_layer),
            "projector": teacher.layout(teacher_layer),
        }
        self._grids = {
            "front": student.token_grid(student_layer),
            "projector": teacher.token_grid(teacher_layer),
        }
        was_training = student.training
        student.eval()  # a cut network names its parts by its mode, a checkpoint by this one
        self.front_part = student.front(student_layer)
        student.train(was_training)
        self.projector = projector
        self.tail_part = teacher.tail(teacher_layer)
        blocks = {"front": self.front_part, "projector": projector, "head": self.tail_part}
        self.line_up(blocks, stages=("front", "projector"))

    def layout(self, layer: str) -> Layout:
        self._check_layers({layer})
        return self._layouts[layer]

    def token_grid(self, layer: str) -> TokenGrid | None:
        self._check_layers({layer})
        return self._grids[layer]

    def train(self, mode: bool = True) -> Reused:
        super().train(mode)
        self._student[0].train(mode)
        self.tail_part.eval()
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Reused:
        """Move what is not owned as well: a cut network's parts read constants there."""
        for chain in (*self._student, *self._teacher):
            chain._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Projector(nn.Module):
    """Turn a student's last map into what a teacher's tail takes.

    A bottleneck of 1x1, 3x3 and 1x1 convolutions with BN and ReLU, at the smaller of the two sizes;
    the tail's own size is reached by repeating positions (nearest neighbor), which leaves a global
    average as it is wherever the size is a multiple.

    Source: Chen et al. 2022, arXiv:2203.14001, and its official code. Other layouts than maps, and
    leaving out the last ReLU for teachers whose last map has negative values, are ours.
    """

    def __init__(
        self, source: FeatureShape, target: FeatureShape, factor: int, *, rectified: bool
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.size = (min(source.height, target.height), min(source.width, target.width))
        width = max(1, target.channels // factor)
        self.body = nn.Sequential(
            nn.Conv2d(source.channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, target.channels, 1, bias=False),
            nn.BatchNorm2d(target.channels),
            nn.ReLU() if rectified else nn.Identity(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """The tail's input from the output of the student's layer."""
        return self.lift(self.project(features))

    def project(self, features: Tensor) -> Tensor:
        """The map that learns from the teacher's, with its channels: (N, C, H, W), smaller size."""
        maps = self.source.to_map(features)
        if maps.shape[2:] != self.size:
            maps = F.adaptive_avg_pool2d(maps, self.size)
        output: Tensor = self.body(maps)
        return output

    def lift(self, maps: Tensor) -> Tensor:
        """A projected map in the size and layout of the teacher's layer."""
        size = self.target.size
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size=size, mode="nearest")
        return self.target.from_map(maps)
