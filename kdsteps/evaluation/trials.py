"""Rank the trials of a method by their results on the validation images.

A trial is one set of values, trained with one or several seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

Edge = Literal["lowest", "highest"]


@dataclass(frozen=True)
class Trial:
    """The results of one trial.

    Attributes:
        values: What was tried, by key.
        seeds: Those it was trained with.
        accuracies: Validation accuracy after the last epoch, for each seed; None: it diverged.
        loss: Mean validation loss after the last epoch; None where it is not finite.
        correct: Mean of the correct validation images, exact, so that ties are ties.
    """

    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    accuracies: tuple[float | None, ...]
    loss: float | None
    correct: Fraction

    @property
    def diverged(self) -> bool:
        return None in self.accuracies

    @property
    def accuracy(self) -> float | None:
        """Mean over the seeds; None if it diverged with one of them."""
        known = [value for value in self.accuracies if value is not None]
        return None if self.diverged else math.fsum(known) / len(known)


def trials_of(results: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """The trials of which `results` are the trainings, in the order in which they first appear.

    Args:
        results: `values`, `seed`, `diverged`, `num_images`, `validation_accuracy` and
            `validation_loss` of every epoch; trainings that were left out are ignored.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["trained"]:
            found.setdefault(json.dumps(result["values"], sort_keys=True), []).append(result)
    return [_trial(runs) for runs in found.values()]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Trials from the best to the worst.

    Those that did not diverge come first, then those with the most seeds, then those with the
    higher accuracy, then those with the lower loss; of equal ones, the first is the better one.
    """

    def order(trial: Trial) -> tuple[bool, int, Fraction, float]:
        loss = math.inf if trial.loss is None else trial.loss
        return trial.diverged, -len(trial.seeds), -trial.correct, loss

    return sorted(trials, key=order)


def edges(chosen: Trial, trials: Sequence[Trial]) -> dict[str, Edge]:
    """Keys whose chosen value is the lowest or the highest of several numbers that were tried."""
    found: dict[str, Edge] = {}
    for key, value in chosen.values.items():
        tried = {trial.values[key] for trial in trials if _is_number(trial.values[key])}
        if not _is_number(value) or len(tried) < 2 or min(tried) < value < max(tried):
            continue
        found[key] = "lowest" if value == min(tried) else "highest"
    return found


def _trial(runs: Sequence[Mapping[str, Any]]) -> Trial:
    accuracies = [None if run["diverged"] else run["validation_accuracy"][-1] for run in runs]
    losses = [None if run["diverged"] else run["validation_loss"][-1] for run in runs]
    known = [loss for loss in losses if loss is not None]
    images = zip(accuracies, (run["num_images"] for run in runs), strict=True)
    correct = sum(round(value * count) for value, count in images if value is not None)
    return Trial(
        values=runs[0]["values"],
        seeds=tuple(run["seed"] for run in runs),
        accuracies=tuple(accuracies),
        loss=math.fsum(known) / len(known) if len(known) == len(runs) else None,
        correct=Fraction(correct, len(runs)),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
