"""When the check of a teacher warns, what it costs, and which teachers are refused before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _teachers import COUNTS, RECIPE, Teachers, write_shapes
from safetensors.torch import save_file
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs import graph
from kdsteps.jobs.published_weights import classifier_problems
from kdsteps.jobs.settings import CheckSettings
from kdsteps.study.loading import load_study

NETWORK: dict[str, Any] = {"family": "cifar_resnet", "depth": 8, "widths": [2, 2, 2, 2]}
BRIEFLY_DISTILLED = {"epochs": 1, "batch_size": 64}
BRIEFLY = BRIEFLY_DISTILLED | {"teacher_check": "warn"}
PUBLISHED = {"family": "timm", "name": "resnet18", "pretrained": True, "train": {"epochs": 0}}
DRAWN_TEST, DRAWN_VALIDATION = "the test images were drawn", "the validation images were drawn"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def outside(teachers: Teachers, name: str = "own") -> dict[str, Any]:
    """The entry of a teacher from elsewhere, with the weights of one that was trained here."""
    save_file(teachers.weights(name), "weights.safetensors")
    train = {"epochs": 0, "teacher_check": "warn"}
    return NETWORK | {"checkpoint": "weights.safetensors", "train": train}


def about_drawn(warnings: list[str]) -> list[str]:
    return [warning for warning in warnings if "drawn" in warning]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "validation", "test"), None),
        (("train", "test"), DRAWN_VALIDATION),
        (("train", "validation"), DRAWN_TEST),
        (("train",), DRAWN_TEST),
    ],
)
def test_only_a_teacher_from_elsewhere_with_a_split_drawn_here_may_have_seen_the_images(
    splits, expected, shapes, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    dataset = {"kind": "parquet"} | {split: shapes[split] for split in splits}
    teachers = Teachers(dataset, train=BRIEFLY)
    assert about_drawn(teachers.check(capsys, "own", **NETWORK).found["warnings"]) == []
    assert "drawn" not in caplog.text
    found = about_drawn(teachers.check(capsys, "outside", **outside(teachers)).found["warnings"])
    if expected is None:
        assert found == []
        assert "drawn" not in caplog.text
    else:
        (warning,) = found
        assert expected in warning
        assert expected in caplog.text


@contextmanager
def counted() -> Iterator[list[int]]:
    """The number of images in each call of a network's first convolution."""
    calls: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            calls.append(len(inputs[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def test_a_check_is_one_pass_and_a_glance_at_other_forms(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    teachers = Teachers(shapes, train=RECIPE | {"epochs": 5})
    network = NETWORK | {"widths": [8, 8, 16, 32]}
    assert teachers.check(capsys, "own", **network).status == 0
    content = {"own": network, "outside": outside(teachers) | network}
    seen = {}
    for name, model in content.items():
        teachers.train(name, **model)
        with counted() as calls:
            checked = teachers.check_trained(capsys, name)
        assert 0.3 < checked.found["accuracy"]["value"] < 0.98
        seen[name] = calls
    batches, again = [256, COUNTS["validation"] - 256], [5, 11]
    assert seen["own"] == [*batches, *again]
    tried = [1, 1]  # whether the network works at the sizes 28 and 32
    larger = [16, 16, 11, 11, 10]  # images of these sizes, some at a time
    assert seen["outside"] == [*batches, *tried, *[32] * 3, *larger, 32, *again]


FORGETFUL = """
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(F.dropout(self.stem(images).mean(dim=(2, 3))))  # in evaluation as well
"""


def test_a_teacher_that_draws_in_evaluation_is_refused(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(FORGETFUL)
    teachers = Teachers(shapes, train=RECIPE | {"epochs": 1})
    checked = teachers.check(capsys, "forgetful", family="./nets.py:Net")
    assert checked.status == 2
    assert "in another pass, as with dropout that stays on in eval mode" in checked.said


def test_without_validation_images_the_check_says_that_there_was_none(
    shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    dataset = {"kind": "parquet", "train": shapes["train"], "test": shapes["test"]}
    teachers = Teachers(dataset, train=BRIEFLY, prepare={"validation": 0})
    found = teachers.check(capsys, "own", **NETWORK).found
    assert found["accuracy"] is None
    assert "no validation images" in found["warnings"][0]


def planned(
    folder: Path, kind: str = "digits", methods: dict[str, Any] | None = None, **model: Any
) -> None:
    """Plan a study with a teacher, as snakemake does."""
    content = {
        "datasets": {"data": {"kind": kind} | ({} if kind == "digits" else {"path": "images"})},
        "models": {"big": PUBLISHED | model, "small": NETWORK},
        "pairs": {"pair": {"dataset": "data", "teacher": "big", "student": "small"}},
        "methods": methods or {"kd": {}},
        "seeds": [0],
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    for problem in classifier_problems(load_study(folder / "params.yaml")):
        raise KdstepsError(problem)


@pytest.mark.parametrize(
    "model", [{}, {"family": "torchvision"}, {"name": "resnet18.a1_in1k"}, {"classes": ["a", "b"]}]
)
def test_published_weights_for_other_classes_are_refused_while_planning(tmp_path, model):
    with pytest.raises(
        KdstepsError, match=r"^models.big: has 0 epochs.* (10|2) classes.* kd .*epoch"
    ):
        planned(tmp_path, **model)


@pytest.mark.parametrize(
    "method", [{"fitnet": {"kd_weight": 1}}, {"semckd": {}}, {"simkd": {}}, {"block_kd": {}}]
)
def test_methods_on_features_that_need_the_classifier_too_are_refused(tmp_path, method):
    with pytest.raises(KdstepsError, match=f"which {next(iter(method))} needs"):
        planned(tmp_path, methods={"fitnet": {}} | method)


def test_a_teacher_without_a_classifier_is_planned_for_methods_on_features(tmp_path):
    planned(tmp_path, methods={"labels": {}, "fitnet": {}, "feature_only": {}, "sp": {}})


def test_the_features_of_a_teacher_with_a_new_classifier_can_be_learned(
    shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    teachers = Teachers(shapes, train=BRIEFLY, distil=BRIEFLY_DISTILLED, methods={"fitnet": {}})
    teachers.train("own", **NETWORK)
    weights = {k: v for k, v in teachers.weights("own").items() if not k.startswith("fc.")}
    save_file(weights, "weights.safetensors")
    headless = NETWORK | {"checkpoint": "weights.safetensors", "train": {"epochs": 0}}
    checked = teachers.check(capsys, "headless", **headless)
    assert checked.status == 0
    assert checked.found["accuracy"] is None and checked.found["problems"] == []
    assert any("fc.weight, fc.bias" in warning for warning in checked.found["warnings"])
    assert teachers.run("distil", pair="headless", method="fitnet", seed="0") == 0
    teachers.content["methods"]["kd"] = {}
    checked = teachers.check(capsys, "headless", **headless)
    assert checked.status == 2
    assert "fc.weight" in checked.said and "do not need the teacher's logits" in checked.said


def test_a_check_has_the_settings_of_earlier_versions_unless_it_is_of_features_alone():
    settings = {"on_failure": "stop", "expected_accuracy": None, "batch_size": 8}
    assert CheckSettings(**settings).as_json() == settings
    alone = settings | {"features_only": True}
    assert CheckSettings(**alone).as_json() == alone


@pytest.mark.parametrize(
    "model",
    [
        {"train": {"epochs": 1}},
        {"classes": [str(number) for number in range(1000)]},
        {"name": "hf-hub:somebody/resnet18-for-digits"},
        {"pretrained": False, "checkpoint": "weights.pth"},
    ],
)
def test_teachers_that_may_have_a_classifier_are_planned(tmp_path, model):
    planned(tmp_path, **model)


def test_the_classes_of_images_are_known_once_they_are_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    planned(tmp_path, kind="folder")
    summary = tmp_path / graph.outputs("prepare", {"dataset": "data"})["summary"]
    summary.parent.mkdir(parents=True)
    summary.write_text("damaged")
    planned(tmp_path, kind="folder")
    write_json(summary, {"class_names": ["cat", "dog", "owl"]})
    with pytest.raises(KdstepsError, match="3 classes"):
        planned(tmp_path, kind="folder")


def test_what_planning_cannot_know_is_refused_by_the_check(shapes, tmp_path, monkeypatch, capsys):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    write_json(
        tmp_path / "published" / "config.json",
        {
            "architecture": "test_resnet",
            "num_classes": 7,
            "pretrained_cfg": {"num_classes": 7, "classifier": "fc"},
        },
    )
    network = timm.create_model("test_resnet", num_classes=7)
    save_file(network.state_dict(), tmp_path / "published" / "model.safetensors")
    torch.save(network.state_dict(), "weights.pth")
    teachers = Teachers(shapes)
    entry = {"family": "timm", "name": "test_resnet", "train": {"epochs": 0}}
    for weights in (
        {"name": f"local-dir:{tmp_path}/published", "pretrained": True},
        {"checkpoint": "weights.pth"},
    ):
        checked = teachers.check(capsys, "big", **entry | weights)
        assert checked.status == 2
        assert "fc.weight" in checked.said
        assert "epochs above 0" in checked.said and "8 classes" in checked.said
        assert str(weights.get("checkpoint") or weights["name"]) in checked.said
