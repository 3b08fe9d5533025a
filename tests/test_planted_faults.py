"""Ten planted faults of a teacher: each is stopped or named, through loading and the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _teachers import CLASSES, OTHER_SHAPES, Checked, Teachers, write_shapes
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.slow
NETWORK: dict[str, Any] = {"family": "cifar_resnet", "depth": 8, "widths": [8, 8, 16, 32]}
HEAD = ("fc.weight", "fc.bias")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
BYTES = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}

Weights = dict[str, Tensor]
Plant = Callable[..., Checked]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teachers]:
    """A study in the current folder."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = Teachers(write_shapes(folder))
        yield study


@pytest.fixture
def plant(teachers: Teachers, capsys: pytest.CaptureFixture[str]) -> Plant:
    """A function that checks weights as a teacher from elsewhere."""

    def planted(weights: Weights, **model: Any) -> Checked:
        save_file(weights, "planted.safetensors")
        entry = NETWORK | {"checkpoint": "planted.safetensors", "train": {"epochs": 0}}
        return teachers.check(capsys, "planted", **entry | model)

    return planted


@pytest.fixture
def trained(teachers: Teachers, capsys: pytest.CaptureFixture[str]) -> Callable[..., Weights]:
    """A function that trains a good teacher, once for all tests, and returns its weights."""

    def train(name: str, **model: Any) -> Weights:
        if name not in teachers.content["models"]:
            assert teachers.check(capsys, name, **NETWORK | model).status == 0
        return teachers.weights(name)

    return train


@pytest.fixture
def good(trained: Callable[..., Weights]) -> Weights:
    return trained("good")


@pytest.fixture
def elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Weights]:
    """A function that trains a teacher on other pictures, arguments as of `write_shapes`."""

    def train(**pictures: Any) -> Weights:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            study = Teachers(write_shapes(tmp_path, **pictures))
            study.content["train"] = study.content["train"] | {"teacher_check": "warn"}
            assert study.check(capsys, "other", **NETWORK).status == 0
            return study.weights("other")

    return train


def changed(
    weights: Weights, names: tuple[str, ...], change: Callable[[Tensor], Tensor]
) -> Weights:
    """The weights with some of them changed."""
    return {
        name: change(tensor).contiguous() if name in names else tensor
        for name, tensor in weights.items()
    }


def assert_stopped(checked: Checked, *named: str) -> None:
    assert checked.status == 2
    assert checked.found == {}
    assert all(text in checked.said for text in named), checked.said


def test_the_same_teacher_without_a_fault_passes(plant, good):
    found = plant(good).found
    assert found["accuracy"]["value"] > 0.9
    assert (found["problems"], found["warnings"]) == ([], [])
    assert "data set's mean and std" in found["notes"][0]


def test_another_normalization_is_named_and_right_once_it_is_set(plant, trained):
    weights = trained("imagenet", normalize=IMAGENET)
    named = "`normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}`"
    assert_stopped(plant(weights), named, "teacher_check: warn")
    found = plant(weights, normalize=IMAGENET).found
    assert found["problems"] == found["warnings"] == []
    assert "[0.485, 0.456, 0.406]" in found["notes"][0]


def test_another_image_size_is_named_and_right_once_it_is_set(tmp_path, monkeypatch, capsys):
    weights: Weights = {}
    for size in (32, 64):  # at which the teacher was trained, and that of the study
        (tmp_path / str(size)).mkdir()
        monkeypatch.chdir(tmp_path / str(size))
        study = Teachers(write_shapes(Path.cwd()) | {"resize": size})
        if size == 32:
            assert study.check(capsys, "good", **NETWORK).status == 0
            weights = study.weights("good")
    save_file(weights, "planted.safetensors")
    entry = NETWORK | {"checkpoint": "planted.safetensors", "train": {"epochs": 0}}
    assert_stopped(study.check(capsys, "planted", **entry), "with `image_size: 32`")
    found = study.check(capsys, "resized", **entry, image_size=32).found
    assert found["problems"] == found["warnings"] == []


def test_another_normalization_and_another_order_are_named_together(plant, trained):
    order = [1, 2, 3, 0, 4, 5, 7, 6]
    weights = changed(trained("pixels", normalize=BYTES), HEAD, lambda tensor: tensor[order])
    right = [CLASSES[number] for number in order]
    assert_stopped(
        plant(weights),
        "with `normalize: {mean: [0, 0, 0], std: [0.00392, 0.00392, 0.00392]}`",
        f"in another class order, `classes: [{', '.join(right)}]`",
    )
    assert plant(weights, normalize=BYTES, classes=right).found["problems"] == []


def test_permuted_classes_are_named_with_the_right_order(plant, good):
    order = [1, 2, 3, 0, 4, 5, 7, 6]
    weights = changed(good, HEAD, lambda tensor: tensor[order])
    right = [CLASSES[number] for number in order]
    assert_stopped(plant(weights), f"`classes: [{', '.join(right)}]`", "another class order")
    assert plant(weights, classes=right).found["problems"] == []


def test_a_classifier_of_some_of_the_classes_is_refused(plant, good):
    assert_stopped(plant(changed(good, HEAD, lambda tensor: tensor[:6])), "fc.weight", "8 classes")
    assert_stopped(
        plant(changed(good, HEAD, lambda tensor: tensor[:6]), classes=CLASSES[:6]),
        f"classes: has no {CLASSES[6]!r}",
    )


def test_a_teacher_that_was_trained_on_some_of_the_classes_is_named(plant, elsewhere):
    weights = elsewhere(rare=CLASSES[5:])
    assert_stopped(plant(weights), f"never predicts 3 of 8 classes ({', '.join(CLASSES[5:])})")


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_an_untrained_classifier_is_stopped(plant, good, seed):
    """With seed 2 it is better than chance by luck, as one in twenty is, and only warned of."""
    generator = torch.Generator().manual_seed(seed)
    weights = changed(
        good, HEAD, lambda tensor: 0.2 * torch.randn(tensor.shape, generator=generator)
    )
    assert_stopped(plant(weights), "its validation accuracy is")


def test_weights_without_a_classifier_are_refused(plant, good):
    weights = {name: tensor for name, tensor in good.items() if name not in HEAD}
    assert_stopped(plant(weights), "no classifier for 8 classes", "fc.weight", "set epochs above 0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(plant, good, value):
    name = "layer2.0.conv1.weight"
    weights = changed(good, (name,), torch.clone)
    weights[name][0, 0, 0, 0] = value
    assert_stopped(plant(weights), f"{name} holds NaN or infinity in 1 of")


def test_half_of_the_weights_missing_are_refused_by_name(plant, good):
    names = list(good)[: len(good) // 2]
    assert_stopped(plant({name: good[name] for name in names}), "missing", "layer2.0.")


def test_half_of_the_weights_zero_are_stopped(plant, good):
    convolutions = [name for name, tensor in good.items() if tensor.ndim == 4]
    assert_stopped(plant(changed(good, tuple(convolutions[::2]), torch.zeros_like)), "near chance")


def test_channels_in_another_order_are_named(plant, good):
    weights = changed(good, ("conv1.weight",), lambda tensor: tensor.flip(1))
    assert_stopped(plant(weights), "channels in the order blue, green, red")


def test_pixels_on_another_scale_are_named(plant, trained, good):
    weights = trained("bytes", normalize=BYTES)
    assert_stopped(plant(weights), "pixels from 0 to 255")
    assert_stopped(plant(good, normalize=BYTES), "with `normalize: dataset`")


def test_scaled_logits_are_named(plant, good, caplog):
    checked = plant(changed(good, HEAD, lambda tensor: 10 * tensor))
    assert checked.status == 0
    assert "times as large" in checked.found["warnings"][0]
    assert "times as large" in caplog.text


def test_a_teacher_of_other_images_is_named(plant, elsewhere):
    weights = elsewhere(
        shapes=OTHER_SHAPES
    )  # of the same colors: it is right more often than chance
    found = plant(weights).found
    (warning,) = found["warnings"]
    assert "trained on other images" in warning
    assert found["confident_errors"] > 0.1
