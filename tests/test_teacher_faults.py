"""Teachers from elsewhere that get other images than they expect: named, and right once set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdsteps.cli.main import main
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.study.loading import load_study

FAULTS = Path(__file__).parents[2] / "shared/faults"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FAULTS.is_dir(), reason="needs shared/faults"),
]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TEACHER = {"dataset": "dark", "teacher": "big"}
NORMALIZED = {"checkpoint": str(FAULTS / "teacher-imagenet-normalization.safetensors")}
SHIFTED = {"checkpoint": str(FAULTS / "teacher-classes-shifted.safetensors")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dark")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_study()
        assert main(["prepare", "--dataset", "dark"]) == 0
    return folder


def write_study(**big: Any) -> None:
    teacher = {"family": "timm", "name": "test_resnet", "train": {"epochs": 0}, **NORMALIZED, **big}
    content = {
        "datasets": {"dark": {"kind": "parquet", "train": str(FAULTS / "dark-images.parquet")}},
        "models": {"big": teacher, "small": {"family": "cifar_resnet", "depth": 8}},
        "pairs": {"pair": {"dataset": "dark", "teacher": "big", "student": "small"}},
        "methods": {"kd": {}},
        "seeds": [0],
        "prepare": {"validation": 0.25, "test": 0.25},
    }
    Path("params.yaml").write_text(yaml.safe_dump(content))


def checked(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status of the teacher's check, run as Snakemake runs it, and what it says."""
    assert main(["train", "--dataset", "dark", "--teacher", "big"]) == 0
    node = graph.node(load_study(), "train_check", TEACHER)
    outputs = graph.outputs("train_check", TEACHER)
    status = main(
        [
            *("train", "--settings", node.text),
            *("--inputs", *(f"{name}={path}" for name, path in node.inputs.items())),
            *("--outputs", *(f"{name}={path}" for name, path in outputs.items())),
        ]
    )
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("big", "named"),
    [(NORMALIZED, "ImageNet's normalization"), (SHIFTED, "`classes: [c, a, b]`")],
)
def test_a_planted_fault_is_stopped_and_named(prepared, monkeypatch, capsys, big, named):
    monkeypatch.chdir(prepared)
    write_study(**big)
    status, said = checked(capsys)
    assert status == 2
    assert named in said and "teacher_check: warn" in said


@pytest.mark.parametrize(
    "big", [NORMALIZED | {"normalize": IMAGENET}, SHIFTED | {"classes": ["c", "a", "b"]}]
)
def test_the_same_teacher_is_right_once_its_input_is_set(prepared, monkeypatch, capsys, big):
    monkeypatch.chdir(prepared)
    write_study(**big)
    assert checked(capsys)[0] == 0
    found = read_json(graph.outputs("train_check", TEACHER)["check"])
    assert found["accuracy"]["value"] == 1.0
    assert main(["evaluate", "--dataset", "dark", "--teacher", "big"]) == 0
    assert read_json(graph.outputs("evaluate_teacher", TEACHER)["measures"])["accuracy"] == 1.0


def test_a_check_that_only_warns_lets_the_study_go_on(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    write_study(**SHIFTED, train={"epochs": 0, "teacher_check": "warn"})
    assert checked(capsys)[0] == 0
    assert (
        "another class order"
        in read_json(graph.outputs("train_check", TEACHER)["check"])["problems"][0]
    )


def test_classes_that_the_data_set_does_not_have_are_refused(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    write_study(**SHIFTED, classes=["x", "a", "b"])
    assert main(["train", "--dataset", "dark", "--teacher", "big"]) == 2
    assert "classes: has no 'c'" in capsys.readouterr().err
