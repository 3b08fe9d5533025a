"""Checks of methods: numbers of classes, layers named in params.yaml, images of one class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdsteps.errors import KdstepsError, nearest
from kdsteps.methods.base import Batch, Task
from kdsteps.models.chain import Chain
from kdsteps.models.evaluating import evaluating
from kdsteps.models.input_type import zeros_for
from kdsteps.study.joints import thinned


def same_classes(teacher: Chain | None, task: Task, method: str) -> None:
    """Raise KdstepsError for a teacher with other classes if logits are compared class by class.

    Raises:
        KdstepsError: The teacher has not as many outputs as the study has classes.
    """
    if teacher is None:
        return
    count = num_outputs(teacher, task.image_shape)
    if count != task.num_classes:
        raise KdstepsError(
            f"methods.{method}: the teacher has {count} classes and the study has "
            f"{task.num_classes}; among the methods that learn from logits, only uld accepts this"
        )


def single_labels(batch: Batch, method: str) -> Tensor:
    """The labels (N,) of a batch for a loss that is defined for one class for each image.

    Raises:
        KdstepsError: Images were mixed, so that they have fractions of several classes.
    """
    if batch.fractions is not None:
        raise KdstepsError(
            f"methods.{method}: is defined for images of one class, and mixup and cutmix mix "
            "classes; set both to 0 in the method's `distil`, or use kd, lskd or dist"
        )
    return batch.labels


@torch.no_grad()
def num_outputs(chain: Chain, image_shape: tuple[int, int, int]) -> int:
    """The width of a network's output."""
    with evaluating(chain):
        return int(chain(zeros_for(chain, 2, *image_shape)).shape[1])


def layer_of(chain: Chain, name: str | None, default: str, who: str, method: str) -> str:
    """The layer of `chain` that an option names, or `default`.

    Args:
        chain: The network.
        name: The option's value; None where it is not set.
        default: A layer of the chain.
        who: "student" or "teacher", for the message.
        method: Its name, for the message.

    Raises:
        KdstepsError: The network has no such layer.
    """
    if name is None:
        return default
    if name not in chain.layers:
        near = nearest(name, chain.layers)
        raise KdstepsError(f"methods.{method}: the {who} has no layer {name!r}{near}")
    return name


def layer_pairs(
    student: Chain,
    teacher: Chain,
    student_layers: Sequence[str] | None,
    teacher_layers: Sequence[str] | None,
    method: str,
) -> list[tuple[str, str]]:
    """Pair student layers with the teacher layers they learn from, in forward order.

    A side without named layers uses its stages. The longer of two lists of stages is thinned out
    evenly; where the other side is named, stages are thinned out or repeated to match it. The last
    layers are always paired.

    Raises:
        KdstepsError: A named layer does not exist, or both lists are named and differ in length.
    """
    ours = named_layers(student, student_layers, "student", method)
    theirs = named_layers(teacher, teacher_layers, "teacher", method)
    if student_layers and teacher_layers and len(ours) != len(theirs):
        raise KdstepsError(
            f"methods.{method}: student_layers has {len(ours)} names and teacher_layers "
            f"{len(theirs)}; they are paired in order, so both need the same number"
        )
    named = [side for side, names in ((ours, student_layers), (theirs, teacher_layers)) if names]
    count = len(named[0]) if named else min(len(ours), len(theirs))
    return list(zip(thinned(ours, count), thinned(theirs, count), strict=True))


def named_layers(chain: Chain, names: Sequence[str] | None, who: str, method: str) -> list[str]:
    """The layers that an option lists, checked; the stages where it is not set.

    Raises:
        KdstepsError: The list is empty or names a layer that does not exist.
    """
    if names is None:
        return list(chain.stages)
    if not names:
        raise KdstepsError(f"methods.{method}: {who}_layers is empty; leave it out for the stages")
    return [layer_of(chain, name, name, who, method) for name in names]
