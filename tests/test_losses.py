"""Each loss against values worked out beforehand, to six digits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from _examples import P_OF_A, STAIRS, T2, A, B, S, T, U, V, Y, contrast_of_the_example, six, tensor
from torch import nn

from kdsteps.methods.at import at_loss, attention
from kdsteps.methods.ckd import ckd_loss
from kdsteps.methods.ckd import similarities as cosines
from kdsteps.methods.contrastive_logits import category_contrast, class_contrast
from kdsteps.methods.crd import similarities
from kdsteps.methods.dist import dist_loss
from kdsteps.methods.dkd import dkd_loss
from kdsteps.methods.fitnet import Regressor, fitnet_loss
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.loca import calibrated, loca_loss
from kdsteps.methods.lskd import lskd_loss, standardized
from kdsteps.methods.ofd import margins, mean_negative, ofd_loss
from kdsteps.methods.reviewkd import Fusion, hcl_loss
from kdsteps.methods.rkd import relative_distances, rkd_loss
from kdsteps.methods.sld import TEMPERATURES, sld_loss, swap_logits
from kdsteps.methods.sp import sp_loss
from kdsteps.methods.uld import uld_loss
from kdsteps.models.families.simkd import Projector
from kdsteps.models.feature_shapes import FeatureShape

THREE = torch.tensor([0, 0, 1])  # labels of three images
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
    "ckd at 1": (lambda: ckd_loss(S, T, 1.0), 0.442864),
    "ckd at 0.5": (lambda: ckd_loss(S, T, 0.5), 0.295056),
    "class contrast": (
        lambda: class_contrast(
            tensor([[1, 0], [0, 1], [0, 2]]), tensor([[1, 0], [0, 1], [1, 0]]), THREE, 1.0
        ),  # cosines [[1, -, 0], [-, 1, 1], [1, 0, 0]], those left out as -
        (math.log(1 + 1 / math.e) + math.log(2) + math.log(2 + math.e)) / 3,
    ),
    "category contrast": (  # correlations [[1, -1/2], [-1/2, 1]]
        lambda: category_contrast(U, V, 0.5),
        math.log(1 + math.exp(-3)),
    ),
    "sld at 1": (lambda: sld_loss(S, T, Y, [1.0]), 0.048485),
    "sld at 2": (lambda: sld_loss(S, T, Y, [2.0]), 0.111021),
    "sld at 4": (lambda: sld_loss(S, T, Y, [4.0]), 0.148838),
    "sld": (lambda: sld_loss(S, T, Y, TEMPERATURES), 0.761310),
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


def test_wrong_predictions_are_swapped_as_in_the_worked_example():
    assert swap_logits(T, Y).tolist() == [[2, 1, -1], [0, 3, 1]]


def test_cosine_similarities_of_logits_are_those_of_the_worked_example():
    assert cosines(S, T).flatten().tolist() == six([0.866025, 0.594089, -0.670820, 0.306786])


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
    place = FeatureShape("map", 2, 2, 2)
    projector = Regressor(place, FeatureShape("map", 1, 2, 2)).double()
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
    projector = Regressor(
        FeatureShape("map", 3, source, source), FeatureShape("map", 5, target, target)
    )
    projected = projector(torch.randn(2, 3, source, source))
    assert projector.body[0].kernel_size == kernel
    assert projected.shape == (2, 5, *[min(3, target) if source == 3 else target] * 2)


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
    level = Fusion(2, 1, FeatureShape("map", 1, 2, 2), fuses=True).double()
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
    place = FeatureShape("map", 2, 2, 2)
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


def set_weight(layer: nn.Module, rows: list[list[float]]) -> None:
    """Weights (out, in) of a 1x1 convolution, and bias 0 where it has one."""
    layer.weight.data = tensor(rows)[:, :, None, None]
    if layer.bias is not None:
        layer.bias.data.zero_()


def set_centre(layer: nn.Module) -> None:
    """A 3x3 convolution of one channel that changes nothing."""
    layer.weight.data.zero_()
    layer.weight.data[0, 0, 1, 1] = 1
