"""Compare methods: means with their spread, differences, and whether these are more than noise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from kdsteps.evaluation.statistics import (
    Difference,
    Sample,
    detectable,
    holm,
    paired,
    sample,
    seeds_needed,
    typical_spread,
)
from kdsteps.report.results import Results, chance_level

Verdict = Literal["better", "worse", "undecided", "equal", "single"]


@dataclass(frozen=True)
class Comparison:
    """The difference of a method and a reference, paired by seed.

    Attributes:
        p_adjusted: After Holm over the methods of the pair; None where there is no test.
        verdict: `better` or `worse` than the reference if the adjusted p-value is small enough;
            `equal` in every seed; `single` for one seed, which decides nothing. A method with
            runs that diverged is never the better one, nor is such a reference: the seeds that
            are left are a selection in its favor.
    """

    difference: Difference
    p_adjusted: float | None
    verdict: Verdict


@dataclass(frozen=True)
class MethodRow:
    """One method on one pair.

    Attributes:
        values: {seed: test accuracy}; without seeds that diverged.
        metrics: {name: Sample over seeds} of every metric of its deployed network that is known,
            and of `best_validation_accuracy` and `seconds`.
        versus: {reference: Comparison}; not with itself, nor where no seed is shared.
    """

    method: str
    values: dict[int, float]
    accuracy: Sample
    metrics: dict[str, Sample]
    versus: dict[str, Comparison]


@dataclass(frozen=True)
class Power:
    """What the seeds can detect, for a method whose differences have the typical spread.

    Attributes:
        seeds: Of the comparison with the fewest.
        gain: The smallest true difference that is detected four times in five, a fraction.
        seeds_for_point: Seeds needed to detect one percentage point; None: over 1,000.
    """

    seeds: int
    gain: float
    seeds_for_point: int | None


@dataclass(frozen=True)
class PairTable:
    """All methods on one pair: the best mean first, and those with diverged runs last.

    Attributes:
        rows: Of methods with at least one run that did not diverge.
        diverged: {method: seeds whose runs diverged}.
        references: Methods that the others are compared with, as `Study.references`.
        power: By reference; only where differences have a spread.
        teacher: The teacher's row of `Results.teachers` with its speed in this pair's
            measurement; None where no method has a teacher.
        num_images: Test images.
        chance: Accuracy of always predicting the most common class of the test images.
    """

    pair: str
    dataset: str
    teacher_name: str
    student_name: str
    rows: list[MethodRow]
    diverged: dict[str, list[int]]
    references: dict[str, str]
    power: dict[str, Power]
    teacher: dict[str, Any] | None
    num_images: int
    chance: float
    confidence: float

    @property
    def best(self) -> MethodRow:
        return self.rows[0]

    @property
    def teacher_accuracy(self) -> float | None:
        """On the test images; None without a teacher, and for one whose logits are not finite."""
        found = None if self.teacher is None else self.teacher.get("accuracy")
        return None if pd.isna(found) else float(found)

    @property
    def num_seeds(self) -> int:
        """Of the study, whether their runs diverged or not."""
        finished = {row.method: len(row.values) for row in self.rows}
        return max(
            finished.get(method, 0) + len(self.diverged.get(method, ()))
            for method in finished.keys() | self.diverged.keys()
        )

    def row(self, method: str) -> MethodRow:
        return next(row for row in self.rows if row.method == method)


def pair_tables(
    results: Results, references: Mapping[str, str], confidence: float
) -> list[PairTable]:
    """One table per pair, in the order of the runs."""
    return [
        _pair_table(str(name), group, results, references, confidence)
        for name, group in results.runs.groupby("pair", sort=False)
    ]


def _pair_table(
    name: str,
    runs: pd.DataFrame,
    results: Results,
    references: Mapping[str, str],
    confidence: float,
) -> PairTable:
    bad = runs["diverged"].astype(bool)
    finished = runs[~bad]
    values = {
        str(method): dict(
            zip(group["seed"].astype(int), group["accuracy"].astype(float), strict=True)
        )
        for method, group in finished.groupby("method", sort=False)
    }
    there = {word: method for word, method in references.items() if method in values}
    num_images = int(runs["num_images"].iloc[0])
    diverged = {
        str(method): group["seed"].astype(int).tolist()
        for method, group in runs[bad].groupby("method", sort=False)
    }
    versus = {
        word: _versus(values, method, diverged, confidence, 1 / num_images)
        for word, method in there.items()
    }
    names = [metric.name for metric in results.metrics if metric.name != "accuracy"]
    rows = [
        MethodRow(
            method=method,
            values=accuracies,
            accuracy=sample(list(accuracies.values()), confidence),
            metrics=_samples(finished[finished["method"] == method], names, confidence),
            versus={word: found[method] for word, found in versus.items() if method in found},
        )
        for method, accuracies in values.items()
    ]
    first = runs.iloc[0]
    return PairTable(
        pair=name,
        dataset=first["dataset"],
        teacher_name=first["teacher"],
        student_name=first["student"],
        rows=sorted(rows, key=lambda row: (row.method in diverged, -row.accuracy.mean)),
        diverged=diverged,
        references=there,
        power=_powers(versus, confidence),
        teacher=_teacher(results, name, first["dataset"], first["teacher"]),
        num_images=num_images,
        chance=chance_level(results.data[first["dataset"]]),
        confidence=confidence,
    )


def _versus(
    values: Mapping[str, Mapping[int, float]],
    reference: str,
    diverged: Collection[str],
    confidence: float,
    resolution: float,
) -> dict[str, Comparison]:
    differences = {
        method: difference
        for method, accuracies in values.items()
        if method != reference
        and (difference := paired(accuracies, values[reference], confidence, resolution))
        is not None
    }
    adjusted = holm([difference.p for difference in differences.values()])
    found = {}
    for (method, difference), p in zip(differences.items(), adjusted, strict=True):
        verdict = verdict_of(difference, p, 1 - confidence, (method, reference), diverged)
        found[method] = Comparison(difference, p, verdict)
    return found


def verdict_of(
    difference: Difference,
    p: float | None,
    alpha: float,
    methods: tuple[str, str],
    diverged: Collection[str],
) -> Verdict:
    """What a paired difference shows.

    Args:
        p: After correction; None where there is no test.
        alpha: The level below which p decides.
        methods: Of the difference.
        diverged: Methods with diverged runs, none of which is called the better one.
    """
    if difference.count == 1:
        return "single"
    if difference.spread == 0 and p is not None:
        return "equal"
    ahead = methods[0] if difference.mean > 0 else methods[1]
    if p is None or p >= alpha or ahead in diverged:
        return "undecided"
    return "better" if difference.mean > 0 else "worse"


def _samples(runs: pd.DataFrame, metrics: Sequence[str], confidence: float) -> dict[str, Sample]:
    names = [*metrics, "best_validation_accuracy", "seconds"]
    found = {name: runs[name].astype(float).dropna().tolist() for name in names}
    return {name: sample(values, confidence) for name, values in found.items() if values}


def _powers(versus: Mapping[str, Mapping[str, Comparison]], confidence: float) -> dict[str, Power]:
    found = {}
    for word, comparisons in versus.items():
        differences = [each.difference for each in comparisons.values()]
        seeds = min((difference.count for difference in differences), default=0)
        spread = typical_spread([difference.spread for difference in differences])
        gain = detectable(spread, seeds, 1 - confidence)
        if gain is not None:
            found[word] = Power(seeds, gain, seeds_needed(0.01, spread, 1 - confidence))
    return found


def _teacher(results: Results, pair: str, dataset: str, name: str) -> dict[str, Any] | None:
    teachers = results.teachers
    rows = teachers[(teachers["dataset"] == dataset) & (teachers["teacher"] == name)]
    if not len(rows):
        return None
    return dict(rows.iloc[0]) | (results.speeds.get(pair, {}).get("teacher") or {})
