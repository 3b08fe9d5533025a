"""Check on the validation images whether a teacher is good enough to learn from.

With the common faults of a third-party teacher, such as another normalization or another class
order, a network still runs but its predictions are wrong. So the predictions are checked: accuracy
against chance and the expected accuracy, a class order that explains the errors, and calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor, nn

CONFIDENCE = 0.95  # of all intervals
CONFIDENT = 0.9  # a probability from which on an error is called confident
SCALES = (0.2, 5.0)  # temperatures outside of these mean that logits are scaled
FEW_ERRORS = 5  # with fewer, the right scale of logits is unknown: without any, larger is better
CLEARLY_BETTER = 0.1  # of accuracy, by which an input variant or class order has to win


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
            f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f} %, "
            f"{self.count} images)"
        )


@dataclass(frozen=True)
class TeacherCheck:
    """The result of checking a teacher on the validation images.

    Attributes:
        accuracy: Of its predictions.
        chance: Accuracy of always predicting the most frequent class.
        order: For each output of the teacher, the class it means, if another order than the
            data set's explains its predictions; None otherwise.
        temperature: The one at which its probabilities fit best; 1 means calibrated.
        confident_errors: Fraction of images that it gets wrong with a probability above
            `CONFIDENT`.
        problems: Reasons not to learn from it, each one sentence.
        warnings: What the user should know, each one sentence.
    """

    accuracy: Proportion
    chance: float
    order: tuple[int, ...] | None
    temperature: float
    confident_errors: float
    problems: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity, or None."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


def check_teacher(
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    expected_accuracy: float | None = None,
    variants: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> TeacherCheck:
    """Check a teacher by its predictions for the validation images.

    Args:
        logits: (N, K).
        labels: (N,).
        class_names: K names.
        expected_accuracy: The accuracy that it is known to reach, from 0 to 1.
        variants: Logits and labels of some images that were shown differently, by what was done to
            them, such as "channels in the order blue, green, red".

    Raises:
        ValueError: There are no images, or the shapes do not fit.
    """
    if not len(labels) or logits.shape != (len(labels), len(class_names)):
        raise ValueError(f"logits {tuple(logits.shape)} for {len(labels)} labels")
    if not bool(logits.isfinite().all()):
        problem = "its logits contain NaN or infinity; check its weights and its normalization"
        nothing = Proportion(0.0, 0.0, 0.0, len(labels))
        return TeacherCheck(nothing, 0.0, None, 1.0, 0.0, (problem,))
    right = logits.argmax(dim=1) == labels
    accuracy = proportion(int(right.sum()), len(labels))
    counts = torch.bincount(labels, minlength=len(class_names))
    chance = float(counts.max() / len(labels))
    order = class_order(logits, labels)
    temperature = best_temperature(logits, labels)
    confidence = logits.double().softmax(dim=1).max(dim=1).values
    confident = float((~right & (confidence > CONFIDENT)).double().mean())
    problems, warnings = [], []
    explained = _explanations(accuracy, chance, order, class_names, variants or {})
    if explained:
        problems.append(f"its validation accuracy is {accuracy}, which is explained by {explained}")
    elif accuracy.low <= chance:
        problems.append(
            f"its validation accuracy is {accuracy}, which is not above chance "
            f"({100 * chance:.1f} %); train it longer, or check its normalization, class order and "
            "weights"
        )
    elif expected_accuracy is not None and accuracy.high < expected_accuracy:
        problems.append(
            f"its validation accuracy is {accuracy} and expected_accuracy is "
            f"{100 * expected_accuracy:.1f} %; check its normalization, class order and weights"
        )
    too_small = temperature < SCALES[0] and int((~right).sum()) >= FEW_ERRORS
    if not problems and (too_small or temperature > SCALES[1]):
        warnings.append(
            f"its logits are {temperature:.1f} times as large as its accuracy supports; a "
            "distillation temperature is in units of them, so scale it likewise"
        )
    return TeacherCheck(
        accuracy, chance, order, temperature, confident, tuple(problems), tuple(warnings)
    )


def proportion(successes: int, count: int) -> Proportion:
    """A fraction with its Wilson interval.

    Source: Wilson 1927, as in scipy.stats.
    """
    interval = stats.binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return Proportion(successes / count, float(interval.low), float(interval.high), count)


def class_order(logits: Tensor, labels: Tensor) -> tuple[int, ...] | None:
    """The class that each output means, if another order explains the predictions.

    The best assignment of outputs to classes is found on every second image of each class and
    tested on the others, so that an order that fits by chance does not pass. It has to beat the
    order as it is by `CLEARLY_BETTER`, and beyond the intervals of both.

    Source: Kuhn 1955 (the Hungarian method), by scipy.optimize.linear_sum_assignment.

    Returns:
        K class numbers, by output; None if the order as it is explains as much.
    """
    predicted, truth = logits.argmax(dim=1).numpy(), labels.numpy()
    by_class = np.argsort(truth, kind="stable")
    fitted, held_out = by_class[0::2], by_class[1::2]
    if not len(held_out):
        return None
    size = logits.shape[1]
    confusion = np.zeros((size, size), dtype=np.int64)  # (output, class)
    np.add.at(confusion, (predicted[fitted], truth[fitted]), 1)
    _, order = optimize.linear_sum_assignment(
        confusion + np.eye(size) * 0.5,  # ties, such as classes never predicted, stay as they are
        maximize=True,
    )
    as_is = proportion(int((predicted[held_out] == truth[held_out]).sum()), len(held_out))
    mapped = order[predicted[held_out]]
    other = proportion(int((mapped == truth[held_out]).sum()), len(held_out))
    better = other.low > as_is.high and other.value > as_is.value + CLEARLY_BETTER
    return tuple(int(number) for number in order) if better else None


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood, from 0.01 to 100.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    scores = logits.double()

    def loss(exponent: float) -> float:
        return nn.functional.cross_entropy(scores / 10**exponent, labels).item()

    found = optimize.minimize_scalar(loss, bounds=(-2, 2), method="bounded")
    return float(10**found.x)


def _explanations(
    accuracy: Proportion,
    chance: float,
    order: Sequence[int] | None,
    class_names: Sequence[str],
    variants: Mapping[str, tuple[Tensor, Tensor]],
) -> str:
    """Everything that would make the teacher clearly better, best first; empty if nothing would.

    With few classes, a wrong normalization can look like another class order, so all are named.
    """
    found = []
    for what, (logits, labels) in variants.items():
        right = int((logits.argmax(dim=1) == labels).sum())
        reached = proportion(right, len(labels))
        better = reached.low > accuracy.high and reached.value > accuracy.value + CLEARLY_BETTER
        if better and reached.low > chance:
            found.append((reached.value, f"{what} ({100 * reached.value:.1f} %)"))
    found.sort(reverse=True)
    explained = [what for _, what in found[:2]]
    if order is not None:
        explained.append(_order_explanation(order, class_names))
    return ", or by ".join(explained)


def _order_explanation(order: Sequence[int], class_names: Sequence[str]) -> str:
    moved = [number for number, target in enumerate(order) if number != target]
    shown = ", ".join(f"{class_names[n]} means {class_names[order[n]]}" for n in moved[:5])
    more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
    names = [class_names[target] for target in order]
    right = f"`classes: [{', '.join(names)}]`" if len(names) <= 20 else "its order as `classes:`"
    return f"another class order ({shown}{more}): set {right} for the model"
