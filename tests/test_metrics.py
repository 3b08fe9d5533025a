"""What is measured of a network, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdsteps.data.images import ImagePart
from kdsteps.evaluation.metrics import calibration_error, compare, judge, latency, predict, size_of
from kdsteps.training.device import WORK_OF_A_CORE, keep_busy


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits that soften to the given probabilities."""
    return torch.tensor(rows, dtype=torch.double).log()


def test_accuracy_top5_and_nll_match_values_worked_by_hand():
    ascending = torch.arange(6.0).repeat(2, 1)  # ranks class 5 first and class 0 last
    found = judge(ascending, torch.tensor([5, 0]))
    assert (found["accuracy"], found["top5"]) == (0.5, 0.5)
    assert judge(ascending, torch.tensor([1, 1]))["top5"] == 1.0
    sure = logits_of((0.5, 0.5), (0.2, 0.8))
    nll = judge(sure, torch.tensor([0, 0]))["nll"]
    assert nll == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)


def test_with_fewer_than_five_classes_top5_is_all_of_them():
    assert judge(torch.zeros(3, 2), torch.tensor([0, 1, 1]))["top5"] == 1.0


def test_calibration_error_matches_a_value_worked_by_hand():
    # two bins: 0.6 and 0.9 fall into the upper one; confidence 0.75, accuracy one half
    logits = logits_of((0.6, 0.4), (0.1, 0.9))
    assert calibration_error(logits, torch.tensor([0, 0]), 2) == pytest.approx(0.25)
    # fifteen bins: each in a bin of its own, |1 - 0.6| and |0 - 0.9|
    assert calibration_error(logits, torch.tensor([0, 0]), 15) == pytest.approx(0.65)


def test_certainty_that_is_right_is_perfectly_calibrated():
    logits = 1000 * torch.eye(4)
    assert calibration_error(logits, torch.arange(4), 15) == 0.0


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one():
    logits = logits_of((0.5, 0.5), (0.25, 0.75))  # bins (0, 0.5] and (0.5, 1]
    found = calibration_error(logits, torch.tensor([0, 1]), 2)
    assert found == pytest.approx((0.5 + 0.25) / 2)


def test_kl_and_agreement_match_values_worked_by_hand():
    student = logits_of((0.5, 0.5), (0.5, 0.5))
    teacher = logits_of((0.75, 0.25), (0.5, 0.5))
    found = compare(student, teacher)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert found["kl_to_teacher"] == pytest.approx(expected)
    assert found["agreement"] == 1.0
    assert compare(-teacher, teacher)["agreement"] == 0.5  # the tie of the second row stays one


def test_a_network_agrees_with_itself_and_with_shifted_logits():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    found = compare(logits, logits + 3)
    assert found["agreement"] == 1.0
    assert found["kl_to_teacher"] == pytest.approx(0, abs=1e-6)


def test_measures_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        compare(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="2 rows of logits for 3 labels"):
        judge(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="0 rows of logits"):
        judge(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_predictions_are_made_in_order_and_in_eval_mode():
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None]
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    part = ImagePart(images, labels, torch.zeros(1), torch.ones(1))
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train()
    logits, found = predict(network, part.in_order(3))
    assert torch.allclose(logits[:, 0], torch.arange(7) / 255)
    assert torch.equal(found, labels)
    assert network.training
    assert not logits.requires_grad


def test_size_counts_shared_weights_once_and_buffers_only_in_memory():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    network.append(network[0])
    found = size_of(network)
    assert found["parameters"] == 4 * 4 + 4 + 4 + 4
    # beside the parameters: running mean and variance of 4 bytes each, a counter of 8
    assert found["size_mib"] == (4 * found["parameters"] + 4 * 8 + 8) / 2**20


def test_latency_is_positive_and_the_slow_tail_not_below_the_median():
    found = latency(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2), runs=20)
    assert 0 < found["latency_ms"] <= found["latency_p90_ms"]


def test_steps_too_small_for_threads_are_computed_on_one(monkeypatch):
    given = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        keep_busy(10 * WORK_OF_A_CORE)
        assert torch.get_num_threads() == 2
        keep_busy(WORK_OF_A_CORE // 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(given)


def test_latency_leaves_the_threads_as_they_were():
    given = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = latency(torch.nn.Conv2d(1, 1, 1), (1, 4, 4), runs=5)
        assert torch.get_num_threads() == 2
        assert 0 < found["latency_ms"] <= found["latency_p90_ms"]
    finally:
        torch.set_num_threads(given)
