"""Methods against each other: means with their spread, and what may be said of the differences."""

from __future__ import annotations

from collections.abc import Mapping
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
from kdsteps.report.results import MEASURES

REFERENCES = ("labels", "kd")  # the methods that every other is measured against

Verdict = Literal["better", "worse", "undecided", "equal", "single"]


@dataclass(frozen=True)
class Comparison:
    """A method less a reference, paired by seed.

    Attributes:
        p_adjusted: After Holm over the methods of the pair; None where there is no test.
        verdict: `better` or `worse` than the reference, as the adjusted p-value decides; `equal` in
            every seed; `single` for one seed, which decides nothing.
    """

    difference: Difference
    p_adjusted: float | None
    verdict: Verdict


@dataclass(frozen=True)
class MethodRow:
    """One method on one pair.

    Attributes:
        values: {seed: test accuracy}.
        measures: What else was measured, by name: a Sample over seeds, where there are numbers.
        versus: {reference: Comparison}; not with itself, nor where no seed is shared.
    """

    method: str
    values: dict[int, float]
    accuracy: Sample
    measures: dict[str, Sample]
    versus: dict[str, Comparison]


@dataclass(frozen=True)
class Power:
    """What as many seeds as there are can see, of a method whose differences spread as is typical.

    Attributes:
        seeds: Of the comparison with the fewest.
        gain: The smallest true difference that is seen four times in five, as a share.
        seeds_for_point: How many seeds it would take to see one percentage point; None: over 1,000.
    """

    seeds: int
    gain: float
    seeds_for_point: int | None


@dataclass(frozen=True)
class PairTable:
    """All methods on one pair, the best mean first.

    Attributes:
        references: The word of `REFERENCES` and the method that stands for it in this study.
        power: By reference; only where differences have a spread.
        teacher: The teacher's row of `Results.teachers`; None where it was not needed.
        num_images: Test images.
    """

    pair: str
    dataset: str
    teacher_name: str
    student_name: str
    rows: list[MethodRow]
    references: dict[str, str]
    power: dict[str, Power]
    teacher: dict[str, Any] | None
    num_images: int
    confidence: float

    @property
    def best(self) -> MethodRow:
        return self.rows[0]

    def row(self, method: str) -> MethodRow:
        return next(row for row in self.rows if row.method == method)


def find_references(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Which entry of the section `methods` stands for each reference: its name, or its `method`."""
    found = {}
    for word in REFERENCES:
        behind = [name for name, entry in methods.items() if entry.get("method", name) == word]
        if behind:
            found[word] = word if word in behind else behind[0]
    return found


def pair_tables(
    runs: pd.DataFrame, teachers: pd.DataFrame, references: Mapping[str, str], confidence: float
) -> list[PairTable]:
    """One table a pair, in the order of the runs."""
    return [
        _pair_table(str(name), group, teachers, references, confidence)
        for name, group in runs.groupby("pair", sort=False)
    ]


def _pair_table(
    name: str,
    runs: pd.DataFrame,
    teachers: pd.DataFrame,
    references: Mapping[str, str],
    confidence: float,
) -> PairTable:
    values = {
        str(method): dict(
            zip(group["seed"].astype(int), group["accuracy"].astype(float), strict=True)
        )
        for method, group in runs.groupby("method", sort=False)
    }
    there = {word: method for word, method in references.items() if method in values}
    num_images = int(runs["num_images"].iloc[0])
    versus = {
        word: _versus(values, method, confidence, 1 / num_images) for word, method in there.items()
    }
    rows = [
        MethodRow(
            method=method,
            values=accuracies,
            accuracy=sample(list(accuracies.values()), confidence),
            measures=_measured(runs[runs["method"] == method], confidence),
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
        rows=sorted(rows, key=lambda row: -row.accuracy.mean),
        references=there,
        power=_powers(versus, confidence),
        teacher=_teacher(teachers, first["dataset"], first["teacher"]),
        num_images=num_images,
        confidence=confidence,
    )


def _versus(
    values: Mapping[str, Mapping[int, float]],
    reference: str,
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
    return {
        method: Comparison(difference, p, _verdict(difference, p, 1 - confidence))
        for (method, difference), p in zip(differences.items(), adjusted, strict=True)
    }


def _verdict(difference: Difference, p: float | None, alpha: float) -> Verdict:
    if difference.count == 1:
        return "single"
    if difference.spread == 0 and p is not None:
        return "equal"
    if p is None or p >= alpha:
        return "undecided"
    return "better" if difference.mean > 0 else "worse"


def _measured(runs: pd.DataFrame, confidence: float) -> dict[str, Sample]:
    names = [name for name in MEASURES if name != "accuracy"] + [
        "best_validation_accuracy",
        "seconds",
    ]
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


def _teacher(teachers: pd.DataFrame, dataset: str, name: str) -> dict[str, Any] | None:
    rows = teachers[(teachers["dataset"] == dataset) & (teachers["teacher"] == name)]
    return dict(rows.iloc[0]) if len(rows) else None
