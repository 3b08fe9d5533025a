"""The results of a study for other tools: `dvc metrics` and `dvc plots`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from kdsteps.report.results import Results, finished
from kdsteps.report.tables import MethodRow, PairTable


def metrics(results: Results, tables: Iterable[PairTable]) -> dict[str, Any]:
    """{pair: {"teacher": numbers, "methods": {method: numbers}}}, without what is unknown.

    Latency and throughput are left out: they would differ from commit to commit by chance.
    """
    names = [metric.name for metric in results.metrics if metric.source != "speed"]
    return {table.pair: _pair(table, names) for table in tables}


def plot_tables(results: Results, tables: Iterable[PairTable]) -> dict[str, pd.DataFrame]:
    """The tables `accuracy`, `curves` and `quality`, each with a column `name`."""
    return {
        "accuracy": _accuracy(tables),
        "curves": _curves(results.curves),
        "quality": _quality(results.scores),
    }


def _pair(table: PairTable, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "test_images": table.num_images,
        "chance": table.chance,
        "methods": {row.method: _method(row, names) for row in table.rows},
    }
    for method, seeds in table.diverged.items():
        found["methods"].setdefault(method, {})["diverged"] = len(seeds)
    if table.teacher is not None:
        found["teacher"] = _known({name: table.teacher[name] for name in names})
    return found


def _method(row: MethodRow, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accuracy": row.accuracy.mean,
        "spread": row.accuracy.spread,
        "seeds": row.accuracy.count,
    }
    wanted = (*names, "best_validation_accuracy")
    found |= {name: row.metrics[name].mean for name in wanted if name in row.metrics}
    for word, comparison in row.versus.items():
        difference = comparison.difference
        found[f"difference_to_{word}"] = _known(
            {
                "mean": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "p": difference.p,
                "p_adjusted": comparison.p_adjusted,
                "effect": difference.effect,
                "seeds": difference.count,
            }
        )
    return _known(found)


def _known(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Plain Python numbers, without None and NaN."""
    return {
        name: value.item() if hasattr(value, "item") else value
        for name, value in numbers.items()
        if isinstance(value, dict) or pd.notna(value)
    }


def _accuracy(tables: Iterable[PairTable]) -> pd.DataFrame:
    rows = [
        {
            "name": f"{table.pair} {row.method}",
            "accuracy": row.accuracy.mean,
            "spread": row.accuracy.spread,
            "seeds": row.accuracy.count,
            "test_images": table.num_images,
            "chance": table.chance,
        }
        for table in tables
        for row in table.rows
    ]
    return pd.DataFrame(
        rows, columns=["name", "accuracy", "spread", "seeds", "test_images", "chance"]
    )


def _curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds that finished; one row per epoch of a pair and method."""
    names = ["validation_accuracy", "validation_loss", "total"]
    rows = finished(curves, by=("pair", "method"))
    rows = rows[rows["name"].isin(names)].rename(columns={"name": "measure"})
    rows = rows.assign(name=rows["pair"] + " " + rows["method"])
    wide = rows.pivot_table(
        index=["name", "epoch"], columns="measure", values="value", aggfunc="mean"
    )
    return wide.reindex(columns=names).reset_index()


def _quality(scores: pd.DataFrame) -> pd.DataFrame:
    columns = [
        "name",
        "layer",
        "depth",
        "quality",
        "separation",
        "information",
        "efficiency",
        "chosen",
    ]
    named = scores.assign(name=scores["dataset"] + " " + scores["teacher"])
    return named[columns].sort_values(["name", "depth"])
