"""The section on mistakes: galleries of test images, confused classes, accuracy of every class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdsteps.report.classes import ClassTable, class_table
from kdsteps.report.mistakes import (
    Confused,
    Group,
    Matrix,
    confused_pairs,
    groups,
    matrices,
)
from kdsteps.report.predicted import pair_predictions
from kdsteps.report.results import Results
from kdsteps.report.tables import PairTable
from kdsteps.report.thumbnails import Thumbnails, thumbnails

CARDS = 540  # on the page, so that it stays small whatever the study
_MOST, _FEWEST = 36, 3  # in one gallery
_KINDS = 3  # galleries for each method
BUDGET = 1_500_000  # bytes of all thumbnails, before base64


@dataclass(frozen=True)
class Mistakes:
    """What the page shows of one pair.

    Attributes:
        galleries: Of the best method, and of the references.
        confused: Of the best method.
        compared: The other methods in `confused`.
        seeds: Of the best method.
    """

    galleries: list[tuple[str, list[Group]]]
    confused: list[Confused]
    compared: list[str]
    matrices: list[Matrix]
    classes: ClassTable
    seeds: int


def find_mistakes(results: Results, tables: Sequence[PairTable]) -> dict[str, Mistakes]:
    """The mistakes of each pair with predictions, by its name.

    Raises:
        KdstepsError: A file is damaged.
    """
    wanted = {table.pair: _methods(table) for table in tables if table.rows}
    number = sum(map(len, wanted.values()))
    most = max(_FEWEST, min(_MOST, CARDS // (_KINDS * max(1, number))))
    found = {}
    for table in tables:
        if table.pair in wanted:
            names = results.data[table.dataset]["class_names"]
            made = _of_pair(results, table, wanted[table.pair], names, most)
            if made is not None:
                found[table.pair] = made
    return found


def sheets(
    results: Results, tables: Sequence[PairTable], found: dict[str, Mistakes]
) -> dict[str, Thumbnails]:
    """The thumbnails of each data set of which the galleries show images.

    Raises:
        KdstepsError: A file is damaged, or an image differs from what was prepared.
    """
    rows: dict[str, set[int]] = {}
    for table in tables:
        if table.pair in found and table.dataset in results.images:
            rows.setdefault(table.dataset, set()).update(_rows(found[table.pair]))
    shown = {dataset: sorted(each) for dataset, each in rows.items() if each}
    total = sum(map(len, shown.values()))
    return {
        dataset: thumbnails(*results.images[dataset], each, BUDGET * len(each) // total)
        for dataset, each in shown.items()
    }


def _of_pair(
    results: Results, table: PairTable, methods: Sequence[str], names: Sequence[Any], most: int
) -> Mistakes | None:
    predictions = pair_predictions(results, table, methods)
    if predictions is None:
        return None
    methods = [method for method in methods if method in predictions.students]
    if not methods:
        return None
    texts = [str(name) for name in names]
    best, *others = methods
    return Mistakes(
        galleries=[
            (method, groups(predictions, method, table.teacher_name, texts, most))
            for method in methods
        ],
        confused=confused_pairs(predictions, best, others, texts),
        compared=others,
        matrices=matrices(predictions, methods, table.teacher_name, texts),
        classes=class_table(predictions, table, texts),
        seeds=len(predictions.students[best]),
    )


def _methods(table: PairTable) -> list[str]:
    """The best method, and the references that it is compared with."""
    return list(dict.fromkeys([table.best.method, *table.references.values()]))


def _rows(found: Mistakes) -> Iterable[int]:
    return (card.row for _, kinds in found.galleries for kind in kinds for card in kind.cards)
