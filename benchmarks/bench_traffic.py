"""What a training step computes and moves, method by method: counted, so no GPU is needed.

resnet32x4 to resnet8x4, batches of 64 in bfloat16, nothing compiled. Operations are those of
convolutions and matrix products; memory traffic is what all operators of a step read and write,
each input and output once, as if nothing stayed in a cache or was fused. On a GPU, whose small
kernels are bound by memory, seconds per epoch follow the traffic (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from _timing import Row, table
from bench_step import (
    _BATCH,
    _CLASSES,
    _IMAGES,
    _RECIPE,
    _SHAPE,
    _block_kd,
    _images,
    _network,
    _task,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdsteps.data.images import ImageBatch, Views
from kdsteps.methods.base import Method
from kdsteps.models import Chain
from kdsteps.models.chain import HEAD
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.study import registry
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.loop import Fit

_CACHED = ("labels", "kd", "block_kd")
_LAYERS = ("layer3.1", "layer3.2", "layer3.3")  # of highest quality in the trained teacher
_METHODS = ("kd with the teacher on the fly", "simkd", "reviewkd", "feature_only")
_AGAINST = "kd, cached logits"


@dataclass(frozen=True)
class Cost:
    """Of a training step, per image: operations (two for a multiply-add) and bytes moved."""

    operations: float
    moved: float


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = tree_leaves((args, kwargs, result))
            self.moved += sum(value.nbytes for value in given if isinstance(value, Tensor))
        return result


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    costs = {method: cost(method) for method in (*_CACHED, *_METHODS)}
    reference = costs["kd"]
    for method, found in costs.items():
        yield Row(
            f"memory traffic of a step, {method}",
            _AGAINST,
            found.moved / reference.moved,
            f"{found.moved / 2**20:.1f} MiB and {found.operations / 1e9:.2f} GFLOP per image",
            "no target",
            None,
        )


@cache
def cost(method: str) -> Cost:
    """What one step of a method costs."""
    fit = _fit(method)
    fit.method.train()
    batches = fit.split.shuffled(_BATCH, Views(), torch.Generator().manual_seed(0))
    first, second, third, *_ = batches
    fit.take_step(first)  # makes the optimizer's state
    with FlopCounterMode(display=False) as counted:
        fit.take_step(second)
    with Traffic() as traffic:
        fit.take_step(third)
    return Cost(counted.get_total_flops() / _BATCH, traffic.moved / _BATCH)


def _fit(name: str) -> Fit:
    teacher = frozen(_network(32).requires_grad_(False).eval(), _SHAPE)
    method = _block_kd(teacher) if name == "block_kd" else _method(name, teacher)
    given: TeacherOutputs | None = None
    if name in ("kd", "block_kd"):
        given = _Random()
    elif method.wants == "logits":
        given = LiveTeacher(teacher, _BATCH, precision="bfloat16")
    recipe = _RECIPE.model_copy(update={"precision": "bfloat16"})
    part = _images(torch.channels_last)
    return Fit(method, part, recipe, seed=0, validate=dict, teacher=given)


def _method(name: str, teacher: Chain) -> Method:
    student = _network(8)
    plan: dict[str, object] | None = None
    if name == "feature_only":
        both = (teacher, student, _SHAPE)
        pairs = plan_pairs(*both, student_layers=None, teacher_layers=_LAYERS, projector="conv")
        plan = {"pairs": pairs}
    made: Method = registry.load("methods", name.partition(" ")[0])(teacher, student, _task(plan))
    return made


class _Random:
    """Logits of every image, as cached ones are; of few, since looking some up counts as all."""

    waits = False

    def __init__(self) -> None:
        self.rows = torch.randn(_IMAGES, _CLASSES, dtype=torch.float16)

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        return {HEAD: self.rows[drawn.index].float()}


if __name__ == "__main__":
    print(table(rows()))
