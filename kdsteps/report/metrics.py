"""The study in numbers for `dvc metrics` and in tables for `dvc plots`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from kdsteps.report.results import Results
from kdsteps.report.tables import MethodRow, PairTable


def metrics(tables: Iterable[PairTable]) -> dict[str, Any]:
    """{pair: {"teacher": numbers, "methods": {method: numbers}}}; what is not known is left out."""
    return {table.pair: _pair(table) for table in tables}


def plot_tables(results: Results, tables: Iterable[PairTable]) -> dict[str, pd.DataFrame]:
    """What `dvc plots` draws: `accuracy`, `curves` and `quality`, each with a column `name`."""
    return {
        "accuracy": _accuracy(tables),
        "curves": _curves(results.curves),
        "quality": _quality(results.scores),
    }


def _pair(table: PairTable) -> dict[str, Any]:
    found: dict[str, Any] = {"methods": {row.method: _method(row) for row in table.rows}}
    if table.teacher is not None:
        names = ("accuracy", "nll", "calibration_error", "parameters", "multiply_adds")
        found["teacher"] = _known({name: table.teacher[name] for name in names})
    return found


def _method(row: MethodRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accuracy": row.accuracy.mean,
        "spread": row.accuracy.spread,
        "seeds": row.accuracy.count,
    }
    found |= {name: measured.mean for name, measured in row.measures.items() if name != "seconds"}
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
    """Without what is None or not a number; plain numbers of Python."""
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
        }
        for table in tables
        for row in table.rows
    ]
    return pd.DataFrame(rows, columns=["name", "accuracy", "spread", "seeds"])


def _curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; one row an epoch of a pair and method."""
    names = ["validation_accuracy", "validation_loss", "total"]
    rows = curves[curves["name"].isin(names)].rename(columns={"name": "measure"})
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
