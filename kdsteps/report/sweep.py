"""Does a layer's score predict the accuracy of a student that learns from that layer alone?

A study can tell if several methods of a pair each learn from a single layer of the teacher, as in
`recipes/layer-sweep.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsteps.evaluation.statistics import Sample, rank_correlation, sample
from kdsteps.report.tables import PairTable

FEWEST = 3  # layers; fewer cannot be ranked


@dataclass(frozen=True)
class Sweep:
    """Students of single layers on one pair.

    Attributes:
        points: One row per method: method, layer, accuracy (mean over seeds), the layer's scores.
        correlations: {score: rank correlation with accuracy, over seeds}, where there is one.
    """

    pair: str
    points: pd.DataFrame
    correlations: dict[str, Sample]


def find_sweep(
    table: PairTable,
    plans: Mapping[tuple[str, str], Mapping[str, Any]],
    scores: pd.DataFrame,
    names: list[str],
) -> Sweep | None:
    """The sweep over layers on one pair; None with fewer than three layers.

    Args:
        scores: Of all teachers.
        names: The scores to compare with accuracy, columns of `scores`.
    """
    mine = scores[(scores["dataset"] == table.dataset) & (scores["teacher"] == table.teacher_name)]
    worth = mine.set_index("layer")[names].astype(float)
    layer_of = {
        method: plan["pairs"][0]["teacher_layer"]
        for (pair, method), plan in plans.items()
        if pair == table.pair and len(plan.get("pairs", ())) == 1
    }
    rows = [row for row in table.rows if layer_of.get(row.method) in worth.index]
    if len({layer_of[row.method] for row in rows}) < FEWEST:
        return None
    points = pd.DataFrame(
        [
            {"method": row.method, "layer": layer_of[row.method], "accuracy": row.accuracy.mean}
            | worth.loc[layer_of[row.method]].to_dict()
            for row in rows
        ]
    )
    seeds = sorted(set.intersection(*(set(row.values) for row in rows)))
    correlations = {}
    for name in names:
        found = [
            rank_correlation(points[name].tolist(), [row.values[seed] for row in rows])
            for seed in seeds
        ]
        known = [value for value in found if value is not None]
        if known:
            correlations[name] = sample(known, table.confidence)
    return Sweep(table.pair, points, correlations)
