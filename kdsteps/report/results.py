"""Every result of a study in a few tables: what the report is written from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdsteps.errors import KdstepsError
from kdsteps.files.columns import HISTORY, PREDICTIONS, RUNS, SCORES
from kdsteps.files.tables import read_table, table_metadata
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.accepted import accepted_lines

Study = Mapping[str, Any]
Files = Sequence[str | Path]

MEASURES = ("accuracy", "top5", "nll", "calibration_error", "agreement", "kl_to_teacher")
COSTS = ("parameters", "multiply_adds", "size_mib", "latency_ms", "latency_p90_ms")


@dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
        runs: One row a student, columns of `artifacts.RUNS` and `num_images`, the test images.
        teachers: One row a teacher: dataset, teacher, the measures, `seconds` of its training and
            the path of its `predictions`.
        curves: One row a number of one epoch: pair, method, seed, epoch, name, value.
        teacher_curves: The same for teachers: dataset, teacher, epoch, name, value.
        scores: One row a layer of a teacher: dataset, teacher, columns of `artifacts.SCORES`.
        plans: {(pair, method): plan} of the methods that have one.
        data: {dataset: summary}.
        origins: One row a file: what it is, git_commit, device, versions as text, seconds.
        accepted: Results of earlier code that were accepted, as `date: 1 train, 38 distil`.
    """

    runs: pd.DataFrame
    teachers: pd.DataFrame
    curves: pd.DataFrame
    teacher_curves: pd.DataFrame
    scores: pd.DataFrame
    plans: dict[tuple[str, str], dict[str, Any]]
    data: dict[str, dict[str, Any]]
    origins: pd.DataFrame
    accepted: list[str] = field(default_factory=list)


def load_results(inputs: Mapping[str, Files], study: Study) -> Results:
    """The results in the files that the grid lists for the report.

    Raises:
        KdstepsError: A file is damaged, lacks something, or lies where no job of the study writes.
    """
    teachers, teacher_curves, teacher_origins = _teachers(inputs)
    runs, curves, origins = _runs(inputs, study, teachers)
    return Results(
        runs=runs,
        teachers=teachers,
        curves=curves,
        teacher_curves=teacher_curves,
        scores=_scores(inputs["scores"]),
        plans={
            (names["pair"], names["method"]): read_json(path)
            for path, names in _named(inputs["plans"], "build", "plan")
        },
        data={
            names["dataset"]: read_json(path)
            for path, names in _named(inputs["summaries"], "prepare", "summary")
        },
        origins=pd.DataFrame(teacher_origins + origins, columns=ORIGINS),
        accepted=[line for path in inputs.get("accepted", ()) for line in accepted_lines(path)],
    )


def run_rows(results: Results) -> dict[str, list[Any]]:
    """The runs as columns of `artifacts.RUNS`; None where something was not measured."""
    runs = results.runs[list(RUNS)].astype(object)
    return {name: runs[name].where(runs[name].notna(), None).tolist() for name in RUNS}


ORIGINS = ["what", "stage", "git_commit", "device", "threads", "versions", "seconds"]


def identity(path: str | Path, rule: str, file: str) -> dict[str, str]:
    """Which job of a rule wrote `path`: the wildcards of the rule's pattern, read from its end.

    Raises:
        KdstepsError: The path does not end as the files of that rule do.
    """
    pattern = graph.OUTPUTS[rule][file]
    expression = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(pattern))
    found = re.search(rf"(?:^|/){expression}$", Path(path).as_posix())
    if found is None:
        raise KdstepsError(f"{path}: its name does not say what it is; it should end as {pattern}")
    return found.groupdict()


def _named(paths: Files, rule: str, file: str) -> list[tuple[Path, dict[str, str]]]:
    return [(Path(path), identity(path, rule, file)) for path in paths]


def _teachers(
    inputs: Mapping[str, Files],
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    histories = {
        (names["dataset"], names["teacher"]): path
        for path, names in _named(inputs["teacher_histories"], "train", "history")
    }
    logits = {
        (names["dataset"], names["teacher"]): path
        for path, names in _named(inputs["teacher_predictions"], "evaluate_teacher", "predictions")
    }
    rows, curves, origins = [], [], []
    for path, names in _named(inputs["teacher_measures"], "evaluate_teacher", "measures"):
        key = (names["dataset"], names["teacher"])
        measures = _measures(path)
        what = f"{names['teacher']} on {names['dataset']}"
        origins.append(_origin(what, "evaluate", measures["provenance"]))
        if key in histories:
            curve = _history(histories[key])
            curves.append(curve.assign(**names))
            origin = _origin(what, "train", table_metadata(histories[key])["provenance"])
            origins.append(origin)
            measures |= {"seconds": origin["seconds"], "best_validation_accuracy": _best(curve)}
        rows.append(names | _numbers(measures) | {"predictions": str(logits.get(key, ""))})
    columns = ["dataset", "teacher", "best_validation_accuracy", *MEASURES, *COSTS, "seconds"]
    columns += ["num_images", "predictions"]
    table = pd.DataFrame(rows, columns=columns)
    return table, _joined(curves, ["dataset", "teacher", *HISTORY]), origins


def _runs(
    inputs: Mapping[str, Files], study: Study, teachers: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    histories = _by_run(inputs["histories"], "distil", "history")
    predictions = _by_run(inputs["predictions"], "evaluate", "predictions")
    logits = {
        (str(row["dataset"]), str(row["teacher"])): str(row["predictions"])
        for row in teachers.to_dict("records")
        if row["predictions"]
    }
    rows, curves, origins = [], [], []
    for run, path in _by_run(inputs["measures"], "evaluate", "measures").items():
        name, method, seed = run
        pair = study["pairs"][name]
        measures = _measures(path)
        teacher = logits.get((pair["dataset"], pair["teacher"]))
        if measures["agreement"] is None and teacher:
            measures |= _compared(predictions[run], teacher)
        names: dict[str, Any] = {"pair": name, "method": method, "seed": seed}
        what = f"{name}, {method}, seed {seed}"
        origins.append(_origin(what, "evaluate", measures["provenance"]))
        curve = _history(histories[run])
        curves.append(curve.assign(**names))
        origin = _origin(what, "distil", table_metadata(histories[run])["provenance"])
        origins.append(origin)
        places = {key: pair[key] for key in ("dataset", "teacher", "student")}
        mine = {"seconds": origin["seconds"], "best_validation_accuracy": _best(curve)}
        rows.append(names | places | _numbers(measures) | mine)
    table = pd.DataFrame(rows, columns=[*RUNS, "num_images"])
    return table, _joined(curves, ["pair", "method", "seed", *HISTORY]), origins


def _by_run(paths: Files, rule: str, file: str) -> dict[tuple[str, str, int], Path]:
    return {
        (names["pair"], names["method"], int(names["seed"])): path
        for path, names in _named(paths, rule, file)
    }


def _measures(path: Path) -> dict[str, Any]:
    found = read_json(path)
    missing = [name for name in ("accuracy", "num_images", "provenance") if name not in found]
    if missing:
        raise KdstepsError(f"{path}: does not say {missing[0]!r}; evaluate it again")
    return {"agreement": None, "kl_to_teacher": None} | found


def _numbers(measures: Mapping[str, Any]) -> dict[str, Any]:
    wanted = (*MEASURES, *COSTS, "num_images", "seconds", "best_validation_accuracy")
    return {name: measures.get(name) for name in wanted}


def _history(path: Path) -> pd.DataFrame:
    table: pd.DataFrame = read_table(path, HISTORY).to_pandas()
    return table


def _best(curve: pd.DataFrame) -> float | None:
    """The highest validation accuracy of any epoch; None where nothing was validated."""
    values = curve.loc[curve["name"] == "validation_accuracy", "value"].dropna()
    return float(values.max()) if len(values) else None


def _origin(what: str, stage: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    versions = provenance.get("versions", {})
    return {
        "what": what,
        "stage": stage,
        "git_commit": provenance.get("git_commit"),
        "device": provenance.get("device"),
        "threads": provenance.get("threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "seconds": provenance.get("seconds"),
    }


def _compared(student: Path, teacher: str) -> dict[str, float]:
    """Agreement and KL of a student that learned without a teacher, from both predictions.

    Nothing where they do not speak of the same images and classes.
    """
    import torch

    from kdsteps.evaluation.metrics import compare

    ours, theirs = _logits(student), _logits(teacher)
    if list(ours.index) != list(theirs.index):
        return {}
    pairs = [torch.from_numpy(np.stack(table.tolist())) for table in (ours, theirs)]
    return compare(*pairs) if pairs[0].shape == pairs[1].shape else {}


def _logits(path: str | Path) -> pd.Series:
    table: pd.DataFrame = read_table(path, PREDICTIONS).to_pandas()
    return table.set_index("image")["logits"].sort_index()


def _scores(paths: Files) -> pd.DataFrame:
    found = [
        read_table(path, SCORES).to_pandas().assign(**names)
        for path, names in _named(paths, "score", "scores")
    ]
    return _joined(found, ["dataset", "teacher", *SCORES])


def _joined(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)[columns]
