"""Laws of the losses: gradients, precision, symmetries, and inputs they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _examples import P_OF_A, T2, B, S, T, Y, contrast_of_the_example, tensor
from torch import Tensor

from kdsteps.methods._distances import logit_distance
from kdsteps.methods.at import at_loss
from kdsteps.methods.ckd import ckd_loss
from kdsteps.methods.contrastive_logits import category_contrast, class_contrast
from kdsteps.methods.dist import dist_loss
from kdsteps.methods.dkd import dkd_loss
from kdsteps.methods.fitnet import fitnet_loss
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.loca import loca_loss
from kdsteps.methods.lskd import lskd_loss
from kdsteps.methods.ofd import ofd_loss
from kdsteps.methods.reviewkd import hcl_loss
from kdsteps.methods.rkd import rkd_loss
from kdsteps.methods.semckd import Attention, semckd_loss
from kdsteps.methods.sld import sld_loss
from kdsteps.methods.sp import sp_loss
from kdsteps.methods.uld import uld_loss


def test_kd_is_its_part_on_the_label_and_the_rest_times_its_share():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 20, 10, dtype=torch.float64).unbind()
    labels = torch.randint(10, (20,))
    for image in range(20):
        one = (student[[image]], teacher[[image]])
        share = 1 - (one[1] / 3).softmax(dim=1)[0, labels[image]]
        both = dkd_loss(*one, labels[[image]], 1.0, share.item(), 3.0)
        assert kd_loss(*one, 3.0).item() == pytest.approx(both.item(), abs=1e-9)


def test_the_gradient_of_kd_is_the_difference_of_the_predictions():
    student = S.clone().requires_grad_()
    kd_loss(student, T, 4.0).backward()
    expected = 4 / 2 * ((S / 4).softmax(dim=1) - (T / 4).softmax(dim=1))
    assert torch.allclose(student.grad, expected)


@pytest.mark.parametrize("temperature", [4.0, 1000.0])
def test_the_parts_of_dkd_add_up_for_near_equal_logits_too(temperature):
    torch.manual_seed(0)
    teacher = torch.randn(1, 10)
    student = teacher + 1e-3 * torch.randn(1, 10)
    rest = 1 - (teacher.double() / temperature).softmax(dim=1)[0, 1].item()
    both = dkd_loss(student, teacher, torch.tensor([1]), 1.0, rest, temperature)
    assert both.item() == pytest.approx(kd_loss(student, teacher, temperature).item(), rel=1e-6)


def test_scaled_and_shifted_logits_are_the_same_to_lskd_and_dist_ignores_a_shift():
    assert lskd_loss(3 * S + 5, T, 2.0).item() == pytest.approx(lskd_loss(S, T, 2.0).item())
    assert dist_loss(S + 5, T, 1.0, 1.0, 4.0).item() == pytest.approx(
        dist_loss(S, T, 1.0, 1.0, 4.0).item()
    )


def test_uld_does_not_see_the_order_of_classes():
    assert uld_loss(S[:, [2, 0, 1]], T2.flip(1), 1.0).item() == pytest.approx(
        uld_loss(S, T2, 1.0).item()
    )
    assert uld_loss(S[:, [1, 2, 0]], S, 1.0).item() == pytest.approx(0, abs=1e-12)


def test_angles_in_chunks_are_angles_at_once(monkeypatch):
    torch.manual_seed(0)
    student = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(12, 7, dtype=torch.float64)
    at_once = rkd_loss(student, teacher, 1.0, 2.0)
    (expected,) = torch.autograd.grad(at_once, student)
    monkeypatch.setattr("kdsteps.methods.rkd.CHUNK_ELEMENTS", 12 * 12 * 5)
    in_chunks = rkd_loss(student, teacher, 1.0, 2.0)
    (found,) = torch.autograd.grad(in_chunks, student)
    assert torch.allclose(in_chunks, at_once)
    assert torch.allclose(found, expected)


def test_attention_that_listens_to_one_layer_gives_its_distance():
    attention = tensor([[[0, 1], [1, 0]]])
    assert semckd_loss(attention, tensor([[[5, 3], [2, 9]]])).item() == 2.5


def test_attention_shares_itself_out_among_the_teachers_layers():
    torch.manual_seed(0)
    shares = Attention(2, 3, batch_size=8)(
        [torch.randn(6, 4, 2, 2), torch.randn(6, 9)],
        [torch.randn(6, 5, width) for width in (1, 2, 3)],
    )
    assert shares.shape == (6, 2, 3)
    assert torch.allclose(shares.sum(dim=2), torch.ones(6, 2))


def test_a_distance_by_name_is_the_loss_of_that_method():
    expected = {
        "kd": kd_loss(S, T, 4.0),
        "lskd": lskd_loss(S, T, 2.0),
        "dkd": dkd_loss(S, T, Y, 1.0, 8.0, 4.0),
        "dist": dist_loss(S, T, 1.0, 1.0, 4.0),
    }
    for name, value in expected.items():
        assert torch.equal(logit_distance(name)(S, T, Y), value)
    assert torch.equal(logit_distance("lskd", 3.0)(S, T, Y), lskd_loss(S, T, 3.0))
    lighter = logit_distance("dkd", dkd_beta=2.0)(S, T, Y)
    assert torch.equal(lighter, dkd_loss(S, T, Y, 1.0, 2.0, 4.0))
    with pytest.raises(ValueError, match="'l2'; there are kd, lskd, dkd, dist"):
        logit_distance("l2")


LOGIT_LOSSES = {
    "kd": lambda student, teacher: kd_loss(student, teacher, 4.0),
    "lskd": lambda student, teacher: lskd_loss(student, teacher, 2.0),
    "dkd": lambda student, teacher: dkd_loss(student, teacher, Y, 1.0, 8.0, 4.0),
    "dist": lambda student, teacher: dist_loss(student, teacher, 1.0, 1.0, 4.0),
    "loca": lambda student, teacher: loca_loss(student, teacher, Y, 0.9, 4.0),
    "uld": lambda student, teacher: uld_loss(student, teacher, 1.0),
    "ckd": lambda student, teacher: ckd_loss(student, teacher, 0.5),
    "class contrast": lambda student, teacher: class_contrast(student, teacher, Y, 0.5),
    "category contrast": lambda student, teacher: category_contrast(student, teacher, 0.5),
    "sld": lambda student, teacher: sld_loss(student, teacher, Y, [1.0, 4.0]),
}
MAP_LOSSES = {
    "fitnet": fitnet_loss,
    "at": at_loss,
    "sp": sp_loss,
    "rkd": lambda student, teacher: rkd_loss(student.flatten(1), teacher.flatten(1), 25.0, 50.0),
    "hcl": hcl_loss,
    "ofd": lambda student, teacher: ofd_loss(student, teacher, torch.tensor(-1.0)),
}
LOSSES = {name: (loss, S, T) for name, loss in LOGIT_LOSSES.items()} | {
    name: (loss, P_OF_A, B) for name, loss in MAP_LOSSES.items()
}


def gradient(loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient at `student`, with proof that no input was written to."""
    student, ours, theirs = student.clone().requires_grad_(), student.clone(), teacher.clone()
    value = loss(student, teacher)
    (found,) = torch.autograd.grad(value, student)
    assert torch.equal(student, ours)
    assert torch.equal(teacher, theirs)
    return value, found


@pytest.mark.parametrize(("loss", "student", "teacher"), LOSSES.values(), ids=LOSSES)
def test_a_loss_keeps_float64_and_its_inputs_and_has_a_true_gradient(loss, student, teacher):
    value, _ = gradient(loss, student, teacher)
    assert value.dtype == torch.float64
    assert value.shape == ()
    torch.manual_seed(0)
    beside = student + 0.1 * torch.rand_like(student)  # away from the corners of absolute values
    assert torch.autograd.gradcheck(lambda ours: loss(ours, teacher), beside.requires_grad_())


@pytest.mark.parametrize(("loss", "student", "teacher"), LOSSES.values(), ids=LOSSES)
def test_a_loss_in_half_precision_is_near_its_value_in_float64(loss, student, teacher):
    exact = loss(student, teacher).item()
    for kind in (torch.float16, torch.bfloat16):  # the inputs are exact in both
        with torch.autocast("cpu", torch.bfloat16):
            assert loss(student.to(kind), teacher.to(kind)).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize(("loss", "student", "teacher"), LOSSES.values(), ids=LOSSES)
def test_a_loss_and_its_gradient_stay_finite_for_dead_and_for_huge_inputs(
    loss, student, teacher, scale
):
    value, found = gradient(loss, scale * student.float(), 1e4 * teacher.float())
    assert value.isfinite()
    assert found.isfinite().all()


def test_a_student_without_any_opinion_yet_gets_no_exploding_gradient():
    """A zero-initialised head: the norms of its logits and correlations are 0."""
    for name, loss in LOGIT_LOSSES.items():
        _, found = gradient(loss, torch.zeros(2, 3), T.float())
        assert found.abs().max() < 20, name


def test_images_with_equal_features_get_no_exploding_gradient():
    same = torch.ones(4, 3)
    torch.manual_seed(0)
    _, found = gradient(MAP_LOSSES["rkd"], same, torch.randn(4, 3))
    assert found.abs().max() < 20
    _, found = gradient(sp_loss, torch.zeros(4, 3), torch.randn(4, 3))
    assert found.abs().max() < 20


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_logits_that_would_broadcast_are_refused(name):
    wrong = torch.zeros(1, 3) if name == "uld" else torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \([12], [13]\)"):
        LOGIT_LOSSES[name](torch.zeros(2, 3), wrong)


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_maps_that_would_broadcast_are_refused(name):
    with pytest.raises(ValueError, match=r"\(2, .*and \(1, "):
        MAP_LOSSES[name](torch.ones(2, 3, 4, 4), torch.ones(1, 3, 4, 4))


def test_labels_margins_and_indices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels"):
        dkd_loss(S, T, torch.tensor([[0], [1]]), 1.0, 8.0, 4.0)
    with pytest.raises(ValueError, match="labels"):
        loca_loss(S, T, torch.tensor([0]), 0.9, 4.0)
    with pytest.raises(ValueError, match="labels"):
        sld_loss(S, T, torch.tensor([0]), [4.0])
    with pytest.raises(ValueError, match="labels"):
        class_contrast(S, T, torch.tensor([[0], [1]]), 4.0)
    with pytest.raises(ValueError, match="2 margins do not fit 1 channels"):
        ofd_loss(B, B, torch.zeros(2))
    contrast, (student, teacher, own, rows) = contrast_of_the_example()
    with pytest.raises(ValueError, match="indices"):
        contrast(student, teacher, own[:1], rows)
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 2, 2\)"):
        semckd_loss(torch.ones(1, 2), torch.ones(1, 2, 2))


def test_margins_may_be_of_any_usual_shape():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 2, 2).unbind()
    margin = torch.tensor([-0.1, -0.5, -1.0, -2.0])
    expected = ofd_loss(student, teacher, margin)
    assert torch.equal(ofd_loss(student, teacher, margin[None, :, None, None]), expected)


def test_maps_of_other_sizes_are_compared_at_the_smaller_one():
    torch.manual_seed(0)
    large, small = torch.rand(2, 3, 8, 6), torch.rand(2, 5, 4, 3)
    pooled = F.avg_pool2d(large, 2)
    assert torch.allclose(at_loss(large, small), at_loss(pooled, small))
    assert torch.allclose(at_loss(small, large), at_loss(small, pooled))


@pytest.mark.parametrize("name", MAP_LOSSES)
@pytest.mark.parametrize("size", [(8, 2), (6, 3), (5, 1)])
def test_a_loss_of_maps_does_not_tell_height_from_width(name, size):
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 4, *size, dtype=torch.float64)
    turned = MAP_LOSSES[name](student.transpose(2, 3), teacher.transpose(2, 3))
    assert turned.item() == pytest.approx(MAP_LOSSES[name](student, teacher).item())


def test_one_image_alone_has_no_relations():
    assert rkd_loss(torch.ones(1, 3), torch.ones(1, 2), 25.0, 50.0).item() == 0
