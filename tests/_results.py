"""Plausible results of a study that was never run, in the files that the stages write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from kdsteps.data.hashes import pixel_hash
from kdsteps.files.arrays import write_array
from kdsteps.files.columns import HISTORY, INDEX, PREDICTIONS, SCORES
from kdsteps.files.tables import write_table
from kdsteps.files.text import write_json
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.report.page import render
from kdsteps.report.results import load_results
from kdsteps.report.tables import pair_tables
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

NUM_TEST, NUM_CLASSES = 360, 10
TEACHER_COST = (272_000, 31_000_000)  # parameters and MACs
GAINS = {"labels": 0.0, "kd": 0.012, "block_kd": 0.03, "feature_only": -0.05}
TERMS = {
    "labels": ("labels",),
    "kd": ("labels", "kd"),
    "block_kd": ("labels", "kd", "stones_labels", "stones_kd", "cross"),
    "feature_only": ("classifier", "block3", "block6", "block9"),
}


@dataclass(frozen=True)
class Look:
    """What made-up results are of.

    Attributes:
        shape: (C, H, W) of the images.
        classes: Their names.
        num_test: Test images; there are no others.
        epochs: Of every training.
        terms: Loss terms of methods that `TERMS` does not have.
        layers: Of the teacher.
    """

    shape: tuple[int, int, int] = (1, 16, 16)
    classes: Sequence[str] = tuple(map(str, range(NUM_CLASSES)))
    num_test: int = NUM_TEST
    epochs: int = 15
    terms: tuple[str, ...] = ("labels",)
    layers: Sequence[str] = field(default_factory=lambda: LAYERS)


PAIR = {"dataset": "digits", "teacher": "resnet20", "student": "resnet8"}


def make_study(
    seeds: int = 3, methods: Mapping[str, Any] | tuple[str, ...] = tuple(GAINS), **more: Any
) -> Study:
    return parse_study(
        {
            "datasets": {"digits": {"kind": "digits", "size": 16}},
            "models": {
                "resnet20": {"family": "cifar_resnet", "depth": 20},
                "resnet8": {"family": "cifar_resnet", "depth": 8, "widths": [4, 4, 8, 16]},
            },
            "pairs": {"resnet20-resnet8": PAIR},
            "methods": dict(methods)
            if isinstance(methods, Mapping)
            else {name: {} for name in methods},
            "seeds": list(range(seeds)),
            "report": {"title": "Digits: a small ResNet learns from a larger one"},
        }
        | more
    )


@patch("os.fsync", lambda file: None)  # thousands of files that no crash has to survive
def make_results(
    root: Path, study: Study, gains: Mapping[str, float] | None = None, look: Look | None = None
) -> Job:
    """Write every file that the report of `study` reads, and the job that reads them.

    Args:
        gains: By which each method is above 93%; GAINS, and none for other methods.
    """
    rng = np.random.default_rng(0)
    gains, look = GAINS if gains is None else gains, look or Look()
    for names in graph.jobs(study, "prepare"):
        _prepared(root, names, look, rng)
    for names in graph.jobs(study, "train"):
        path = root / graph.outputs("train", names)["history"]
        _history(path, ("labels",), 0.985, rng, look.epochs)
    for names in graph.jobs(study, "train_check"):
        write_json(root / graph.outputs("train_check", names)["check"], CHECK)
    for names in graph.jobs(study, "evaluate_teacher"):
        _evaluation(root, "evaluate_teacher", names, 0.985, TEACHER_COST, False, rng, look)
    for names in graph.jobs(study, "evaluate_latency"):
        write_json(root / graph.outputs("evaluate_latency", names)["latency"], _latency(study))
    for names in graph.jobs(study, "score"):
        _scores(root / graph.outputs("score", names)["scores"], look.layers)
    for names in graph.jobs(study, "build"):
        plan = _plan(study, names["method"], look.layers)
        write_json(root / graph.outputs("build", names)["plan"], plan)
    luck = {seed: rng.normal(0, 0.006) for seed in study.seeds}
    for names in graph.jobs(study, "distil"):
        name, method = names["method"], study.methods[names["method"]].method
        accuracy = 0.93 + gains.get(name, 0.0) + luck[int(names["seed"])] + rng.normal(0, 0.003)
        terms = TERMS.get(name, look.terms)
        _history(
            root / graph.outputs("distil", names)["history"], terms, accuracy, rng, look.epochs
        )
        taught = method != "labels"
        _evaluation(root, "evaluate", names, accuracy, _cost(method), taught, rng, look)
    return report_job(root, study)


def _prepared(root: Path, names: graph.Names, look: Look, rng: np.random.Generator) -> None:
    """Images of one shape, of noise around a gray that depends on the class."""
    paths = {name: root / path for name, path in graph.outputs("prepare", names).items()}
    labels = np.arange(look.num_test) % len(look.classes)
    noise = rng.integers(0, 60, (look.num_test, *look.shape), dtype=np.uint8)
    images = noise + (labels * 37 % 190).astype(np.uint8)[:, None, None, None]
    paths["images"].parent.mkdir(parents=True, exist_ok=True)
    write_array(paths["images"], images)
    rows = {
        "image": np.arange(look.num_test),
        "label": labels,
        "split": ["test"] * look.num_test,
        "source": [f"{look.classes[label]}/{row}.png" for row, label in enumerate(labels)],
        "hash": [pixel_hash(image) for image in images],
    }
    write_table(paths["index"], rows, INDEX)
    per_class = np.bincount(labels, minlength=len(look.classes)).tolist()
    if look.classes == Look().classes:
        write_json(paths["summary"], SUMMARY)
        return
    changed = {
        "class_names": list(look.classes),
        "image_shape": list(look.shape),
        "images": SUMMARY["images"] | {"test": look.num_test},
        "images_of_class": dict.fromkeys(("train", "validation", "test"), per_class),
    }
    write_json(paths["summary"], SUMMARY | changed)


def render_page(job: Job) -> str:
    """The page of a report job, without its other files."""
    study = parse_study(job.settings.study)
    results = load_results(job.lists, study)
    tables = pair_tables(results, study.references, 0.95)
    return render(results, tables, study)


def make_sweep(seeds: int = 5) -> Study:
    """A study with one student per teacher layer, which learns from that layer alone."""
    methods: dict[str, Any] = {"labels": {}, "feature_only": {}}  # the latter has layers scored
    for layer in LAYERS[1:]:
        methods[f"from_{layer}"] = {"method": "feature_only", "build": {"select": [layer]}}
    return make_study(seeds, methods)


def report_job(root: Path, study: Study) -> Job:
    inputs = graph.inputs(study, "report", {})
    return Job(
        settings=graph.settings(study, "report", {}),
        inputs={},
        lists={name: [root / path for path in paths] for name, paths in inputs.items()},
        outputs={name: root / path for name, path in graph.outputs("report", {}).items()},
    )


def _provenance(seconds: float) -> dict[str, Any]:
    versions = {"python": "3.11.7", "torch": "2.13.0", "torchvision": "0.28.0", "timm": "1.0.31"}
    place = {"git_commit": "0a1b2c3d4e5f", "device": "cpu x86_64", "threads": 2}
    return {"versions": versions, "seconds": seconds} | place


def _history(
    path: Path, terms: tuple[str, ...], accuracy: float, rng: np.random.Generator, epochs: int
) -> None:
    rows: dict[str, list[Any]] = {"epoch": [], "name": [], "value": []}
    for epoch in range(1, epochs + 1):
        fall = np.exp(-epoch / 4)
        values = {
            term: float(0.1 + 2.2 * fall / (1 + place) * (1 + 0.05 * rng.normal()))
            for place, term in enumerate(terms)
        }
        values["total"] = sum(values.values())
        values["learning_rate"] = 0.05 * (1 - epoch / epochs)
        values["validation_accuracy"] = float(accuracy * (1 - 0.7 * fall) + 0.004 * rng.normal())
        values["validation_loss"] = float(0.2 + fall)
        for name, value in values.items():
            for column, entry in zip(rows, (epoch, name, value), strict=True):
                rows[column].append(entry)
    write_table(path, rows, HISTORY, {"made": "up"}, _provenance(41.0 + len(terms)))


def _evaluation(
    root: Path,
    rule: str,
    names: graph.Names,
    accuracy: float,
    cost: tuple[int, int],
    taught: bool,
    rng: np.random.Generator,
    look: Look,
) -> None:
    count, num_classes = look.num_test, len(look.classes)
    labels = np.arange(count) % num_classes
    logits = rng.normal(0, 1, (count, num_classes)).astype(np.float32)
    predicted = labels.copy()
    rows = np.arange(count)
    ease = rows * 0.618 % 1 + rng.normal(0, 0.1, count)  # much the same for all networks
    wrong = ease.argsort()[: round((1 - accuracy) * count)]
    predicted[wrong] = (labels[wrong] + 1 + wrong % min(3, num_classes - 1)) % num_classes
    logits[rows, predicted] += 6
    paths = graph.outputs(rule, names)
    predicted = logits.argmax(axis=1)
    table = {"image": rows, "label": labels, "predicted": predicted, "logits": list(logits)}
    write_table(root / paths["predictions"], table, PREDICTIONS, {})
    found = {
        "accuracy": float((predicted == labels).mean()),
        "top5_accuracy": 0.998 if num_classes > 5 else None,
        "nll": float(0.1 + 2 * (1 - accuracy)),
        "ece": float(0.01 + 0.2 * (1 - accuracy)),
        "agreement": float(accuracy - 0.01) if taught else None,
        "kl_to_teacher": float(1.2 * (1 - accuracy)) if taught else None,
        "parameters": cost[0],
        "macs": cost[1],
        "size_mib": cost[0] * 4 / 2**20,
        "accuracy_per_class": [
            float((predicted[labels == k] == k).mean()) if (labels == k).any() else None
            for k in range(num_classes)
        ],
    }
    about = {"num_images": count, "diverged": False, "settings": {}}
    write_json(root / paths["measures"], about | found | {"provenance": _provenance(2.0)})


def _cost(method: str) -> tuple[int, int]:
    """Parameters and MACs of what a method deploys: SimKD adds the teacher's classifier."""
    return (12_300, 2_000_000) if method == "simkd" else (7_900, 1_200_000)


def _latency(study: Study) -> dict[str, Any]:
    return {
        "teacher": _speed(TEACHER_COST),
        "students": {name: _speed(_cost(entry.method)) for name, entry in study.methods.items()},
        "batch_size": 64,
        "settings": {},
        "provenance": _provenance(3.0),
    }


def _speed(cost: tuple[int, int]) -> dict[str, Any]:
    latency = cost[1] / 2e7
    return {
        "latency_ms": latency,
        "latency_p90_ms": 1.2 * latency,
        "images_per_second": 5000 / latency,
        "threads": 2,
    }


LAYERS = ["stem", *(f"block{number}" for number in range(1, 10))]
SUMMARY = {
    "class_names": [str(digit) for digit in range(NUM_CLASSES)],
    "image_shape": [1, 16, 16],
    "mean": [0.305],
    "std": [0.376],
    "images": {"train": 1220, "validation": 217, "test": 360},
    "images_of_class": {"train": [122] * 10, "validation": [22] * 7 + [21] * 3, "test": [36] * 10},
    "duplicates": [
        {
            "splits": ["train", "test"],
            "images": 2,
            "of_other_class": 1,
            "examples": [["row 3", "row 9"]],
        }
    ],
    "broken": [],
}


CHECK = {
    "accuracy": {"value": 0.982, "low": 0.953, "high": 0.993, "count": 217},
    "chance": 0.101,
    "expected_accuracy": None,
    "temperature": 0.93,
    "ece": 0.011,
    "confident_errors": 0.005,
    "problems": [],
    "warnings": [],
    "notes": [],
}


def _scores(path: Path, layers: Sequence[str]) -> None:
    depth = np.arange(len(layers))
    separation = 0.3 + 0.5 / (1 + np.exp(-(depth - 5)))
    information, efficiency = 0.6 - 0.3 * depth / len(layers), 0.4 + 0.2 * depth / len(layers)
    root = np.sqrt(information * efficiency)
    quality = separation + root
    rank = (-quality).argsort().argsort() + 1
    rows = {
        "layer": list(layers),
        "depth": depth,
        "shape": [[16, 16, 16] if d < 4 else [32, 8, 8] if d < 7 else [64, 4, 4] for d in depth],
        "separation": separation,
        "information": information,
        "efficiency": efficiency,
        "quality": quality,
        "root_information_efficiency": root,
        "rank": rank,
        "chosen": rank <= 3,
        "reason": [
            f"quality {value:.3f}, rank {place}" for value, place in zip(quality, rank, strict=True)
        ],
    }
    write_table(path, rows, SCORES, {})


def _joint(number: int, kind: str, layers: Sequence[str]) -> dict[str, Any]:
    sizes = {1: (16, 16, 16), 2: (32, 8, 8), 3: (64, 4, 4)}
    small = (sizes[number][0] // 4, *sizes[number][1:])
    return {
        "student_layer": f"block{number}",
        "teacher_layer": layers[(len(layers) - 1) // 3 * number],
        "student_shape": list(small),
        "teacher_shape": list(sizes[number]),
        kind: "conv_norm" if kind == "connector" else "conv",
        "why": f"channels {small[0]} to {sizes[number][0]} by a 1x1 convolution and normalisation",
        "parameters": small[0] * sizes[number][0] + 2 * sizes[number][0],
    }


def _plan(study: Study, name: str, layers: Sequence[str]) -> dict[str, Any]:
    """A plan of the kind that a method needs."""
    networks: dict[str, Any] = {
        "teacher": {
            "layers": list(layers),
            "stages": list(layers[3::3]),
            "parameters": 272_000,
            "multiply_adds": 31_000_000,
        },
        "student": {
            "layers": LAYERS[:4],
            "stages": LAYERS[1:4],
            "parameters": 7_900,
            "multiply_adds": 1_200_000,
        },
    }
    if study.methods[name].plan == "stones":
        return networks | {"plan": "stones", "stones": [_stone(n, layers) for n in (1, 2, 3)]}
    pairs = [_joint(number, "projector", layers) for number in (1, 2, 3)]
    chosen_by = "as the stage score chose"
    if name.startswith("from_"):
        pairs = [pairs[0] | {"teacher_layer": name.removeprefix("from_")}]
        chosen_by = "named in params.yaml"
    return networks | {"plan": "pairs", "pairs": pairs, "chosen_by": chosen_by}


def _stone(number: int, layers: Sequence[str]) -> dict[str, Any]:
    return _joint(number, "connector", layers) | {
        "name": f"N{number}",
        "multiply_adds": 1_000_000 * (4 - number) * 7,
        "student_blocks": LAYERS[: number + 1],
        "teacher_blocks": [*layers[(len(layers) - 1) // 3 * number + 1 :], "head"],
        "weight": 0.5 ** (3 - number),
    }
