"""Stepping stones: a student's first blocks, a connector, a teacher's last blocks.

A plan names the layers where the two networks are cut and joined; `Stones` runs all stones through
the teacher's blocks in one merged pass.

Source: Yu et al. 2024, arXiv:2411.01547, equation 2: N_i = T_c o T_n .. T_i+1 o C_i o S_i .. S_1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.adapters import AdapterKind, adapter
from kdsteps.models.chain import HEAD, Chain
from kdsteps.models.cost import multiply_adds, num_parameters
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes
from kdsteps.study.joints import check_order


def plan_stones(
    teacher: Chain,
    student: Chain,
    image_shape: tuple[int, int, int],
    joints: Sequence[tuple[str, str]],
    connector: AdapterKind,
) -> list[dict[str, Any]]:
    """The blocks and the cost of each stone, checked by a forward pass.

    Args:
        image_shape: (C, H, W).
        joints: (student layer, teacher layer) of each stone, from shallow to deep.
        connector: What joins them.

    Returns:
        One entry per stone: `name`, `student_layer`, `teacher_layer`, their shapes, the blocks of
        either network, `connector` and `why`, trained `parameters` of the connector, and the
        `multiply_adds` of connector and tail for one image.

    Raises:
        KdstepsError: A layer does not exist, the order is not from shallow to deep, or the
            connector cannot join the shapes.
    """
    check_order(teacher, student, joints)
    ours, theirs = feature_shapes(student, image_shape), feature_shapes(teacher, image_shape)
    stones = []
    for number, (student_layer, teacher_layer) in enumerate(joints, start=1):
        source, target = ours[student_layer], theirs[teacher_layer]
        module, why = _connector(source, target, connector)
        _check_forward(module, teacher, source, teacher_layer)
        depth = teacher.layers.index(teacher_layer) + 1
        features = torch.zeros(2, *source.shape)
        stone = nn.Sequential(module, teacher.tail(teacher_layer)).eval()
        stones.append(
            {
                "name": f"N{number}",
                "student_layer": student_layer,
                "teacher_layer": teacher_layer,
                "student_features": source.as_dict(),
                "teacher_features": target.as_dict(),
                "student_shape": list(source.shape),
                "teacher_shape": list(target.shape),
                "student_blocks": list(student.layers[: student.layers.index(student_layer) + 1]),
                "teacher_blocks": [*teacher.layers[depth:], HEAD],
                "connector": connector,
                "why": why,
                "parameters": num_parameters(module),
                "multiply_adds": multiply_adds(stone, features[:1]),
            }
        )
    return stones


class Stones(nn.Module):
    """All stones of one plan: their connectors, and one pass through the frozen teacher's blocks.

    The features of every stone enter the teacher where the stone is cut; from there on they pass
    each block in one batch with the stones that entered before. This is exact, because the
    teacher's batch normalization is in eval mode, so that images do not affect each other.

    With `norm="batch"` the teacher's blocks normalize by the statistics of the stone's own batch
    (on a copy without running statistics, so that the teacher does not change); the stones then
    pass one by one.
    """

    spans: list[nn.Module]

    def __init__(
        self,
        teacher: Chain,
        stones: Sequence[Mapping[str, Any]],
        *,
        norm: Literal["eval", "batch"] = "eval",
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(
            _connector(
                FeatureShape(**stone["student_features"]),
                FeatureShape(**stone["teacher_features"]),
                stone["connector"],
            )[0]
            for stone in stones
        )
        self.student_layers = tuple(stone["student_layer"] for stone in stones)
        cuts = [stone["teacher_layer"] for stone in stones]
        spans = [
            nn.Identity() if start == stop else teacher.span(start, stop)
            for start, stop in pairwise([*cuts, HEAD])
        ]
        self.__dict__["spans"] = spans  # the teacher's blocks: used, not owned
        self.norm = norm
        if norm == "batch":
            self.__dict__["spans"] = [_by_batch(span) for span in spans]

    def forward(
        self, features: Mapping[str, Tensor], entering: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Logits (N, K) of each stone.

        Args:
            features: The student's outputs by layer.
            entering: Numbers of the stones that run, ascending; all when None.
        """
        chosen = list(range(len(self.connectors))) if entering is None else list(entering)
        if self.norm == "batch":
            return [self._alone(features, number) for number in chosen]
        flow: Tensor | None = None
        for number, span in enumerate(self.spans):
            if number in chosen:
                joined = self._joined(features, number)
                flow = joined if flow is None else torch.cat([flow, joined])
            flow = None if flow is None else span(flow)
        assert flow is not None, "at least one stone runs"
        return list(flow.chunk(len(chosen)))

    def _joined(self, features: Mapping[str, Tensor], number: int) -> Tensor:
        output: Tensor = self.connectors[number](features[self.student_layers[number]])
        return output

    def _alone(self, features: Mapping[str, Tensor], number: int) -> Tensor:
        flow = self._joined(features, number)
        for span in self.spans[number:]:
            flow = span(flow)
        return flow


def _connector(
    source: FeatureShape, target: FeatureShape, kind: AdapterKind
) -> tuple[nn.Module, str]:
    if kind == "identity" and source != target:
        raise KdstepsError(
            f"build.connector: identity cannot join {source.shape} to {target.shape}; conv_norm can"
        )
    return adapter(source, target, kind)


@torch.no_grad()
def _check_forward(module: nn.Module, teacher: Chain, source: FeatureShape, layer: str) -> None:
    """Run two empty images through a stone, so that a mismatch fails before training."""
    logits = teacher.eval().tail(layer)(module.eval()(torch.zeros(2, *source.shape)))
    if logits.ndim != 2:
        raise ValueError(f"the stone at {layer!r} returns {tuple(logits.shape)}, not logits")


def _by_batch(span: nn.Module) -> nn.Module:
    """A frozen copy of some of the teacher's blocks that normalizes by each batch's statistics."""
    import copy

    copied = copy.deepcopy(span)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return copied.requires_grad_(False)
