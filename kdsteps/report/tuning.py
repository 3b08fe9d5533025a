"""What the stage `tune` tried and chose, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsteps.jobs.words import plural
from kdsteps.study.entries import Range
from kdsteps.study.messages import shown
from kdsteps.study.study import Study


@dataclass(frozen=True)
class Key:
    """One key that was tuned.

    Attributes:
        tried: The declared values or range.
        chosen: The value of the best trial.
        edge: "lowest" or "highest" if no tried number was below or above it, else "".
    """

    name: str
    tried: str
    chosen: str
    edge: str


@dataclass(frozen=True)
class Tuned:
    """The tuning of one method on one pair.

    Attributes:
        cost: What it cost, such as `6 trials, 8 trainings of 12 epochs`.
        accuracy, loss: Of the best trial on the validation images, means over its seeds.
        trials: All of them, as in trials.json, with their values as texts in the order of `keys`.
        best: The number of the best one in `trials`.
    """

    pair: str
    method: str
    keys: list[Key]
    cost: str
    accuracy: float
    loss: float | None
    trials: list[Mapping[str, Any]]
    best: int


@dataclass(frozen=True)
class Tuning:
    """All tuning of a study.

    Attributes:
        budget: How many trials and seeds each method may have, and how they were chosen.
        halved: Whether only the best trials were trained with all seeds.
        num_trials: How many trials each may have.
        unequal: Methods with fewer trials than they may have, such as `kd (4)`.
        left_out: Methods that were not tuned.
        num_images: Validation images, the fewest of all pairs.
    """

    tuned: list[Tuned]
    budget: str
    halved: bool
    num_trials: int
    unequal: list[str]
    left_out: list[str]
    num_images: int


def tuning_of(study: Study, found: Sequence[Mapping[str, Any]]) -> Tuning | None:
    """The tuning of a study; None if it has none.

    Args:
        found: What is in trials.json of each pair and method, with both names.
    """
    if not found:
        return None
    counts = {name: len(entry.trials) for name, entry in study.methods.items()}
    return Tuning(
        tuned=[_tuned(study, each) for each in found],
        budget=_budget(study),
        halved=study.params.tune.halving is not None,
        num_trials=study.params.tune.trials,
        unequal=[
            f"{name} ({count})"
            for name, count in counts.items()
            if 0 < count < study.params.tune.trials
        ],
        left_out=[name for name, count in counts.items() if not count],
        num_images=min(each["num_images"] for each in found),
    )


def _budget(study: Study) -> str:
    tune = study.params.tune
    seeds = ", ".join(map(str, tune.seeds))
    text = f"up to {plural(tune.trials, 'trial')}, "
    text += "random values" if tune.search == "random" else "all combinations of the listed values"
    text += f", {'seed' if len(tune.seeds) == 1 else 'seeds'} {seeds}"
    if tune.halving is not None and len(tune.seeds) > 1:
        text += f"; after each seed, the best 1 in {tune.halving} went on to the next"
    return text


def _tuned(study: Study, found: Mapping[str, Any]) -> Tuned:
    pair, method = found["pair"], found["method"]
    best = found["trials"][found["best"]]
    trainings = sum(len(trial["seeds"]) for trial in found["trials"])
    epochs = plural(study.distil(pair, method).epochs, "epoch")
    cost = f"{plural(len(found['trials']), 'trial')}, {plural(trainings, 'training')} of {epochs}"
    declared = study.params.methods[method].tune or {}
    return Tuned(
        pair=pair,
        method=method,
        keys=[
            Key(key, _declared(tried), _text(best["values"][key]), found["edges"].get(key, ""))
            for key, tried in declared.items()
        ],
        cost=cost,
        accuracy=best["validation_accuracy"],
        loss=best["validation_loss"],
        trials=[
            trial | {"values": [_text(trial["values"][key]) for key in declared]}
            for trial in found["trials"]
        ],
        best=found["best"],
    )


def _declared(tried: Sequence[Any] | Range) -> str:
    if not isinstance(tried, Range):
        return ", ".join(map(_text, tried))
    return f"{tried.low} to {tried.high}{', by magnitude' if tried.log else ''}"


def _text(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else shown(value)
