"""Pairs with several teachers: how each compares with the others, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.report.results import Results, identity
from kdsteps.study.entries import Pair
from kdsteps.study.study import Study
from kdsteps.teachers.combining import Combining, combined_logits


@dataclass(frozen=True)
class SeveralTeachers:
    """The teachers of a pair that has several.

    Attributes:
        how: How their logits are combined, such as "median of standardized logits".
        num_images: Training images on which they were compared.
        rows: audit.json of each teacher (`TeacherAudit`), with `test_accuracy`.
        combined, mean: Test accuracy of the combined logits, and of their mean; None where it is
            not known: `confidence` needs labels, which a prediction must not.
    """

    pair: str
    dataset: str
    how: str
    num_images: int
    rows: list[dict[str, Any]]
    combined: float | None
    mean: float | None


def several_teachers(
    inputs: Mapping[str, Sequence[str | Path]], results: Results, study: Study
) -> list[SeveralTeachers]:
    """The teachers of each pair that has several.

    Args:
        inputs: Files of the report, by the names of the job graph.
    """
    found = []
    for path in inputs.get("audits", ()):
        name = identity(path, "train_audit", "audit")["pair"]
        pair, content = study.pairs[name], read_json(path)
        tested = taught_by(results, pair)
        how = Combining(pair.combine, pair.space)
        found.append(
            SeveralTeachers(
                pair=name,
                dataset=pair.dataset,
                how=pair.combined_how,
                num_images=content["num_images"],
                rows=[
                    row | {"test_accuracy": tested.get(row["teacher"], {}).get("accuracy")}
                    for row in content["teachers"]
                ],
                combined=_accuracy(tested, how) if how.combine != "confidence" else None,
                mean=_accuracy(tested, Combining()),
            )
        )
    return found


def taught_by(results: Results, pair: Pair) -> dict[str, dict[str, Any]]:
    """The rows of `Results.teachers` of the teachers of a pair that has several, by name."""
    if pair.teachers is None:
        return {}
    teachers = results.teachers[results.teachers["dataset"] == pair.dataset]
    rows = {row["teacher"]: dict(row) for _, row in teachers.iterrows()}
    return {name: rows[name] for name in pair.teachers if name in rows}


def _accuracy(teachers: Mapping[str, Mapping[str, Any]], how: Combining) -> float | None:
    """Test accuracy of the combined logits; None where not all teachers predicted all images."""
    import torch

    tables = [_predictions(row["predictions"]) for row in teachers.values() if row["predictions"]]
    first = tables[0] if tables else None
    if first is None or any(not table.index.equals(first.index) for table in tables):
        return None
    logits = torch.from_numpy(np.stack([np.stack(table["logits"].tolist()) for table in tables]))
    predicted = combined_logits(logits, how).argmax(dim=1).numpy()
    return float((predicted == first["label"].to_numpy()).mean())


def _predictions(path: str) -> pd.DataFrame:
    table: pd.DataFrame = read_table(Path(path), PREDICTIONS).to_pandas()
    return table.set_index("image").sort_index()
