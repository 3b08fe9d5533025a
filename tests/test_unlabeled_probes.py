"""Frozen features: neighbors and linear classifiers by hand, and a whole study without labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from _commands import command
from PIL import Image
from sklearn.datasets import load_digits

from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.evaluation.probes import by_neighbors, linear_accuracy, probe, some_of_each_class
from kdsteps.files.checkpoints import read_checkpoint
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.models import build_model
from kdsteps.report.citation import results_digest
from kdsteps.report.probes import gap_closed, pair_probes
from kdsteps.report.results import load_results
from kdsteps.study.loading import load_study

# by hand


def test_neighbors_are_found_by_the_angle_and_counted_by_their_labels():
    references = torch.tensor([[1.0, 0], [9, 1], [0, 1], [1, 8], [1, 1]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    queries, expected = torch.tensor([[5.0, 0.1], [0.1, 5]]), torch.tensor([0, 0])
    assert by_neighbors(references, labels, queries, expected, 2) == (0.5, 0.5)
    accuracy, purity = by_neighbors(references, labels, queries, expected, 3)
    assert (accuracy, purity) == (0.5, pytest.approx((2 / 3 + 0) / 2))
    assert by_neighbors(references, labels, queries, expected, 99)[1] == pytest.approx(2 / 5)


def test_queries_a_few_at_a_time_have_the_same_neighbors(monkeypatch):
    torch.manual_seed(0)
    references, queries = torch.randn(50, 4), torch.randn(23, 4)
    given = (references, torch.arange(50) % 3, queries, torch.arange(23) % 3, 7)
    at_once = by_neighbors(*given)
    monkeypatch.setattr("kdsteps.evaluation.probes.SIMILARITIES", 5 * 50)
    assert by_neighbors(*given) == pytest.approx(at_once)


def test_of_equally_frequent_labels_the_nearer_ones_win():
    references = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    query, expected = torch.tensor([[1.0, 0]]), torch.tensor([1])
    assert by_neighbors(references, torch.tensor([1, 0, 0, 1]), query, expected, 4)[0] == 0
    assert by_neighbors(references, torch.tensor([1, 1, 0, 0]), query, expected, 4)[0] == 1


def test_a_fraction_of_the_labels_is_drawn_class_by_class():
    labels = torch.tensor([0] * 200 + [1] * 30)
    rows = some_of_each_class(labels, 0.1, np.random.default_rng(0))
    assert torch.bincount(labels[rows]).tolist() == [20, 3]
    few = some_of_each_class(labels, 0.001, np.random.default_rng(0))
    assert torch.bincount(labels[few]).tolist() == [1, 1]
    assert len(rows.unique()) == 23


def test_features_that_separate_the_classes_are_classified_in_any_units():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + 0.05 * torch.randn(60, 3)
    scaled = features * torch.tensor([1e-3, 1, 1e4])
    assert linear_accuracy(scaled[:30], labels[:30], scaled[30:], labels[30:]) == 1
    noise = torch.randn(60, 3)
    assert linear_accuracy(noise[:30], labels[:30], noise[30:], labels[30:]) < 0.8


def test_the_same_seed_draws_the_same_labels_and_nan_is_not_measured():
    torch.manual_seed(0)
    labels = torch.arange(100) % 4
    features = torch.eye(4)[labels] + torch.randn(100, 4)
    options: dict[str, Any] = {"neighbors": 5, "fractions": (0.1, 1.0), "draws": 3}
    given = (features[:60], labels[:60], features[60:], labels[60:])
    first, again, other = (probe(*given, **options, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["linear_10"] != other["linear_10"]
    assert first["linear_100"] == other["linear_100"] > first["linear_10"]
    broken = probe(features[:60] * torch.nan, *given[1:], **options, seed=0)
    assert set(broken.values()) == {None}
    assert broken.keys() == first.keys()


def test_the_fraction_of_the_gap_is_that_between_the_untrained_student_and_the_teacher():
    start, teacher = {"a": 0.2, "b": 0.6, "c": 0.1}, {"a": 0.7, "b": 0.5}
    assert gap_closed({"a": 0.6, "b": 0.6, "c": 0.1}, start, teacher) == {"a": pytest.approx(0.8)}


# a whole study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished study: digits in a bare folder, whose teacher has a classifier for ten classes."""
    place = tmp_path_factory.mktemp("unlabeled")
    pixels = (load_digits().images[:300] * 255 / 16).astype(np.uint8)
    for number, image in enumerate(pixels):
        file = place / "bare" / str(number % 3) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    big: dict[str, Any] = {"family": "cifar_resnet", "depth": 8, "widths": [8, 8, 16, 16]}
    torch.manual_seed(0)
    own = {name: value for name, value in big.items() if name != "family"}
    teacher = build_model("cifar_resnet", num_classes=10, in_channels=1, image_size=8, **own)
    torch.save(teacher.state_dict(), place / "teacher.pt")
    params = {
        "datasets": {
            "bare": {"kind": "folder", "path": "bare", "labels": "none"},
            "digits": {"kind": "digits", "size": 8},
        },
        "models": {
            "big": {**big, "checkpoint": "teacher.pt", "train": {"epochs": 0}},
            "small": {**big, "widths": [2, 2, 2, 2]},
        },
        "pairs": {"pair": {"dataset": "bare", "teacher": "big", "student": "small"}},
        "methods": {"embedding": {}, "feature_only": {}},
        "seeds": [0, 1],
        "distil": {"epochs": 1, "batch_size": 64, "mixup": 1.0},
        "evaluate": {"latency_runs": 2},
        "probe": {"dataset": "digits", "images": 500, "fractions": [0.05, 1.0], "draws": 2},
    }
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        study = load_study()
        jobs = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
        while jobs:
            rule, names = next(job for job in jobs if _is_ready(call_of(study, *job)))
            jobs.remove((rule, names))
            run_call(call_of(study, rule, names))
        yield place


def _is_ready(call: Any) -> bool:
    lists = [path for paths in call.lists.values() for path in paths]
    return all(path.is_file() for path in (*call.inputs.values(), *lists))


@pytest.mark.slow
def test_students_are_backbones_and_the_teacher_lost_its_classifier(folder):
    for path in folder.glob("results/*/**/*.safetensors"):
        weights, header = read_checkpoint(path)
        assert not [name for name in weights if name.startswith("fc")], path
        assert (header["num_classes"], header["class_names"]) == (0, [])
    (check,) = folder.glob("results/train/**/check.json")
    found = read_json(check)
    assert found["accuracy"] is None
    (warning,) = found["warnings"]
    assert "no labels" in warning


@pytest.mark.slow
def test_all_networks_are_measured_on_the_same_images(folder):
    paths = sorted(folder.glob("results/evaluate/probes/**/probe.json"))
    found = [read_json(path) for path in paths]
    assert len(found) == 4 + 1 + 2
    assert {(each["references"], each["queries"]) for each in found} == {(500, 359)}
    names = ["neighbor_accuracy", "neighbor_purity", "linear_5", "linear_100"]
    for each in found:
        assert list(each["values"]) == names
        assert all(0 < value < 1 for value in each["values"].values())


@pytest.mark.slow
def test_by_name_evaluating_a_student_measures_its_features(folder):
    path = folder / "results/evaluate/probes/students/pair/embedding/0/probe.json"
    before = read_json(path)
    path.unlink()
    done = command(folder, "evaluate", "--pair", "pair", "--method", "embedding", "--seed", "0")
    assert done.returncode == 0, done.stderr
    again = read_json(path)
    assert again["values"] == pytest.approx(before["values"])


@pytest.mark.slow
def test_the_report_shows_how_fast_the_networks_are(folder):
    page = (folder / "results/report/index.html").read_text()
    cost = " ".join(re.sub("<[^>]+>", " ", page.split('<section id="cost">')[1]).split())
    timed = read_json(folder / "results/evaluate/latency/pair/latency.json")
    for name, found in {"big, teacher": timed["teacher"], "embedding": timed["students"]}.items():
        found = found.get("embedding", found)
        assert re.search(f"{name} .*?{found['latency_ms']:.2f}", cost)
    assert "<h2>Cost</h2>" in page and "runs.parquet" not in page


@pytest.mark.slow
def test_the_digest_of_the_report_is_that_of_the_features(folder, monkeypatch):
    monkeypatch.chdir(folder)
    study = load_study()
    call = call_of(study, "report", {})
    results = load_results(call.lists, study)
    first, second = pair_probes(call.lists, results, study), pair_probes(call.lists, results, study)
    assert results_digest(results) is None
    found = results_digest(results, first)
    assert f"<code>{found}</code>" in (folder / "results/report/index.html").read_text()
    second[0].rows[0].values.clear()
    assert results_digest(results, second) != found


@pytest.mark.slow
def test_the_report_shows_the_gap_with_its_interval(folder):
    page = (folder / "results/report/index.html").read_text()
    assert "Frozen features" in page
    assert "small, untrained" in page
    assert "Images without labels" in page
    assert "Comparison of methods" not in page
    metrics = read_json(folder / "results/report/metrics.json")["features"]["pair"]
    teacher, start = metrics["teacher"], metrics["untrained"]
    for method in ("embedding", "feature_only"):
        found = metrics["methods"][method]
        assert {"neighbor_accuracy", "linear_100"} <= found.keys()
        if teacher["linear_100"] > start["linear_100"]:
            assert "linear_100_gap_closed" in found
