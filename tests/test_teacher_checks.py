"""A teacher is judged by its predictions: good ones pass, planted faults are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdsteps.teachers.checks import (
    best_temperature,
    check_teacher,
    class_order,
    not_finite,
    proportion,
)

NAMES = [f"class{number}" for number in range(10)]


def predictions(accuracy: float = 0.9, count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Calibrated logits (N, 10) that are right with a probability, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(NAMES)
    right = torch.rand(count, generator=generator) < accuracy
    wrong = (labels + torch.randint(1, 10, (count,), generator=generator)) % len(NAMES)
    predicted = torch.where(right, labels, wrong)
    rest = (1 - accuracy) / (len(NAMES) - 1)
    probabilities = torch.full((count, len(NAMES)), rest)
    probabilities[torch.arange(count), predicted] = accuracy
    return probabilities.log(), labels


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.9, 0.99])
def test_a_good_teacher_passes(accuracy, seed):
    found = check_teacher(*predictions(accuracy, seed=seed), NAMES, expected_accuracy=accuracy)
    assert (found.order, found.problems, found.warnings) == (None, (), ())
    assert (
        found.accuracy.low < accuracy < found.accuracy.high
        or abs(found.accuracy.value - accuracy) < 0.06
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_teacher_at_chance_is_stopped_and_no_order_is_made_up_for_it(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(400, 10, generator=generator), torch.arange(400) % 10
    found = check_teacher(logits, labels, NAMES)
    assert found.order is None
    (problem,) = found.problems
    assert "not above chance (10.0 %)" in problem


def test_shifted_classes_are_named_with_the_order_that_is_right():
    logits, labels = predictions(0.9)
    shifted = logits.roll(1, dims=1)  # output n + 1 stands for class n
    found = check_teacher(shifted, labels, NAMES)
    assert found.order == (9, *range(9))
    assert "class1 means class0" in found.problems[0]
    assert f"`classes: [class9, {', '.join(NAMES[:9])}]`" in found.problems[0]


def test_two_exchanged_classes_of_ten_are_found():
    logits, labels = predictions(0.95, count=1000)
    order = list(range(10))
    order[2], order[5] = 5, 2
    assert class_order(logits[:, order], labels) == tuple(order)


def test_less_than_what_was_expected_is_stopped():
    found = check_teacher(*predictions(0.6), NAMES, expected_accuracy=0.8)
    assert "expected_accuracy is 80.0 %" in found.problems[0]


def test_logits_that_are_scaled_are_named():
    logits, labels = predictions(0.8)
    assert best_temperature(logits, labels) == pytest.approx(1, abs=0.3)
    found = check_teacher(10 * logits, labels, NAMES)
    assert found.problems == ()
    assert "times as large" in found.warnings[0]


def test_a_better_way_to_show_images_is_named():
    found = check_teacher(
        *predictions(0.5), NAMES, variants={"channels reversed": predictions(0.9, 200)}
    )
    assert "explained by channels reversed (9" in found.problems[0]


def test_logits_that_are_not_finite_are_stopped():
    logits, labels = predictions()
    logits[3, 4] = float("nan")
    assert "NaN or infinity" in check_teacher(logits, labels, NAMES).problems[0]


def test_a_weight_that_is_not_finite_is_named():
    weights = {"a": torch.ones(2), "n": torch.tensor(3), "b": torch.tensor([1.0, float("inf")])}
    assert not_finite(weights) == "b"
    assert not_finite({"a": torch.ones(2)}) is None


def test_a_proportion_has_the_interval_of_wilson():
    found = proportion(8, 10)  # worked by hand: center (0.8 + z2/20) / (1 + z2/10), z = 1.96
    assert (found.low, found.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )


def test_where_few_classes_leave_two_explanations_both_are_named():
    logits, labels = predictions(0.95)
    found = check_teacher(
        logits.roll(1, dims=1), labels, NAMES, variants={"other pixels": predictions(0.95)}
    )
    assert "other pixels" in found.problems[0]
    assert "another class order" in found.problems[0]


def test_a_teacher_without_errors_is_not_called_scaled():
    labels = torch.arange(60) % 10
    logits = 0.5 * torch.eye(10)[labels]
    assert check_teacher(logits, labels, NAMES).warnings == ()
