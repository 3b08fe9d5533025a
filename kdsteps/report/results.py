"""Load every result of a study into a few tables, from which the report is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kdsteps.errors import KdstepsError
from kdsteps.evaluation.metrics import METRICS, Metric, all_metrics, compute
from kdsteps.export.record import Record, read_record
from kdsteps.files.columns import HISTORY, PREDICTIONS, RUNS, SCORES, Columns
from kdsteps.files.tables import read_table, table_metadata
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.accepted import accepted_lines
from kdsteps.study.study import Study

Files = Sequence[str | Path]


@dataclass(frozen=True)
class Results:
    """All results of a study.

    Attributes:
        metrics: The metrics of this study; each is a column of `runs`.
        runs: One row per student, with the columns of `run_columns`.
        teachers: One row per teacher: dataset, teacher, the metrics, `best_validation_accuracy`,
            `seconds` of its training and the path of its `predictions`.
        checks: One for each teacher, problems first: dataset, teacher, and what the stage `train`
            found (`TeacherCheck`, `ece`, `expected_accuracy`, `notes`).
        class_accuracy: {(pair, method): (K,)}, the mean over seeds; NaN for a class without test
            images.
        speeds: {pair: latency.json}.
        curves: One row per number of one epoch: pair, method, seed, epoch, name, value.
        teacher_curves: The same for teachers: dataset, teacher, epoch, name, value.
        scores: One row per layer of a teacher: dataset, teacher, columns of `SCORES`.
        plans: {(pair, method): plan} of the methods that have one.
        data: {dataset: summary}.
        origins: One row per file: what it is, git_commit, device, versions as text, seconds.
        accepted: Results of earlier code that were accepted, as `date: 1 train, 38 distil`.
        exports: export.json of each exported student.
        predictions: {(pair, method, seed): predictions.parquet}.
        images: {dataset: (images.npy, index.parquet)}.
        tunings: trials.json of each pair and method that was tuned, with both names.
    """

    metrics: tuple[Metric, ...]
    runs: pd.DataFrame
    teachers: pd.DataFrame
    class_accuracy: dict[tuple[str, str], np.ndarray]
    speeds: dict[str, dict[str, Any]]
    curves: pd.DataFrame
    teacher_curves: pd.DataFrame
    scores: pd.DataFrame
    plans: dict[tuple[str, str], dict[str, Any]]
    data: dict[str, dict[str, Any]]
    origins: pd.DataFrame
    accepted: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    exports: list[Record] = field(default_factory=list)
    predictions: dict[tuple[str, str, int], Path] = field(default_factory=dict)
    images: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    tunings: list[dict[str, Any]] = field(default_factory=list)


def load_results(inputs: Mapping[str, Files], study: Study) -> Results:
    """Load the files that the job graph lists for the report.

    Raises:
        KdstepsError: A file is damaged or incomplete, or no job of the study writes to its path.
    """
    metrics = all_metrics(study.params.evaluate.metrics)
    speeds = {
        names["pair"]: read_json(path)
        for path, names in _named(inputs["latencies"], "evaluate_latency", "latency")
    }
    teachers, teacher_curves, teacher_origins = _teachers(inputs, metrics)
    runs, curves, class_accuracy, origins = _runs(inputs, study, teachers, speeds, metrics)
    timed = [_origin(pair, "evaluate", found["provenance"]) for pair, found in speeds.items()]
    return Results(
        metrics=metrics,
        runs=runs,
        teachers=teachers,
        class_accuracy=class_accuracy,
        speeds=speeds,
        curves=curves,
        teacher_curves=teacher_curves,
        scores=_scores(inputs["layer_scores"]),
        plans={
            (names["pair"], names["method"]): read_json(path)
            for path, names in _named(inputs["plans"], "build", "plan")
        },
        data={
            names["dataset"]: read_json(path)
            for path, names in _named(inputs["summaries"], "prepare", "summary")
        },
        origins=pd.DataFrame(teacher_origins + origins + timed, columns=ORIGINS),
        accepted=[line for path in inputs.get("accepted", ()) for line in accepted_lines(path)],
        checks=_checks(inputs["teacher_checks"]),
        exports=list(map(read_record, inputs.get("exports", ()))),
        predictions=_by_run(inputs["predictions"], "evaluate", "predictions"),
        images=_images(inputs),
        tunings=[
            names | read_json(path)
            for path, names in _named(inputs.get("tunings", ()), "tune_choose", "trials")
        ],
    )


def run_columns(metrics: Sequence[Metric] = METRICS) -> Columns:
    """The columns of runs.parquet: what each run is, then its metrics."""
    types = {
        metric.name: pa.int64() if metric.unit == "count" else pa.float64() for metric in metrics
    }
    return {**RUNS, **types}


def run_rows(results: Results) -> dict[str, list[Any]]:
    """The runs as columns of `run_columns`; None where something was not measured."""
    runs = results.runs.astype(object)
    columns = run_columns(results.metrics)
    return {name: runs[name].where(runs[name].notna(), None).tolist() for name in columns}


def chance_level(summary: Mapping[str, Any], split: str = "test") -> float:
    """Accuracy of always predicting the most common class of a split's images."""
    images = summary.get("images_of_class", {}).get(split, [])
    return max(images) / sum(images) if sum(images) else 1 / len(summary["class_names"])


def finished(curves: pd.DataFrame, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Curves without the runs that ended early because they diverged.

    Args:
        curves: With a column `seed`.
        by: Columns that name a method. Where none of its runs finished, the longest are left.
    """
    last = curves.groupby([*by, "seed"])["epoch"].transform("max")
    return curves[last == curves.groupby(list(by))["epoch"].transform("max")]


ORIGINS = ["what", "stage", "git_commit", "device", "threads", "versions", "seconds"]


def identity(path: str | Path, rule: str, file: str) -> dict[str, str]:
    """Return the wildcards of the job that wrote `path`, by matching the end of the path.

    Raises:
        KdstepsError: The path does not match the rule's pattern.
    """
    pattern = graph.OUTPUTS[rule][file]
    expression = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(pattern))
    found = re.search(rf"(?:^|/){expression}$", Path(path).as_posix())
    if found is None:
        raise KdstepsError(f"{path}: this is not the path of a result; it should end as {pattern}")
    return found.groupdict()


def _named(paths: Files, rule: str, file: str) -> list[tuple[Path, dict[str, str]]]:
    return [(Path(path), identity(path, rule, file)) for path in paths]


def _teachers(
    inputs: Mapping[str, Files], metrics: Sequence[Metric]
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
        rows.append(names | measures | {"predictions": str(logits.get(key, ""))})
    columns = ["dataset", "teacher", "best_validation_accuracy", "seconds", "num_images"]
    columns += ["accuracy_per_class", "predictions", *(metric.name for metric in metrics)]
    table = pd.DataFrame(rows, columns=columns)
    return table, _joined(curves, ["dataset", "teacher", *HISTORY]), origins


def _images(inputs: Mapping[str, Files]) -> dict[str, tuple[Path, Path]]:
    indexes = {
        names["dataset"]: path for path, names in _named(inputs["indexes"], "prepare", "index")
    }
    return {
        names["dataset"]: (path, indexes[names["dataset"]])
        for path, names in _named(inputs["image_files"], "prepare", "images")
    }


def _checks(paths: Files) -> list[dict[str, Any]]:
    values = ("accuracy", "chance", "expected_accuracy", "temperature", "ece", "confident_errors")
    unknown = dict.fromkeys(values) | {"problems": [], "warnings": [], "notes": []}
    found = [
        unknown | names | read_json(path) for path, names in _named(paths, "train_check", "check")
    ]
    return sorted(found, key=lambda check: (not check["problems"], not check["warnings"]))


def _runs(
    inputs: Mapping[str, Files],
    study: Study,
    teachers: pd.DataFrame,
    speeds: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Metric],
) -> tuple[pd.DataFrame, pd.DataFrame, dict[tuple[str, str], np.ndarray], list[dict[str, Any]]]:
    histories = _by_run(inputs["histories"], "distil", "history")
    predictions = _by_run(inputs["predictions"], "evaluate", "predictions")
    logits = {
        (str(row["dataset"]), str(row["teacher"])): str(row["predictions"])
        for row in teachers.to_dict("records")
        if row["predictions"]
    }
    compared = [metric for metric in metrics if metric.source == "teacher"]
    rows, curves, origins = [], [], []
    classes: dict[tuple[str, str], list[np.ndarray]] = {}
    for run, path in _by_run(inputs["measures"], "evaluate", "measures").items():
        name, method, seed = run
        pair = study.pairs[name]
        measures = _measures(path)
        teacher = logits.get((pair.dataset, pair.taught_by))
        unknown = [metric for metric in compared if measures.get(metric.name) is None]
        if unknown and teacher and not measures["diverged"]:
            options = study.params.evaluate.model_dump()
            measures |= _compared(predictions[run], teacher, unknown, options)
        if (per_class := measures.get("accuracy_per_class")) is not None:
            classes.setdefault((name, method), []).append(np.array(per_class, dtype=float))
        names: dict[str, Any] = {"pair": name, "method": method, "seed": seed}
        what = f"{name}, {method}, seed {seed}"
        origins.append(_origin(what, "evaluate", measures["provenance"]))
        curve = _history(histories[run])
        curves.append(curve.assign(**names))
        origin = _origin(what, "distil", table_metadata(histories[run])["provenance"])
        origins.append(origin)
        speed = speeds.get(name, {}).get("students", {}).get(method, {})
        places = {"dataset": pair.dataset, "teacher": pair.taught_by, "student": pair.student}
        mine = {"seconds": origin["seconds"], "best_validation_accuracy": _best(curve)}
        rows.append(measures | speed | names | places | mine)
    measured = {(row["pair"], row["method"], row["seed"]) for row in rows}
    for run in sorted(histories.keys() - measured):  # of images without labels
        names = dict(zip(("pair", "method", "seed"), run, strict=True))
        curves.append(_history(histories[run]).assign(**names))
        what = "{}, {}, seed {}".format(*run)
        origins.append(_origin(what, "distil", table_metadata(histories[run])["provenance"]))
    table = pd.DataFrame(rows, columns=list(run_columns(metrics)))
    means = {key: np.mean(values, axis=0) for key, values in classes.items()}
    return table, _joined(curves, ["pair", "method", "seed", *HISTORY]), means, origins


def _by_run(paths: Files, rule: str, file: str) -> dict[tuple[str, str, int], Path]:
    return {
        (names["pair"], names["method"], int(names["seed"])): path
        for path, names in _named(paths, rule, file)
    }


def _measures(path: Path) -> dict[str, Any]:
    found = read_json(path)
    missing = [name for name in ("accuracy", "num_images", "provenance") if name not in found]
    if missing:
        raise KdstepsError(f"{path}: has no {missing[0]!r}; evaluate the network again")
    return {"diverged": False} | found


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


def _compared(
    student: Path, teacher: str, metrics: Sequence[Metric], options: Mapping[str, Any]
) -> dict[str, float | None]:
    """Compare a student that was trained without its teacher to it, from both predictions.

    Returns:
        {} where the predictions are not of the same images and classes.
    """
    import torch

    ours, theirs = _logits(student), _logits(teacher)
    if list(ours.index) != list(theirs.index):
        return {}
    pair = [torch.from_numpy(np.stack(table.tolist())) for table in (ours, theirs)]
    if pair[0].shape != pair[1].shape:
        return {}
    return compute(metrics, "teacher", *pair, num_classes=pair[0].shape[1], options=options)


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
