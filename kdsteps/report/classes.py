"""Accuracy of every class, and for which classes two methods differ by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdsteps.evaluation.statistics import Difference, holm, paired
from kdsteps.report.predicted import PairPredictions, Predicted
from kdsteps.report.tables import PairTable, Verdict, verdict_of

MOST = 25  # classes shown


@dataclass(frozen=True)
class ClassRow:
    """The accuracy of one class.

    Attributes:
        images: Test images of the class.
        teacher: None without a teacher.
        methods: {method: mean over seeds}.
        difference: Of the two methods of `ClassTable.compared`; None with one method.
        verdict: On this difference, after Holm's correction over all classes.
    """

    name: str
    images: int
    teacher: float | None
    methods: dict[str, float]
    difference: Difference | None
    verdict: Verdict | None


@dataclass(frozen=True)
class ClassTable:
    """Classes of one pair.

    Attributes:
        rows: All classes with test images; of many, those for which methods differ most.
        total: Number of classes with test images.
        compared: The best method and the one that it is compared with.
    """

    rows: list[ClassRow]
    total: int
    compared: tuple[str, str] | None


def class_table(found: PairPredictions, table: PairTable, names: Sequence[str]) -> ClassTable:
    """The classes of a pair, in their order.

    Args:
        names: Of the classes.
    """
    sizes = np.bincount(found.labels, minlength=found.num_classes)
    there = np.flatnonzero(sizes)
    accuracies = {
        method: {seed: _per_class(each, found, sizes) for seed, each in students.items()}
        for method, students in found.students.items()
    }
    means = {method: np.mean(list(seeds.values()), axis=0) for method, seeds in accuracies.items()}
    teacher = None if found.teacher is None else _per_class(found.teacher, found, sizes)
    compared = _compared(table, list(accuracies))
    differences: list[Difference | None] = [None] * len(there)
    if compared is not None:
        ours, theirs = (accuracies[method] for method in compared)
        differences = [
            paired(
                {seed: float(values[k]) for seed, values in ours.items()},
                {seed: float(values[k]) for seed, values in theirs.items()},
                table.confidence,
                1 / int(sizes[k]),
            )
            for k in there
        ]
    adjusted = holm([each.p if each else None for each in differences])
    rows = [
        ClassRow(
            name=names[k],
            images=int(sizes[k]),
            teacher=None if teacher is None else float(teacher[k]),
            methods={method: float(values[k]) for method, values in means.items()},
            difference=difference,
            verdict=verdict_of(difference, p, 1 - table.confidence, compared, table.diverged)
            if difference and compared
            else None,
        )
        for k, difference, p in zip(there.tolist(), differences, adjusted, strict=True)
    ]
    return ClassTable(_most_different(rows), len(rows), compared)


def _per_class(network: Predicted, found: PairPredictions, sizes: np.ndarray) -> np.ndarray:
    """Accuracy of each class, (K,); 0 for a class without test images."""
    right = found.labels[network.classes == found.labels]
    hits = np.bincount(right, minlength=found.num_classes)
    accuracy: np.ndarray = hits / np.maximum(sizes, 1)
    return accuracy


def _compared(table: PairTable, methods: Sequence[str]) -> tuple[str, str] | None:
    """The best method with the first reference, or with the second best if it is that one."""
    ranked = [row.method for row in table.rows if row.method in methods]
    if len(ranked) < 2:
        return None
    references = [name for name in table.references.values() if name in ranked[1:]]
    return ranked[0], (references or ranked[1:])[0]


def _most_different(rows: list[ClassRow]) -> list[ClassRow]:
    """Up to `MOST` rows with the largest differences, in their order."""
    if len(rows) <= MOST:
        return rows
    size = [abs(row.difference.mean) if row.difference else -_lowest(row) for row in rows]
    largest = sorted(range(len(rows)), key=lambda place: (-size[place], place))[:MOST]
    return [rows[place] for place in sorted(largest)]


def _lowest(row: ClassRow) -> float:
    return min(row.methods.values())
