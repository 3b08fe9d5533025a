"""Block-wise logit distillation: the student learns from its own stepping stones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods._checks import same_classes, single_labels
from kdsteps.methods._distances import logit_distance
from kdsteps.methods._tensors import cross_entropy, full_precision
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import HEAD, Chain
from kdsteps.plans.stones import Stones


def weigh_stones(rule: str | tuple[float, ...], count: int) -> list[float]:
    """The weight of each stone, shallow to deep: `halving` is 1/2^(n-i), `equal` is 1, or a list.

    Raises:
        KdstepsError: A list of another length than there are stones.

    Source: arXiv:2411.01547 for halving, from a summary; the others are our options.
    """
    if rule == "halving":
        return [2.0 ** -(count - number) for number in range(1, count + 1)]
    if rule == "equal":
        return [1.0] * count
    if len(rule) != count:
        raise KdstepsError(
            f"methods.block_kd.stone_weights: {len(rule)} weights for {count} stones; "
            f"it should be {count}"
        )
    return [float(weight) for weight in rule]


def options_problem(*, distance: str, dkd_beta: float | None) -> str | None:
    """An option without effect, as `key is value; what would be right`, or None."""
    if dkd_beta is not None and distance != "dkd":
        return f"dkd_beta is {dkd_beta:g}, and distance is {distance!r}; leave it out"
    return None


class BlockKD(Method):
    """Labels, the teacher and the ensemble of stones teach the student and every stone.

    L = alpha L_task + beta L_distill + gamma L_cross (equation 5), where L_task and L_distill sum
    over the student (weight 1) and the stones (their weights), and L_cross pulls the student and
    the stones to the mean of the stones' logits (equation 4). The teacher's blocks inside a stone
    are frozen; gradients pass through them to the connectors and to the student's first blocks.

    The paper fixes none of the options, and `stones_per_step` is ours alone. The stage `build`
    decides where the stones are cut and which connectors they have.

    Both tuned alike, it gained 0.8 points over `kd` in 2,500 steps on a fifth of CIFAR-100; after a
    few hundred steps the two could not be told apart. Of its options, none was better there than
    the default by more than noise, and L_cross could not be seen to help (docs/findings.md).

    Source: Yu et al. 2024, arXiv:2411.01547, equations 2 to 6.
    """

    wants = "blocks"
    plan = "stones"
    capturable = True
    one_class: ClassVar[Mapping[str, str]] = {"distance": "dkd"}
    compares_images: ClassVar[Mapping[str, str]] = {"distance": "dist", "norm": "batch"}

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        alpha: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat = 1.0,
        temperature: PositiveFloat | None = None,
        distance: Literal["kd", "lskd", "dkd", "dist"] = "kd",
        dkd_beta: NonNegativeFloat | None = None,
        stone_weights: Literal["halving", "equal"] | tuple[NonNegativeFloat, ...] = "halving",
        detach_ensemble: bool = True,
        weigh_cross: bool = False,
        cross_student: bool = True,
        norm: Literal["eval", "batch"] = "eval",
        stones_per_step: Literal["all"] | PositiveInt = "all",
    ) -> None:
        """Args:
        alpha: Weight of L_task, the cross-entropy with the labels.
        beta: Weight of L_distill, the distance to the teacher.
        gamma: Weight of L_cross, the distance to the mean of the stones' logits.
        temperature: Of the distance; by default that of its method, for `kd` the benchmark's 4.
        distance: The loss between logits, d^L, by the method that it comes from.
        dkd_beta: Weight of the classes other than the target in the distance `dkd`, whose method
            calls it beta; by default 8.
        stone_weights: Weights of the stones, shallow to deep: `halving` is 1/2^(n-i), `equal` is 1,
            or a list.
        detach_ensemble: Whether the ensemble is a target without gradient.
        weigh_cross: Whether the stone weights also hold in L_cross.
        cross_student: Whether the student takes part in L_cross.
        norm: Mode of the teacher's batch normalization inside stones: `eval`, or `batch` for the
            statistics of the batch.
        stones_per_step: All stones, or this many, drawn at random in each step. Their weights are
            scaled so that the expectation of the weighted sums is the same.
        """
        super().__init__(teacher, student, task)
        if problem := options_problem(distance=distance, dkd_beta=dkd_beta):
            raise KdstepsError(f"methods.block_kd.{problem}")
        same_classes(teacher, task, "block_kd")
        assert teacher is not None and task.plan is not None, "block_kd needs a teacher and a plan"
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.distance = logit_distance(distance, temperature, dkd_beta)
        self.any_images = distance != "dkd"
        self.stones = Stones(teacher, task.plan["stones"], norm=norm)
        self.weights = weigh_stones(stone_weights, len(self.stones.connectors))
        self.detach_ensemble, self.weigh_cross = detach_ensemble, weigh_cross
        self.cross_student = cross_student
        count = len(self.weights)
        self.per_step = count if stones_per_step == "all" else min(stones_per_step, count)
        if self.per_step < count:
            self.capturable = False  # the stones of a step are drawn on the CPU

    @classmethod
    def keeps_teacher(cls, options: Mapping[str, Any]) -> bool:
        return options.get("norm") == "batch"  # batch statistics need its norms

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        traced = self.student.trace(batch.images, self.stones.student_layers)
        drawn = self._drawn()
        stones = self.stones(traced, drawn)
        scale = len(self.weights) / len(drawn)
        weights = [scale * self.weights[number] for number in drawn]
        student, teacher = traced[HEAD], self.teacher_logits(batch)
        labels = batch.labels if self.any_images else single_labels(batch, "block_kd.distance")
        ensemble = _mean(*stones)
        if self.detach_ensemble:
            ensemble = ensemble.detach()

        def task(logits: Tensor) -> Tensor:
            return cross_entropy(logits, batch.targets)

        def distil(logits: Tensor) -> Tensor:
            return self.distance(logits, teacher, labels)

        def cross(logits: Tensor) -> Tensor:
            return self.distance(logits, ensemble, labels)

        cross_weights = weights if self.weigh_cross else [scale] * len(drawn)
        terms = {
            "labels": self.alpha * task(student),
            "teacher": self.beta * distil(student),
            "stones_labels": self.alpha * _sum(map(task, stones), weights),
            "stones_teacher": self.beta * _sum(map(distil, stones), weights),
            "stones_ensemble": self.gamma * _sum(map(cross, stones), cross_weights),
        }
        if self.cross_student:
            terms["ensemble"] = self.gamma * cross(student)
        return terms

    def _drawn(self) -> list[int]:
        """The numbers of the stones of this step, ascending."""
        count = len(self.weights)
        if self.per_step == count:
            return list(range(count))
        return sorted(torch.randperm(count)[: self.per_step].tolist())


@full_precision
def _mean(*logits: Tensor) -> Tensor:
    return torch.stack(logits).mean(dim=0)


def _sum(losses: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    return torch.stack([weight * loss for loss, weight in zip(losses, weights, strict=True)]).sum()
