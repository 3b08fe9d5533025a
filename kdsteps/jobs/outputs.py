"""The files of every rule: their names, their paths, and which rules make up a stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

STAGES = (
    *("prepare", "train", "cache", "score", "build", "tune", "distil", "evaluate", "export"),
    "report",
)

Names = dict[str, str]
"""What distinguishes the jobs of one rule: the wildcards of its paths."""

OUTPUTS: dict[str, dict[str, str]] = {
    "prepare": {
        "images": "results/prepare/{dataset}/images.npy",
        "index": "results/prepare/{dataset}/index.parquet",
        "summary": "results/prepare/{dataset}/summary.json",
        "digest": "results/prepare/{dataset}/digest.json",
    },
    "train": {
        "model": "results/train/{dataset}/{teacher}/teacher.safetensors",
        "history": "results/train/{dataset}/{teacher}/history.parquet",
        "digest": "results/train/{dataset}/{teacher}/digest.json",
    },
    "train_check": {"check": "results/train/{dataset}/{teacher}/check.json"},
    "train_audit": {"audit": "results/train/audits/{pair}/audit.json"},
    "cache": {
        "features": "results/cache/{dataset}/{teacher}/features.parquet",
        "digest": "results/cache/{dataset}/{teacher}/digest.json",
    },
    "cache_outputs": {"ticket": "results/cache/{dataset}/{teacher}/outputs_{views}.json"},
    "score": {"scores": "results/score/{dataset}/{teacher}/scores.parquet"},
    "build": {"plan": "results/build/{pair}/{method}/plan.json"},
    "tune": {"trial": "results/tune/{pair}/{method}/{trial}/{seed}/trial.json"},
    "tune_choose": {
        "choice": "results/tune/{pair}/{method}/choice.json",
        "trials": "results/tune/{pair}/{method}/trials.json",
    },
    "distil": {
        "model": "results/distil/{pair}/{method}/{seed}/student.safetensors",
        "history": "results/distil/{pair}/{method}/{seed}/history.parquet",
        "digest": "results/distil/{pair}/{method}/{seed}/digest.json",
    },
    "evaluate": {
        "measures": "results/evaluate/students/{pair}/{method}/{seed}/measures.json",
        "predictions": "results/evaluate/students/{pair}/{method}/{seed}/predictions.parquet",
    },
    "evaluate_teacher": {
        "measures": "results/evaluate/teachers/{dataset}/{teacher}/measures.json",
        "predictions": "results/evaluate/teachers/{dataset}/{teacher}/predictions.parquet",
        "digest": "results/evaluate/teachers/{dataset}/{teacher}/digest.json",
    },
    "evaluate_latency": {"latency": "results/evaluate/latency/{pair}/latency.json"},
    "export": {"record": "results/export/{pair}/{student}/export.json"},
    "evaluate_probe": {
        "probe": "results/evaluate/probes/students/{pair}/{method}/{seed}/probe.json"
    },
    "evaluate_probe_teacher": {
        "teacher_probe": "results/evaluate/probes/teachers/{dataset}/{teacher}/probe.json"
    },
    "evaluate_probe_untrained": {
        "untrained_probe": "results/evaluate/probes/untrained/{pair}/{seed}/probe.json"
    },
    "report": {
        "page": "results/report/index.html",
        "runs": "results/report/runs.parquet",
        "metrics": "results/report/metrics.json",
        "accuracy": "results/report/accuracy.png",
        "curves": "results/report/curves.png",
        "quality": "results/report/quality.png",
        "size": "results/report/size.png",
        "accuracy_table": "results/report/plots/accuracy.csv",
        "curves_table": "results/report/plots/curves.csv",
        "quality_table": "results/report/plots/quality.csv",
    },
}
"""Every file of every rule, by its name in the stage's command.

`digest` is a small file with the digests of the others: where a job reads a large file, Snakemake
watches the digest next to it instead of reading the large file for every job.
"""

OPTIONAL: dict[str, dict[str, str]] = {
    "export": {
        "onnx": "model.onnx",
        "int8": "model.int8.onnx",
        "safetensors": "model.safetensors",
        "timm": "config.json",
        "card": "model_card.md",
    }
}
"""Files that a rule may also write next to its first output, by name; its first output says why one
of them is missing. Snakemake does not know of them, since it takes a missing file for a failure."""


def stage_of(rule: str) -> str:
    """The stage of a rule: `evaluate_teacher` belongs to `evaluate`."""
    return rule.split("_")[0]


def rules_of(stage: str) -> list[str]:
    """The rules of a stage."""
    return [rule for rule in OUTPUTS if stage_of(rule) == stage]


def names_of(rule: str) -> tuple[str, ...]:
    """The wildcards of a rule's paths, in their order."""
    path = next(iter(OUTPUTS[rule].values()))
    return tuple(name for _, name, _, _ in Formatter().parse(path) if name)


def outputs(rule: str, names: Names | None = None) -> dict[str, str]:
    """The files a job writes; without names, the path patterns of its rule."""
    patterns = OUTPUTS[rule]
    return dict(patterns) if names is None else {k: v.format(**names) for k, v in patterns.items()}


def optional_outputs(rule: str, outputs: Mapping[str, str | Path]) -> dict[str, Path]:
    """The files that a job may also write, by name, whether or not they exist.

    Args:
        outputs: The files that it always writes.
    """
    if not outputs:
        return {}
    first = Path(next(iter(outputs.values())))
    return {name: first.with_name(file) for name, file in OPTIONAL.get(rule, {}).items()}


ORDERING = frozenset({"check", "checks", "audit"})
"""Names of inputs that only have to be there before a student is trained: what they say about its
teachers changes nothing in it."""


def covered(rule: str, inputs: Collection[str]) -> frozenset[str]:
    """Names of inputs that need not be compared: another input has their digest, or changes with
    them; for students, the content of the teachers' checks does not matter."""
    if rule == "report":
        return frozenset({"image_files", "indexes", "predictions", "teacher_predictions"})
    known = ORDERING - {"audit"} | {"predictions"} if rule == "export" else ORDERING
    digests = {name.removesuffix("_digest") for name in inputs if name.endswith("_digest")}
    if "images" in digests:
        digests |= {"index", "summary"}
    return frozenset(digests | known)


def flat(given: Any) -> list[str]:
    """The paths in a path or a list of paths."""
    return [str(path) for path in given] if isinstance(given, list | tuple) else [str(given)]
