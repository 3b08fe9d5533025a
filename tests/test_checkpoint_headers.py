"""Teachers of other studies on images without labels: is what their files say respected?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import NET, STUDY

from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import write_checkpoint
from kdsteps.jobs.early_checks import check_study
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

HEADER = {"class_names": ["cat", "2"], "mean": [0.30000001, 0.4, 0.5], "std": [0.25, 0.25, 0.2]}
ADVICE = "normalize: {mean: [0.3, 0.4, 0.5], std: [0.25, 0.25, 0.2]}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_teacher(path: Path, **header: Any) -> None:
    model = {"family": NET["family"], "options": {}} | header.pop("model", {})
    write_checkpoint(path, {"weight": torch.zeros(2)}, {"model": model} | HEADER | header)


def study(data: dict[str, Any], **teacher: Any) -> Study:
    models = {
        "big": {**NET, "checkpoint": "teacher.safetensors", "train": {"epochs": 0}, **teacher},
        "small": NET,
    }
    birds = {"kind": "folder", "path": "birds", **data}
    sections = {
        "datasets": {"birds": birds},
        "models": models,
        "pairs": {"pair": {"dataset": "birds", "teacher": "big", "student": "small"}},
        "methods": {"embedding": {}},
    }
    return parse_study(STUDY | sections)


def said(data: dict[str, Any], **teacher: Any) -> list[str]:
    Path("birds").mkdir(exist_ok=True)
    Path("birds/1.png").touch()
    return [line for line in check_study(study(data, **teacher)) if "normalize" in line]


def test_a_normalization_that_is_not_that_of_the_checkpoint_is_in_doubt(folder):
    write_teacher(folder / "teacher.safetensors")
    (line,) = said({"labels": "none"})
    assert line.startswith("params.yaml: models.big: ")
    assert ADVICE in line


@pytest.mark.parametrize(
    "normalize", ["dataset", "none", {"mean": [0.3, 0.4, 0.5], "std": [0.25, 0.25, 0.2]}]
)
def test_a_normalization_that_params_yaml_names_is_meant(folder, normalize):
    write_teacher(folder / "teacher.safetensors")
    assert said({"labels": "none"}, normalize=normalize) == []


def test_the_normalization_of_the_network_counts_before_that_of_its_images(folder):
    own = {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]}
    write_teacher(folder / "teacher.safetensors", model={"normalize": own})
    (line,) = said({"labels": "none"})
    assert "normalize: {mean: [0.5, 0.5, 0.5], std: [0.1, 0.1, 0.1]}" in line


def test_files_from_elsewhere_say_nothing_of_their_normalization(folder):
    torch.save({"weight": torch.zeros(2)}, folder / "teacher.safetensors")
    assert said({"labels": "none"}) == []


@pytest.mark.parametrize(
    ("where", "data", "teacher"),
    [
        ("datasets.birds", ["2", "cat"], None),
        ("models.big", ["cat", "2"], ["2", "cat"]),
    ],
)
def test_classes_in_another_order_than_the_outputs_are_refused(folder, where, data, teacher):
    write_teacher(folder / "teacher.safetensors")
    given = {} if teacher is None else {"classes": teacher}
    with pytest.raises(KdstepsError) as refused:
        said({"labels": "none", "classes": data}, **given)
    assert f"{where}.classes: has another order" in str(refused.value)
    assert str(refused.value).endswith('write ["cat", "2"]')


@pytest.mark.parametrize("classes", [["cat", "2"], ["Katze", "zwei"]])
def test_classes_in_that_order_or_with_names_of_ones_own_are_taken(folder, classes):
    write_teacher(folder / "teacher.safetensors")
    assert said({"labels": "none", "classes": classes}, normalize="dataset") == []
