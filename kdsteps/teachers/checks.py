"""Check on the validation images whether a teacher is good enough to learn from.

With the common faults of a third-party teacher, such as another normalization or another class
order, a network still runs but its predictions are wrong. So the predictions are checked: accuracy
against chance and the expected accuracy, classes that are never predicted, a class order or another
form of the images that explains the errors, and calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from kdsteps.teachers.diagnosis import (
    Proportion,
    best_temperature,
    by_chance,
    class_order,
    missing_classes,
    proportion,
    separation,
)
from kdsteps.teachers.variants import (
    Better,
    Predicted,
    Reordered,
    better_forms,
    reordered_form,
)

CONFIDENT = 0.9  # a probability from which on an error is called confident
_SMALL, _LARGE = 0.1, 4.0  # best temperatures beyond which logits are scaled
_LARGE_APART = 2.5  # likewise, if the two largest logits are also far apart
_APART, _SEPARATED = 15.0, 50.0  # differences of logits that are far, and that are too far
_NEAR = 0.05  # of the way from chance to perfect: an accuracy below it is near chance
_FEW_ERRORS = 5  # with fewer, larger logits always fit better, so none are too small
_CLEARLY = 0.1  # of accuracy: a form of the images that is so much better stops the study
_SUM = 1e-3  # how near to 1 a sum of probabilities is
_CHANGED, _FEW_CHANGES = 0.01, 2  # predictions that rounding may change: a fraction, and a number
_CENTER = "subtract the mean of each image's logits in the network, which changes no probability"
_ADVICE = "check its weights, normalization, image size and class order"
_SHOWN, _LISTED = 5, 20  # classes that a message names, and that a list in it has at most


@dataclass(frozen=True)
class TeacherCheck:
    """The result of checking a teacher on the validation images.

    Attributes:
        accuracy: Of its predictions; None, as the next ones, without images or finite logits.
        chance: Accuracy of always predicting the most frequent class.
        classes: What to set as the model's `classes`, if another order of its outputs explains
            its predictions; None otherwise.
        temperature: The one at which its probabilities fit best; 1 means calibrated.
        confident_errors: Fraction of images that it gets wrong with a probability above
            `CONFIDENT`.
        problems: Reasons not to learn from it, each one sentence.
        warnings: What the user should know, each one sentence.
    """

    accuracy: Proportion | None = None
    chance: float | None = None
    classes: tuple[str, ...] | None = None
    temperature: float | None = None
    confident_errors: float | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_teacher(
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    outputs: Sequence[str] | None = None,
    expected_accuracy: float | None = None,
    forms: Mapping[str, Predicted] | None = None,
) -> TeacherCheck:
    """Check a teacher by its predictions for the validation images.

    Args:
        logits: (N, K).
        labels: (N,).
        class_names: K names.
        outputs: The model's `classes`, at least K names; None: `class_names`.
        expected_accuracy: The accuracy that it is known to reach, from 0 to 1.
        forms: What it predicts for images in other forms, by what to set for each form.

    Raises:
        ValueError: There are no images, or the shapes do not fit.
    """
    if not len(labels) or logits.shape != (len(labels), len(class_names)):
        raise ValueError(f"logits {tuple(logits.shape)} for {len(labels)} labels")
    chance = int(torch.bincount(labels).max()) / len(labels)
    if not bool(logits.isfinite().all()):
        problem = "its logits contain NaN or infinity; check its weights and its normalization"
        return TeacherCheck(chance=chance, problems=(problem,))
    predicted = logits.argmax(dim=1)
    right = predicted == labels
    accuracy = proportion(right)
    ignorant = by_chance(predicted, labels, len(class_names))
    unknown = [class_names[number] for number in missing_classes(logits, labels)]
    guesses = _near_chance(accuracy, ignorant)
    fault = guesses or _unknown(unknown, len(class_names)) or _below(accuracy, expected_accuracy)
    order = class_order(predicted, labels, len(class_names))
    better = better_forms(predicted, labels, forms or {}, doubtful=bool(fault or order))
    causes = {_form_cause(form, len(labels)): form.accuracy for form in better}
    found_order = None
    if order is not None:
        right_then = torch.tensor(order)[predicted] == labels
        found_order = Reordered("", order, float(right_then.double().mean()), len(labels))
    elif guesses and not better:
        found_order = reordered_form(labels, forms or {}, len(class_names))
    classes = None
    if found_order is not None:
        meant = {class_names[n]: class_names[to] for n, to in enumerate(found_order.order)}
        classes = tuple(meant.get(name, name) for name in outputs or class_names)
        causes[_order_cause(found_order, meant, classes, len(labels))] = found_order.accuracy
    best = max(causes.values(), default=0.0)
    likely = " or ".join(cause for cause, value in causes.items() if value >= best - _CLEARLY)
    stops = bool(fault or found_order or best >= accuracy.value + _CLEARLY)
    found = [f"its validation accuracy is {accuracy}, {f'but {likely}' if likely else fault}"]
    unsuited = _unsuited(logits)
    temperature = best_temperature(logits, labels)
    scale = [] if stops or unsuited else _scale(logits, temperature, int((~right).sum()))
    confidence = logits.double().softmax(dim=1).max(dim=1).values
    return TeacherCheck(
        accuracy,
        chance,
        classes,
        temperature,
        confident_errors=float((~right & (confidence > CONFIDENT)).double().mean()),
        problems=(*unsuited, *(found if stops else ())),
        warnings=(*(found if likely and not stops else ()), *scale),
    )


def no_classifier(header: Mapping[str, Any], num_classes: int) -> str | None:
    """What is missing in a teacher that is used as it is and whose classifier is new, or None.

    Args:
        header: Of its checkpoint.
        num_classes: Of the study.
    """
    if not (random := header.get("untrained")):
        return None
    options = header["model"]["options"]
    weights = options.get("checkpoint") or options.get("name")
    return (
        f"{weights} has no classifier for {num_classes} classes, so {', '.join(random)} are random"
    )


def with_classifier(num_classes: int) -> str:
    """What to do about a teacher without a classifier."""
    return (
        f"set epochs above 0, use weights for {num_classes} classes, name all classes of these "
        "weights in `classes`, or use only methods that do not need the teacher's logits"
    )


def _unsuited(logits: Tensor) -> list[str]:
    """Why outputs cannot serve as logits although the predictions are right."""
    sums = logits.double().sum(dim=1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < _SUM).all()):
        return [
            "its outputs are probabilities and not logits: none is negative, and those of an image "
            "sum to 1; leave out the softmax at its end"
        ]
    stored = logits.to(torch.float16)  # as students see them, cached or not
    if not bool(stored.isfinite().all()):
        return [
            f"its logits reach {float(logits.abs().max()):.3g}, and 16 bits, with which they are "
            f"stored, end at 65504; {_CENTER}"
        ]
    changed = int((stored.argmax(dim=1) != logits.argmax(dim=1)).sum())
    if changed >= _FEW_CHANGES and changed > _CHANGED * len(logits):
        return [
            f"its logits reach {float(logits.abs().max()):.3g}, so that rounding them to the 16 "
            f"bits with which they are stored changes the predicted class of {changed} of "
            f"{len(logits)} images; {_CENTER}"
        ]
    return []


def _near_chance(accuracy: Proportion, ignorant: float) -> str | None:
    """A fault of a teacher that is about as accurate as if it ignored the images."""
    if accuracy.low > ignorant and accuracy.value >= ignorant + _NEAR * (1 - ignorant):
        return None
    return f"which is near chance ({100 * ignorant:.1f}%); train it longer, or {_ADVICE}"


def _unknown(names: Sequence[str], num_classes: int) -> str | None:
    """A fault of a teacher that does not know some classes."""
    if not names:
        return None
    return (
        f"and it never predicts {len(names)} of {num_classes} classes ({_shown(names)}), as if it "
        "had not been trained on them; train it on all classes, or leave these out of the data set"
    )


def _below(accuracy: Proportion, expected: float | None) -> str | None:
    """A fault of a teacher that is less accurate than it is known to be."""
    if expected is None or accuracy.high >= expected:
        return None
    return f"which is below expected_accuracy ({100 * expected:.1f}%); {_ADVICE}"


def _form_cause(form: Better, num_images: int) -> str:
    """What another form of the images would reach, and how to set it."""
    return f"{_reached(form, num_images)} with {form.form}"


def _reached(form: Better | Reordered, num_images: int) -> str:
    counted = f" (of {form.count} images)" if form.count < num_images else ""
    return f"{100 * form.accuracy:.1f}%{counted}"


def _order_cause(
    found: Reordered, meant: Mapping[str, str], classes: Sequence[str], num_images: int
) -> str:
    """What another class order would reach, maybe in another form, and how to set it."""
    also = f" with {found.form} and" if found.form else ""
    moved = [f"{name} means {target}" for name, target in meant.items() if name != target]
    named = f"`classes: {as_yaml(classes)}`" if len(classes) <= _LISTED else "`classes` as logged"
    reached = _reached(found, num_images)
    return f"{reached}{also} in another class order, {named} ({_shown(moved)})"


def as_yaml(names: Sequence[str]) -> str:
    """A list for params.yaml, on one line."""
    text: str = yaml.safe_dump(
        list(names), default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return text.strip()


def _scale(logits: Tensor, temperature: float, num_errors: int) -> list[str]:
    """A warning about logits that are much too large or too small.

    An overfitted teacher has a best temperature of 2 to 3 as well, but not so large differences.
    """
    apart = separation(logits)
    multiply = f"multiply the distillation temperature by {temperature:.2g}"
    size = f"its logits are {temperature:.2g} times as large as its accuracy supports"
    large = temperature > _LARGE or (temperature > _LARGE_APART and apart > _APART)
    if large and num_errors:
        return [f"{size}: they are scaled, or it was trained on other images; {multiply}"]
    if temperature < _SMALL and num_errors >= _FEW_ERRORS:
        return [f"{size}: they are scaled; {multiply}"]
    if apart > _SEPARATED:
        return [
            f"its largest logit is typically {apart:.0f} above the second, so its probabilities "
            "are 0 and 1 at usual temperatures; raise the distillation temperature until they are "
            "not"
        ]
    return []


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
