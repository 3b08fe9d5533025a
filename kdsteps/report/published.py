"""Published accuracies of the benchmark's pairs, to compare with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdsteps.evaluation.statistics import Sample
from kdsteps.report.tables import PairTable

TABLE = Path(__file__).with_name("published.csv")
MARKERS = {"R": "read in a primary source", "R2": "read in a secondary source"}


@dataclass(frozen=True)
class PublishedRow:
    """One published number and ours.

    Attributes:
        row: The name of the method in the source.
        accuracy: Published, as a fraction.
        ours: {name in this study: accuracy over seeds} of the corresponding methods.
    """

    row: str
    accuracy: float
    source: str
    marker: str
    note: str
    ours: dict[str, Sample]


def published_rows(name: str, table: PairTable, methods: Mapping[str, str]) -> list[PublishedRow]:
    """The published values of a pair, in the order of the sources, with our numbers.

    Args:
        name: A value of the column `pair` of `published.csv`.
        table: Our results on the pair whose key `published` is `name`.
        methods: The method of each entry of the section `methods`.
    """
    rows = pd.read_csv(TABLE, keep_default_na=False)
    rows = rows[rows["pair"] == name]
    ours = {row.method: row.accuracy for row in table.rows}
    return [
        PublishedRow(
            row=row["row"],
            accuracy=float(row["top1_percent"]) / 100,
            source=row["source"],
            marker=row["marker"],
            note=row["note"],
            ours=_teacher(table)
            if row["method"] == "teacher"
            else _ours(row["method"], ours, methods),
        )
        for row in rows.to_dict("records")
    ]


def _ours(
    method: str, accuracies: Mapping[str, Sample], methods: Mapping[str, str]
) -> dict[str, Sample]:
    return {name: accuracy for name, accuracy in accuracies.items() if methods[name] == method}


def _teacher(table: PairTable) -> dict[str, Sample]:
    if table.teacher_accuracy is None:
        return {}
    return {table.teacher_name: Sample(1, table.teacher_accuracy, None, None, None)}
