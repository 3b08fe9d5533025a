"""How a method does compared with the baseline at the same epoch, while both train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

Run = Mapping[int, Mapping[str, float]]
"""The losses and metrics of each epoch of a run, by name."""

METRIC = "validation_accuracy"
_COLLAPSED = 0.5  # of the best accuracy so far
BEHIND = "behind by more than seeds differ"
NO_BASELINE = "nothing to compare with"


@dataclass(frozen=True)
class Standing:
    """A method against the baseline.

    Attributes:
        epoch: The last one of the run that is the furthest.
        accuracy: The mean validation accuracy of the runs, each at its last epoch.
        difference: From the baseline, the mean over the runs, each at an epoch that both have.
        spread: How much seeds differ, as a standard deviation; None for a single seed.
        word: "ahead", "level", "behind by more than seeds differ", "diverging", or why there is
            none of these.
    """

    epoch: int
    accuracy: float | None
    difference: float | None
    spread: float | None
    word: str


def standing(
    runs: Mapping[int, Run], baseline: Mapping[int, Run] | None, *, there_is_one: bool = True
) -> Standing:
    """Compare the runs of a method with those of the baseline.

    Args:
        runs: By seed.
        baseline: By seed; None: the method is the baseline.
        there_is_one: Whether the study has a baseline.
    """
    epoch = max((max(run, default=0) for run in runs.values()), default=0)
    last = [value for run in runs.values() if (value := _value(run, _last(run))) is not None]
    accuracy = mean(last) if last else None
    if lost := [seed for seed, run in runs.items() if is_diverging(run)]:
        seeds = f" (seed{'s' * (len(lost) > 1)} {', '.join(map(str, lost))})"
        return Standing(epoch, accuracy, None, None, "diverging" + seeds * (len(runs) > 1))
    if baseline is None:
        return Standing(epoch, accuracy, None, None, "the baseline")
    if accuracy is None:
        return Standing(epoch, None, None, None, "no validation images")
    gaps, spreads = [], []
    for seed, run in runs.items():
        at = min(_last(run), _last(baseline.get(seed, {})) or _last(run))
        others = [_value(other, at) for other in baseline.values()]
        known = [value for value in others if value is not None]
        theirs = _value(baseline.get(seed, {}), at)
        theirs = mean(known) if theirs is None and known else theirs
        ours = _value(run, at)
        if ours is not None and theirs is not None:
            gaps.append(ours - theirs)
            spreads.append(stdev(known) if len(known) > 1 else None)
    if not gaps:
        why = "the baseline has not come this far" if there_is_one else NO_BASELINE
        return Standing(epoch, accuracy, None, None, why)
    own = stdev(gaps) if len(gaps) > 1 else None
    measured = [spread for spread in [*spreads, own] if spread is not None]
    difference, spread = mean(gaps), max(measured, default=None)
    return Standing(epoch, accuracy, difference, spread, _word(difference, spread))


def _word(difference: float, spread: float | None) -> str:
    if spread is None:
        return "not judged: one seed"
    if difference > spread:
        return "ahead"
    return BEHIND if difference < -spread else "level"


def is_diverging(run: Run) -> bool:
    """Whether a loss is NaN or infinite, or the accuracy fell to half its best and stays there."""
    if not run:
        return False
    if not all(math.isfinite(value) for value in run[max(run)].values()):
        return True
    values = [value for epoch in run if (value := _value(run, epoch)) is not None]
    return len(values) > 2 and max(values[-2:]) < _COLLAPSED * max(values)


def _last(run: Run) -> int:
    """The last validated epoch; 0 if there is none."""
    return max((epoch for epoch in run if METRIC in run[epoch]), default=0)


def _value(run: Run, epoch: int) -> float | None:
    return run.get(epoch, {}).get(METRIC)
