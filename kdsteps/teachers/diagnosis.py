"""Statistics of a teacher's predictions that show what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor, nn

CONFIDENCE = 0.95  # of all intervals
UNLIKELY = 1e-3  # a probability below which chance is no explanation
_FEW = 5  # images of a class; with fewer, it may be missed by chance


@dataclass(frozen=True)
class Proportion:
    """A fraction of images with its Wilson interval.

    Attributes:
        value, low, high: Fractions from 0 to 1.
        count: Images that it is a fraction of.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f}%, "
            f"{self.count} images)"
        )


def proportion(right: Tensor) -> Proportion:
    """The fraction of images that are right, from bool (N,), with its Wilson interval.

    Source: Wilson 1927, as in scipy.stats.
    """
    hits, count = int(right.sum()), len(right)
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(hits / count, float(interval.low), float(interval.high), count)


def more_often(right: Tensor, reference: Tensor) -> bool:
    """Whether `right` is true more often than `reference`, both bool (N,), by more than noise.

    Source: McNemar 1947; the exact test on the images on which the two differ.
    """
    gained, lost = int((right & ~reference).sum()), int((reference & ~right).sum())
    if gained <= lost:
        return False
    test = stats.binomtest(gained, gained + lost, alternative="greater")
    return bool(test.pvalue < UNLIKELY)


def by_chance(predicted: Tensor, labels: Tensor, num_classes: int) -> float:
    """The accuracy that the same predictions, (N,), would have if they ignored the images.

    With one class predicted always, that is the class's fraction of the images.

    Source: Cohen 1960, the agreement that is expected by chance.
    """
    fractions = [
        torch.bincount(values, minlength=num_classes).double() / len(labels)
        for values in (predicted, labels)
    ]
    return float((fractions[0] * fractions[1]).sum())


def class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[int, ...] | None:
    """The class that each output means, if another order explains the predictions.

    The best assignment of outputs to classes is found on every second image of each class and
    tested on the others, so that an order that fits by chance does not pass: on the classes that it
    moves, it must be right more often, by more than noise. Where more than a tenth of the outputs
    are never predicted, as with an untrained classifier, there is no order.

    Source: Kuhn 1955 (the Hungarian method), by scipy.optimize.linear_sum_assignment.

    Args:
        predicted, labels: (N,).
        num_classes: K.

    Returns:
        K class numbers, by output; None if the order as it is explains as much.
    """
    by_class = labels.argsort(stable=True)
    fitted, tested = by_class[0::2], by_class[1::2]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)  # (output, class)
    np.add.at(confusion, (predicted[fitted].numpy(), labels[fitted].numpy()), 1)
    unused = torch.bincount(predicted, minlength=num_classes) == 0
    if 10 * int(unused.sum()) > num_classes:
        return None
    _, found = optimize.linear_sum_assignment(
        confusion + np.eye(num_classes) * 0.5,  # ties, such as classes never predicted, stay
        maximize=True,
    )
    order = torch.from_numpy(found)
    moved = order != torch.arange(num_classes)
    tested = tested[moved[labels[tested]]]
    as_is = predicted[tested] == labels[tested]
    mapped = order[predicted[tested]] == labels[tested]
    if not len(tested) or not more_often(mapped, as_is):
        return None
    return tuple(order.tolist())


def missing_classes(logits: Tensor, labels: Tensor) -> list[int]:
    """Classes that a network does not know: never among its two most probable ones.

    Only classes with enough images count: with the accuracy of the others, some image of them
    would be right.

    Args:
        logits: (N, K).
        labels: (N,).
    """
    num_classes = logits.shape[1]
    if num_classes < 3:
        return []
    images = torch.bincount(labels, minlength=num_classes)
    named = torch.bincount(logits.topk(2, dim=1).indices.flatten(), minlength=num_classes)
    missing = (named == 0) & (images >= _FEW)
    known = ~missing[labels]
    right = float((logits.argmax(dim=1) == labels)[known].double().mean()) if known.any() else 0.0
    unlikely = (1 - right) ** images.double() < UNLIKELY / num_classes
    found: list[int] = (missing & unlikely).nonzero().flatten().tolist()
    return found


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood, from 0.01 to 100.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Args:
        logits: (N, K).
        labels: (N,).
    """
    scores = logits.double()

    def loss(exponent: float) -> float:
        return nn.functional.cross_entropy(scores / 10**exponent, labels).item()

    found = optimize.minimize_scalar(loss, bounds=(-2, 2), method="bounded")
    return float(10**found.x)


def separation(logits: Tensor) -> float:
    """The median over images of the difference between the two largest logits, (N, K)."""
    top = logits.topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).median())
