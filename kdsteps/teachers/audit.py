"""Compare several teachers of the same classes, before a student learns from all of them.

One teacher with another class order, normalization or scale spoils the mean of all, while it may
pass a check of its own. What is far from the other teachers is found by their predictions for the
same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from kdsteps.teachers.combining import standardized

FAR, CLEAR = 0.5, 0.25  # distances of probabilities: reasons to stop, and to warn
FRACTION, MOST = 0.5, 0.8  # of the others' accuracy above chance: below them, stop and warn
LARGE = 4.0  # times as large as the others' logits, from which on a teacher decides the mean
SAME = 0.1  # of the others' variety within a class, below which logits tell only the class


@dataclass(frozen=True)
class TeacherAudit:
    """How one teacher compares with the others, on the same images.

    Attributes:
        accuracy: On the labels; None without labels.
        agreement: Fraction of images for which it predicts the same class as another teacher,
            averaged over the others.
        distance: 0 to 1: how far its mean probabilities of the images of a class are from the
            median of all teachers, averaged over the classes. Two teachers have the same distance.
        scale: Standard deviation of its logits over the classes, divided by the others' median.
        variety: Standard deviation of its standardized logits over the images of a class, divided
            by the others' median.
        problems: Reasons not to learn from it, each one sentence.
        warnings: What the user should know, each one sentence.
    """

    teacher: str
    accuracy: float | None
    agreement: float
    distance: float
    scale: float
    variety: float
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def audit_teachers(
    logits: Mapping[str, Tensor],
    labels: Tensor | None,
    *,
    space: Literal["logits", "standardized"] = "logits",
) -> list[TeacherAudit]:
    """Compare the teachers of a pair.

    Args:
        logits: (N, K) of each teacher, by its name; of the same images.
        labels: (N,); None: images count for the class that most teachers predict.
        space: What will be combined. A scale matters for logits that are not standardized.

    Raises:
        ValueError: There are fewer than two teachers, or shapes differ.
    """
    shapes = {tuple(each.shape) for each in logits.values()}
    if len(logits) < 2 or len(shapes) > 1:
        raise ValueError(f"{len(logits)} teachers with logits {shapes}")
    stacked = torch.stack(list(logits.values())).double()  # (M, N, K)
    finite = [bool(each.isfinite().all()) for each in stacked]
    stacked = stacked.nan_to_num(posinf=0.0, neginf=0.0)
    predicted = stacked.argmax(dim=2)  # (M, N)
    classes = predicted.mode(dim=0).values if labels is None else labels
    accuracies = None if labels is None else (predicted == labels).double().mean(dim=1).tolist()
    chance = int(torch.bincount(classes).max()) / len(classes)
    distances = class_distances(stacked, classes)
    scales = stacked.std(dim=2).mean(dim=1).tolist()
    varieties = [_variety(each, classes) for each in standardized(stacked)]
    found = []
    for number, name in enumerate(logits):
        others = [each for each in range(len(logits)) if each != number]
        same = [float((predicted[number] == predicted[each]).double().mean()) for each in others]
        audit = TeacherAudit(
            name,
            accuracy=None if accuracies is None else accuracies[number],
            agreement=sum(same) / len(same),
            distance=float(distances[number]),
            scale=_ratio(scales, number, others),
            variety=_ratio(varieties, number, others),
        )
        right = None if accuracies is None else median(accuracies[each] for each in others)
        problems, warnings = _judged(audit, right, chance, len(logits), space)
        if not finite[number]:
            problems.insert(0, "its logits contain NaN or infinity")
        given = {"problems": tuple(problems), "warnings": tuple(warnings)}
        found.append(TeacherAudit(**vars(audit) | given))
    return found


def class_distances(logits: Tensor, classes: Tensor) -> Tensor:
    """How far the teachers' mean probabilities for each class are from their median.

    A distance is half the sum of differences over the outputs (total variation, if both are
    probabilities), averaged over the classes that have images.

    Args:
        logits: (M, N, K).
        classes: (N,).

    Returns:
        (M,), from 0 to 1.
    """
    probabilities = logits.softmax(dim=2)
    there = classes.unique()
    means = torch.stack([probabilities[:, classes == each].mean(dim=1) for each in there])
    middle = means.quantile(0.5, dim=1, keepdim=True)  # (classes, 1, K)
    return (means - middle).abs().sum(dim=2).mean(dim=0) / 2


def _variety(logits: Tensor, classes: Tensor) -> float:
    """Standard deviation of logits (N, K) over the images of a class, averaged over classes."""
    spreads = [logits[classes == each].std(dim=0, correction=0).mean() for each in classes.unique()]
    return float(torch.stack(spreads).mean())


def _ratio(values: Sequence[float], number: int, others: Sequence[int]) -> float:
    """A value divided by the median of the others."""
    return values[number] / max(median(values[each] for each in others), 1e-12)


def _judged(
    audit: TeacherAudit, right: float | None, chance: float, num_teachers: int, space: str
) -> tuple[list[str], list[str]]:
    """Problems and warnings of one teacher.

    Args:
        right: The median accuracy of the others.
    """
    problems: list[str] = []
    warnings: list[str] = []
    if audit.accuracy is not None and right is not None:
        above, theirs = audit.accuracy - chance, max(right - chance, 0.0)
        sentence = (
            f"it is right on {100 * audit.accuracy:.1f}% of the training images, the other "
            f"teachers on {100 * right:.1f}%; check its class order, normalization and weights"
        )
        if above < FRACTION * theirs:
            problems.append(sentence)
        elif above < MOST * theirs:
            warnings.append(sentence)
    if num_teachers > 2 and audit.distance > CLEAR:
        (problems if audit.distance > FAR else warnings).append(
            f"its mean probabilities for a class differ from those of the other teachers by "
            f"{audit.distance:.2f} (0: equal, 1: other classes); check its class order"
        )
    if audit.scale > LARGE:
        large = f"its logits are {audit.scale:.3g} times as large as those of the other teachers"
        if space == "logits":
            problems.append(f"{large}, so they decide the mean; set `space: standardized`")
        else:
            warnings.append(f"{large}, which has no effect since they are standardized")
    if audit.variety < SAME:
        problems.append(
            "its logits are nearly the same for all images of a class, so they tell no more than "
            "labels do; check how they were made"
        )
    return problems, warnings
