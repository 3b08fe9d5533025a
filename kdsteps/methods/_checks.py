"""Checks of methods: numbers of classes, layers named in params.yaml, images of one class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdsteps.errors import KdstepsError, nearest
from kdsteps.methods.base import Batch, Task
from kdsteps.models.chain import HEAD, Chain
from kdsteps.study.joints import thinned


def same_classes(teacher: Chain | None, task: Task, method: str) -> None:
    """Raise KdstepsError for a teacher with other classes if logits are compared class by class.

    Raises:
        KdstepsError: The width of the teacher's last layer differs from the study's classes.
    """
    count = None if teacher is None else class_count(teacher)
    if count is not None and count != task.num_classes:
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


def class_count(chain: Chain) -> int | None:
    """The number of logits, read from a network's head; None where that is not possible."""
    last = chain.layers[-1] if chain.layers else None
    widths = [
        getattr(module, "out_features", getattr(module, "out_channels", None))
        for module in chain.span(last, HEAD).modules()
    ]
    return next((width for width in reversed(widths) if isinstance(width, int)), None)


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
