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
from kdsteps.teachers.variants import Better, Correct, better_forms

CONFIDENT = 0.9  # a probability from which on an error is called confident
_MANY = 0.25  # of the images with confident errors
SCALES = (0.1, 3.0)  # best temperatures outside of these mean that logits are scaled
_SEPARATED = 50.0  # between the two largest logits: no usual temperature brings them together
_NEAR = 0.05  # of the way from chance to perfect: an accuracy below it is near chance
_FEW_ERRORS = 5  # with fewer, larger logits always fit better, so none are too small
_CLEARLY = 0.1  # of accuracy: a form of the images that is so much better stops the study
_ADVICE = "check its weights, normalization and class order"
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
    forms: Mapping[str, Correct] | None = None,
) -> TeacherCheck:
    """Check a teacher by its predictions for the validation images.

    Args:
        logits: (N, K).
        labels: (N,).
        class_names: K names.
        outputs: The model's `classes`, at least K names; None: `class_names`.
        expected_accuracy: The accuracy that it is known to reach, from 0 to 1.
        forms: Which images it gets right in other forms, by what to set for each form.

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
    start = f"its validation accuracy is {accuracy}"
    order = class_order(predicted, labels, len(class_names))
    unknown = [class_names[number] for number in missing_classes(logits, labels)]
    ignorant = by_chance(predicted, labels, len(class_names))
    near_chance = accuracy.low <= ignorant or accuracy.value < ignorant + _NEAR * (1 - ignorant)
    below = expected_accuracy is not None and accuracy.high < expected_accuracy
    doubtful = bool(order or unknown or near_chance or below)
    better = better_forms(right, forms or {}, doubtful=doubtful)
    causes = {_form_cause(form, len(labels)): form.accuracy for form in better}
    classes = None
    if order is not None:
        meant = {class_names[n]: class_names[target] for n, target in enumerate(order)}
        classes = tuple(meant.get(name, name) for name in outputs or class_names)
        reached = proportion(torch.tensor(order)[predicted] == labels).value
        causes[_order_cause(reached, meant, classes)] = reached
    best = max(causes.values(), default=0.0)
    named = [cause for cause, reached in causes.items() if reached >= best - _CLEARLY]
    problems, warnings = [], []
    if causes and (doubtful or best >= accuracy.value + _CLEARLY):
        problems.append(f"{start}, but {' or '.join(named)}")
    elif near_chance:
        chance_level = f"near chance ({100 * ignorant:.1f}%)"
        problems.append(f"{start}, which is {chance_level}; {_ADVICE}")
    elif unknown:
        problems.append(
            f"{start}, and it never predicts {len(unknown)} of {len(class_names)} classes "
            f"({_shown(unknown)}), as if it had not been trained on them; train it on all classes, "
            "or leave these out of the data set"
        )
    elif below:
        expected = f"{100 * (expected_accuracy or 0):.1f}%"
        problems.append(f"{start}, which is below expected_accuracy ({expected}); {_ADVICE}")
    elif causes:
        warnings.append(f"{start}, but {' or '.join(named)}")
    temperature = best_temperature(logits, labels)
    confidence = logits.double().softmax(dim=1).max(dim=1).values
    confident_errors = float((~right & (confidence > CONFIDENT)).double().mean())
    if not problems:
        warnings += _overconfident(confident_errors)
        warnings += _scale(logits, temperature, int((~right).sum()))
    return TeacherCheck(
        accuracy,
        chance,
        classes,
        temperature,
        confident_errors,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _form_cause(form: Better, num_images: int) -> str:
    """What another form of the images would reach, and how to set it."""
    counted = f" (of {form.count} images)" if form.count < num_images else ""
    return f"{100 * form.accuracy:.1f}%{counted} with {form.form}"


def _order_cause(reached: float, meant: Mapping[str, str], classes: Sequence[str]) -> str:
    """What another class order would reach, and how to set it."""
    moved = [f"{name} means {target}" for name, target in meant.items() if name != target]
    named = f"`classes: {as_yaml(classes)}`" if len(classes) <= _LISTED else "`classes` as logged"
    return f"{100 * reached:.1f}% in another class order, {named} ({_shown(moved)})"


def as_yaml(names: Sequence[str]) -> str:
    """A list for params.yaml, on one line."""
    text: str = yaml.safe_dump(
        list(names), default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return text.strip()


def _overconfident(confident_errors: float) -> list[str]:
    """A warning about many errors with high probabilities."""
    if confident_errors < _MANY:
        return []
    return [
        f"{100 * confident_errors:.1f}% of its predictions are wrong with a probability above "
        f"{100 * CONFIDENT:.0f}%, as if it had been trained on other images; check its weights"
    ]


def _scale(logits: Tensor, temperature: float, num_errors: int) -> list[str]:
    """A warning about logits that are much too large or too small."""
    small, large = SCALES
    if temperature > large or (temperature < small and num_errors >= _FEW_ERRORS):
        return [
            f"its logits are {temperature:.2g} times as large as its accuracy supports; multiply "
            f"the distillation temperature by {temperature:.2g}"
        ]
    if (apart := separation(logits)) > _SEPARATED:
        return [
            f"its largest logit is typically {apart:.0f} above the second, so its probabilities "
            "are 0 and 1 at usual temperatures; raise the distillation temperature until they are "
            "not"
        ]
    return []


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
