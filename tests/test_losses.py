"""Each loss against values worked out beforehand, to six digits, and its laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.methods._distances import logit_distance
from kdsteps.methods.at import at_loss, attention
from kdsteps.methods.crd import Contrast, similarities
from kdsteps.methods.dist import dist_loss
from kdsteps.methods.dkd import dkd_loss
from kdsteps.methods.fitnet import Regressor, fitnet_loss
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.loca import calibrated, loca_loss
from kdsteps.methods.lskd import lskd_loss, standardized
from kdsteps.methods.ofd import margins, mean_negative, ofd_loss
from kdsteps.methods.reviewkd import Fusion, hcl_loss
from kdsteps.methods.rkd import relative_distances, rkd_loss
from kdsteps.methods.semckd import Attention, semckd_loss
from kdsteps.methods.sp import sp_loss
from kdsteps.methods.uld import uld_loss
from kdsteps.models._adapters import Place
from kdsteps.models.simkd import Projector


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[1, 0, -1], [0.5, 2, 0]])
T = tensor([[2, 1, -1], [0, 1, 3]])  # wrong on image 1
T2 = tensor([[2, 0], [0, 1]])  # of a teacher with other classes
Y = torch.tensor([0, 1])
A = tensor([[[[1, 0], [0, 2]], [[0, 1], [1, 0]]], [[[2, 1], [0, 0]], [[1, 0], [0, 1]]]])
B = tensor([[[[1, 0], [0, 1]]], [[[0, 2], [1, 0]]]])
P_OF_A = A[:, :1] - A[:, 1:]
U = tensor([[0, 0], [1, 0], [0, 2]])
V = tensor([[0, 0], [3, 0], [0, 4]])
STAIRS = torch.arange(8.0, dtype=torch.float64)
STAIRS = ((8 * STAIRS[:, None] + STAIRS) / 10)[None, None]  # (1, 1, 8, 8)


def six(value: object) -> object:
    """`value` to six digits behind the point, as the examples give it."""
    return pytest.approx(value, abs=5.1e-7, rel=0)


EXAMPLES = {
    "cross-entropy": (lambda: F.cross_entropy(S, Y), 0.356981),
    "kd at 1": (lambda: kd_loss(S, T, 1.0), 0.778084),
    "kd at 1, image 0": (lambda: kd_loss(S[:1], T[:1], 1.0), 0.023475),
    "kd at 1, image 1": (lambda: kd_loss(S[1:], T[1:], 1.0), 1.532694),
    "kd at 4": (lambda: kd_loss(S, T, 4.0), 0.905911),
    "kd in total": (lambda: 0.1 * F.cross_entropy(S, Y) + 0.9 * kd_loss(S, T, 4.0), 0.851018),
    "lskd": (lambda: lskd_loss(S, T, 2.0), 0.531459),
    "lskd weighted": (lambda: 9 * lskd_loss(S, T, 2.0), 4.783129),
    "dkd of the label at 4": (lambda: dkd_loss(S, T, Y, 1.0, 0.0, 4.0), 0.362676),
    "dkd of the others at 4": (lambda: dkd_loss(S, T, Y, 0.0, 1.0, 4.0), 0.779893),
    "dkd at 4": (lambda: dkd_loss(S, T, Y, 1.0, 8.0, 4.0), 6.601823),
    "dkd of the label at 1": (lambda: dkd_loss(S, T, Y, 1.0, 0.0, 1.0), 0.431811),
    "dkd of the others at 1": (lambda: dkd_loss(S, T, Y, 0.0, 1.0, 1.0), 0.413315),
    "dist at 1": (lambda: dist_loss(S, T, 1.0, 1.0, 1.0), 1.422679),
    "dist between classes at 1": (lambda: dist_loss(S, T, 1.0, 0.0, 1.0), 0.756011),
    "dist within classes at 1": (lambda: dist_loss(S, T, 0.0, 1.0, 1.0), 0.666667),
    "dist at 4": (lambda: dist_loss(S, T, 1.0, 1.0, 4.0), 22.412389),
    "dist between classes at 4": (lambda: dist_loss(S, T, 1.0, 0.0, 4.0), 11.745698),
    "dist within classes at 4": (lambda: dist_loss(S, T, 0.0, 1.0, 4.0), 10.666692),
    "uld of other classes": (lambda: uld_loss(S, T2, 1.0), 0.320246),
    "uld of other classes, image 0": (lambda: uld_loss(S[:1], T2[:1], 1.0), 0.431112),
    "uld of other classes, image 1": (lambda: uld_loss(S[1:], T2[1:], 1.0), 0.209380),
    "uld of other classes at 2": (lambda: uld_loss(S, T2, 2.0), 0.424486),
    "uld of the same classes": (lambda: uld_loss(S, T, 1.0), 0.162582),
    "loca at 1": (lambda: loca_loss(S, T, Y, 0.9, 1.0), 0.231347),
    "loca at 4": (lambda: loca_loss(S, T, Y, 0.9, 4.0), 0.442155),
    "fitnet": (lambda: fitnet_loss(P_OF_A, B), 0.875),
    "at": (lambda: at_loss(A, B), 0.250547),
    "at weighted": (lambda: 1000 * at_loss(A, B), 250.547221),
    "sp": (lambda: sp_loss(A, B), 0.038476),
    "sp weighted": (lambda: 3000 * sp_loss(A, B), 115.428157),
    "rkd of distances": (lambda: rkd_loss(U, V, 1.0, 0.0), 0.005956),
    "rkd of angles": (lambda: rkd_loss(U, V, 0.0, 1.0), 0.001195),
    "rkd at 25 and 50": (lambda: rkd_loss(U, V, 25.0, 50.0), 0.208640),
    "rkd at 1 and 2": (lambda: rkd_loss(U, V, 1.0, 2.0), 0.008346),
    "hcl": (lambda: hcl_loss(P_OF_A, B), 0.635417),
    "hcl of a mirrored map": (lambda: hcl_loss(STAIRS, STAIRS.flip(3)), 0.186667),
    "ofd": (
        lambda: ofd_loss(
            tensor([[[[-2, -0.5], [0.5, 1]]]]), tensor([[[[-3, -1], [-0.2, 2]]]]), tensor([-1.0])
        ),
        1.74,
    ),
}


@pytest.mark.parametrize(("compute", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_a_loss_has_the_value_of_its_worked_example(compute, expected):
    assert compute().item() == six(expected)


def test_logits_are_standardized_as_in_the_worked_example():
    assert standardized(S).flatten().tolist() == six([1, 0, -1, -0.320256, 1.120897, -0.800641])
    expected = [0.872872, 0.218218, -1.091089, -0.872872, -0.218218, 1.091089]
    assert standardized(T).flatten().tolist() == six(expected)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.021860, 0.539070, 0.439070]), (4.0, [0.171953, 0.464024, 0.364024])],
)
def test_a_wrong_prediction_is_calibrated_as_in_the_worked_example(temperature, expected):
    probabilities = (T / temperature).softmax(dim=1)
    mended = calibrated(probabilities, Y, alpha=0.9)
    assert mended[1].tolist() == six(expected)
    assert torch.equal(mended[0], probabilities[0])


def test_a_calibrated_prediction_sums_to_one_and_puts_the_label_ahead_by_one_minus_alpha():
    torch.manual_seed(0)
    probabilities = torch.randn(50, 7, dtype=torch.float64).softmax(dim=1)
    labels = (probabilities.argmax(dim=1) + 1) % 7  # all wrong
    mended = calibrated(probabilities, labels, alpha=0.8)
    predicted = probabilities.argmax(dim=1, keepdim=True)
    lead = mended.gather(1, labels[:, None]) - mended.gather(1, predicted)
    assert torch.allclose(mended.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert torch.allclose(lead, torch.full_like(lead, 0.2))
    assert torch.equal(mended.argmax(dim=1), labels)


def test_attention_maps_are_those_of_the_worked_example():
    ours, theirs = attention(A), attention(B)
    expected = [0.229416, 0.229416, 0.229416, 0.917663, 0.962250, 0.192450, 0, 0.192450]
    assert ours.flatten().tolist() == six(expected)
    expected = [0.707107, 0, 0, 0.707107, 0, 0.970143, 0.242536, 0]
    assert theirs.flatten().tolist() == six(expected)
    as_in_the_paper = torch.linalg.vector_norm(ours - theirs, dim=1).mean()
    assert as_in_the_paper.item() == six(0.945011)


def test_distances_between_images_are_those_of_the_worked_example():
    ours, theirs = relative_distances(U), relative_distances(V)
    pairs = ([0, 0, 1], [1, 2, 2])
    assert ours[pairs].tolist() == six([0.572949, 1.145898, 1.281153])
    assert theirs[pairs].tolist() == six([0.75, 1, 1.25])


def test_the_projector_of_fitnet_gives_the_value_of_the_worked_example():
    place = Place("map", 2, 2, 2)
    projector = Regressor(place, Place("map", 1, 2, 2)).double()
    set_weight(projector.body[0], [[1, -1]])
    projected = projector(A)
    expected = [0.688244, 0, 0, 1.605903, 0.688244, 0.688244, 0, 0]
    assert projected.flatten().tolist() == six(expected)
    assert fitnet_loss(projected, B).item() == six(0.457337)


@pytest.mark.parametrize(
    ("source", "target", "kernel"),
    [
        (8, 8, (1, 1)),
        (8, 4, (3, 3)),
        (4, 8, (4, 4)),
        (6, 4, (3, 3)),
        (9, 3, (1, 1)),
        (3, 8, (1, 1)),
    ],
)
def test_the_projector_of_fitnet_resizes_as_in_the_benchmark(source, target, kernel):
    projector = Regressor(Place("map", 3, source, source), Place("map", 5, target, target))
    projected = projector(torch.randn(2, 3, source, source))
    assert projector.body[0].kernel_size == kernel
    assert projected.shape == (2, 5, *[min(3, target) if source == 3 else target] * 2)


def contrast_of_the_example() -> tuple[Contrast, tuple[Tensor, ...]]:
    contrast = Contrast(
        tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]]),
        tensor([[0.8, 0.6], [0, 1], [1, 0], [-0.6, 0.8]]),
        temperature=0.5,
        momentum=0.5,
    )
    student, teacher = tensor([[1, 0], [3, 4]]), tensor([[3, 4], [0, 2]])
    return contrast, (student, teacher, torch.tensor([0, 2]), torch.tensor([[0, 1, 3], [2, 3, 1]]))


def test_the_contrast_and_its_memories_are_those_of_the_worked_example():
    contrast, batch = contrast_of_the_example()
    before = contrast.student_memory.clone()
    assert contrast(*batch).item() == six(3.157209)
    assert contrast.student_scale.exp().item() == six(10.852032)
    assert contrast.teacher_scale.exp().item() == six(14.610955)
    assert torch.allclose(contrast.student_memory, before)
    assert contrast.teacher_memory[[0, 2]].flatten().tolist() == six([0.707107] * 4)
    assert contrast(*batch).item() == six(3.003201)


def test_the_contrast_out_of_training_leaves_its_memories():
    contrast, batch = contrast_of_the_example()
    contrast.eval()
    assert contrast(*batch).item() == contrast(*batch).item()


def test_memories_are_compared_alike_whether_all_at_once_or_row_by_row():
    torch.manual_seed(0)
    memory, embeddings = torch.randn(100, 4), torch.randn(3, 4, requires_grad=True)
    rows = torch.randint(100, (3, 5))
    row_by_row = similarities(embeddings, memory, rows)  # 100 memories, 5 rows
    many = rows.repeat(1, 4)  # 20 rows: all at once
    assert torch.allclose(similarities(embeddings, memory, many)[:, :5], row_by_row, atol=1e-6)


def test_fusing_two_levels_gives_the_value_of_the_worked_example():
    level = Fusion(2, 1, Place("map", 1, 2, 2), fuses=True).double()
    set_weight(level.narrow[0], [[1, -1]])
    set_weight(level.gates, [[1, 0], [0, 1]])
    set_centre(level.widen[0])
    output, fused = level(A, tensor([[[[1.0]]], [[[-1.0]]]]))
    expected = [1.189138, 0.454586, 0.454586, 2.068522, 0.189138, 0.189138, -0.370548, -0.545414]
    assert fused.flatten().tolist() == six(expected)
    expected = [0.933496, 0.001197, 0.001197, 2.049618, -0.335713, -0.335713, -1.046071, -1.268011]
    assert output.flatten().tolist() == six(expected)
    assert hcl_loss(output, B).item() == six(1.422361)


def test_the_pyramid_of_a_mirrored_map_has_the_errors_of_the_worked_example():
    mirrored = STAIRS.flip(3)
    errors = [F.mse_loss(STAIRS, mirrored).item()]
    for cells in (4, 2, 1):
        first, second = (F.adaptive_avg_pool2d(maps, cells) for maps in (STAIRS, mirrored))
        errors.append(F.mse_loss(first, second).item())
    assert errors == six([0.21, 0.2, 0.16, 0])


def test_simkd_gives_the_map_and_logits_of_the_worked_example():
    teacher = torch.cat([B, B.flip(3)], dim=1)
    place = Place("map", 2, 2, 2)
    projector = Projector(place, place, factor=2, rectified=True).double()
    set_weight(projector.body[0], [[1, -1]])
    set_centre(projector.body[3])
    set_weight(projector.body[6], [[1], [2]])
    projected = projector.project(A)
    expected = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    expected[0, :, 1, 1] = tensor([2.529794, 2.529815])
    assert torch.allclose(projected, expected, atol=5.1e-7, rtol=0)
    assert fitnet_loss(projected, teacher).item() == six(1.358765)
    head = nn.Linear(2, 3).double()
    head.weight.data = tensor([[1, 0], [0, 1], [1, -1]])
    head.bias.data = tensor([0, 0, 0.5])
    logits = head(projector.lift(projected).mean(dim=(2, 3)))
    assert logits[0].tolist() == six([0.632449, 0.632454, 0.499995])
    assert logits[1].tolist() == six([0, 0, 0.5])


def test_margins_are_those_of_the_worked_example():
    found = margins(tensor([1.0, 0.5, -1.0]), tensor([0.0, 2.0, 0.0]))
    assert found.tolist() == six([-0.797885, -1.5, -0.797885])


def test_margins_of_normal_responses_are_their_mean_negative():
    torch.manual_seed(0)
    responses = torch.randn(100, 2, 30, 30) * torch.tensor([1.0, 2.0])[:, None, None] + 0.3
    expected = margins(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.3]))
    assert torch.allclose(mean_negative(responses), expected, atol=0.02)


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
    with pytest.raises(ValueError, match="'l2'; there are kd, lskd, dkd, dist"):
        logit_distance("l2")


LOGIT_LOSSES = {
    "kd": lambda student, teacher: kd_loss(student, teacher, 4.0),
    "lskd": lambda student, teacher: lskd_loss(student, teacher, 2.0),
    "dkd": lambda student, teacher: dkd_loss(student, teacher, Y, 1.0, 8.0, 4.0),
    "dist": lambda student, teacher: dist_loss(student, teacher, 1.0, 1.0, 4.0),
    "loca": lambda student, teacher: loca_loss(student, teacher, Y, 0.9, 4.0),
    "uld": lambda student, teacher: uld_loss(student, teacher, 1.0),
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


def test_one_image_alone_has_no_relations():
    assert rkd_loss(torch.ones(1, 3), torch.ones(1, 2), 25.0, 50.0).item() == 0


def set_weight(layer: nn.Module, rows: list[list[float]]) -> None:
    """Weights (out, in) of a 1x1 convolution, and bias 0 where it has one."""
    layer.weight.data = tensor(rows)[:, :, None, None]
    if layer.bias is not None:
        layer.bias.data.zero_()


def set_centre(layer: nn.Module) -> None:
    """A 3x3 convolution of one channel that changes nothing."""
    layer.weight.data.zero_()
    layer.weight.data[0, 0, 1, 1] = 1
