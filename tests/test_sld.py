"""The method sld: swapped logits of the teacher, and later of the student itself."""

from __future__ import annotations

import pytest
import torch
from _examples import S, T, Y
from _methods import batch_of, make, step, terms_of
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.sld import sld_loss, swap_logits


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Logits (50, 7), and labels of which they predict about one in seven."""
    torch.manual_seed(0)
    return torch.randn(50, 7, dtype=torch.float64), torch.randint(7, (50,))


def test_swapped_logits_are_right_about_every_image_and_hold_the_same_values(logits):
    before, labels = logits
    after = swap_logits(before, labels)
    wrong = before.argmax(dim=1) != labels
    assert 0 < wrong.sum() < 50
    assert torch.equal(after.argmax(dim=1), labels)
    assert torch.equal(after.sort(dim=1).values, before.sort(dim=1).values)
    assert torch.equal(after[~wrong], before[~wrong])
    assert ((after != before).sum(dim=1)[wrong] == 2).all()


def test_swapping_twice_changes_nothing_and_a_tie_is_no_wrong_prediction(logits):
    once = swap_logits(*logits)
    assert torch.equal(swap_logits(once, logits[1]), once)
    tie = torch.tensor([[3.0, 1, 3]])
    for label in (0, 2):
        assert torch.equal(swap_logits(tie, torch.tensor([label])), tie)


def test_gradients_follow_the_values_that_are_swapped():
    logits = T.clone().requires_grad_()
    weights = torch.arange(6.0).view(2, 3)
    (weights * swap_logits(logits, Y)).sum().backward()
    assert logits.grad.tolist() == [[0, 1, 2], [3, 5, 4]]


def test_a_teacher_that_is_right_is_distilled_as_by_kd(logits):
    student, labels = logits
    teacher = swap_logits(student.flip(0), labels)
    expected = sum(kd_loss(student, teacher, heat).item() for heat in (1.0, 4.0))
    assert sld_loss(student, teacher, labels, [1.0, 4.0]).item() == pytest.approx(expected)


def test_a_student_that_is_right_learns_nothing_from_itself():
    right = swap_logits(S, 1 - Y).requires_grad_()
    loss = sld_loss(right, right, 1 - Y, [1.0, 4.0])
    assert loss.item() == 0
    (found,) = torch.autograd.grad(loss, right)
    assert found.abs().max() < 1e-15


def test_the_gradient_of_the_students_own_loss_passes_through_both_sides():
    student = S.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda own: sld_loss(own, own, 1 - Y, [1.0, 4.0]), student)


def test_the_student_learns_from_itself_from_epoch_150_of_240_on_as_in_the_authors_code():
    method = make("sld")
    assert method.task.epochs == 240
    assert terms_of(method, batch_of(epoch=149))["self"] == 0
    assert terms_of(method, batch_of(epoch=150))["self"] > 0
    without = make("sld", self_weight=0)
    assert list(terms_of(without, batch_of(epoch=239))) == ["labels", "teacher"]


def test_detaching_the_students_own_target_changes_the_gradient_and_not_the_loss():
    both, one = (make("sld", self_after=0, self_detach=detach) for detach in (False, True))
    first, second = step(both, batch_of()), step(one, batch_of())
    assert first["self"].item() == second["self"].item() > 0
    weights = zip(both.student.parameters(), one.student.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in weights)


def test_losses_at_all_temperatures_are_added_up():
    alone = [make("sld", temperatures=(heat,)) for heat in (1.0, 3.0)]
    both = make("sld", temperatures=(1.0, 3.0))
    expected = sum(terms_of(method, batch_of())["teacher"].item() for method in alone)
    assert terms_of(both, batch_of())["teacher"].item() == pytest.approx(expected)


def test_a_start_after_the_end_of_the_run_is_refused():
    with pytest.raises(KdstepsError, match=r"self_after of sld is 300 .* at most 240"):
        make("sld", self_after=300)
