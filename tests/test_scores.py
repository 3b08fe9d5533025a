"""The scores of a layer against worked numbers, against plain loops, and against their laws."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.scores.efficiency import efficiency
from kdsteps.scores.gram import LayerGram
from kdsteps.scores.information import class_dimension, class_spectrum, information
from kdsteps.scores.pairs import pair_statistics
from kdsteps.scores.quality import layer_quality, score_layer
from kdsteps.scores.separation import separation

LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
GENERIC = torch.tensor(  # T2 of the worked numbers: run through the authors' public functions
    [
        (3.0, 0.1, 0.2),
        (2.7, 1.1, 0.3),
        (3.1, 0.2, 1.9),
        (0.2, 3.0, 0.1),
        (0.3, 2.9, 1.2),
        (1.1, 3.1, 0.4),
    ]
)
TRAP = torch.tensor(  # T1: within each class one feature never changes
    [(3.0, 0, 0), (3, 1, 0), (3, 0, 2), (0, 3, 0), (0, 3, 1), (1, 3, 0)]
)
SIX_DIGITS = 6e-7
NAMES = ("separation", "information", "efficiency", "quality")
SHAPES = [  # classes, images of each, features
    (2, 3, 3),
    (10, 7, 33),
    (10, 12, 5),  # fewer features than images of a class
    (3, 20, 200),
    (4, 9, 1),
]


def sample(
    num_classes: int, per_class: int, width: int, *, seed: int = 0, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Features like those after a ReLU, in float64, classes in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = 2 * torch.randn(num_classes, width, generator=generator, dtype=torch.float64)
    spread = noise * torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return (centres[labels] + spread).relu() + 0.05, labels


def plain_scores(
    features: Tensor, labels: Tensor, *, train_size: int, as_coded: bool
) -> dict[str, float]:
    """The definitions, image by image, in float64; shares nothing with the package."""
    rows = features.double().numpy()
    classes = [np.flatnonzero(labels.numpy() == name) for name in np.unique(labels.numpy())]
    units = [row / math.sqrt(row @ row) for row in rows]

    def cosine(i: int, j: int) -> float:
        return abs(float(units[i] @ units[j]))

    within, least, between, gaps, norms, spectra, dimensions = [], [], [], [], [], [], []
    for own in classes:
        pairs = [(i, j) for i, j in product(own, own) if as_coded or i != j]
        within.append(np.mean([cosine(i, j) for i, j in pairs]))
        least.append(min(cosine(i, j) for i, j in pairs))
        others = [j for other in classes if other is not own for j in other]
        gaps.append(min(float(np.linalg.norm(rows[i] - rows[j])) for i in own for j in others))
        norms.append(np.mean([np.linalg.norm(rows[i]) for i in own]))
        for other in classes:
            if other is not own:
                between.append(np.mean([cosine(i, j) for i in own for j in other]))
        centred = rows[own] - rows[own].mean(axis=0)
        values = np.linalg.svd(centred, compute_uv=False) ** 2
        shares = np.pad(values, (0, max(0, len(own) - len(values)))) / values.sum()
        spectra.append(shares)
        dimensions.append(next(k for k in range(1, len(own) + 1) if shares[:k].sum() >= 0.95))
    entropies = []
    for own, shares in zip(classes, spectra, strict=True):
        cut = shares[: sum(dimensions)]
        padding = len(own) - rows.shape[1]
        if as_coded and padding > 0 and len(cut) > rows.shape[1]:
            entropies.append(0.0)
        else:
            cut = cut / cut.sum()
            entropies.append(-sum(p * math.log(p) for p in cut if p > 0))
    s = np.mean(within) - np.mean(between)
    i = (1 - np.mean(least)) * np.mean(entropies) / math.log(5)
    exponent = 1 / min(rows.shape)
    e = 2 * np.mean(gaps) / np.mean(norms) * (train_size / math.pi) ** exponent
    return dict(zip(NAMES, map(float, (s, i, e, s + math.sqrt(i * e))), strict=True))


def six_digits(*numbers: float):
    return pytest.approx(numbers, abs=SIX_DIGITS)


# Worked numbers


@pytest.mark.parametrize(
    ("features", "variant", "expected"),
    [
        (GENERIC, "as_coded", (0.606288, 0.037775, 2.002694, 0.881337)),
        (GENERIC, "intended", (0.579347, 0.037775, 2.002694, 0.854396)),
        (TRAP, "as_coded", (0.710719, 0.0, 2.205633, 0.710719)),
        (TRAP, "intended", (0.675577, 0.046627, 2.205633, 0.996268)),
    ],
    ids=["generic as coded", "generic intended", "trap as coded", "trap intended"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worked_examples_come_out_to_six_digits(features, variant, expected, dtype):
    scores = layer_quality(features.to(dtype), LABELS, train_size=6, variant=variant)
    assert list(scores) == list(NAMES)
    assert all(type(value) is float for value in scores.values())
    assert tuple(scores.values()) == six_digits(*expected)


def test_every_number_on_the_way_is_that_of_the_worked_example():
    gram = LayerGram(LABELS, spectra_per_class=500, seed=0)
    gram.add(GENERIC)
    pairs = pair_statistics(gram)
    coded, strict = (separation(pairs, with_diagonal=diagonal) for diagonal in (True, False))
    informed = information(gram, pairs, wiped_by_zero=True)
    efficient = efficiency(pairs, train_size=6, width=3)
    first, second = (
        class_spectrum(gram.products[rows][:, rows], varying=3).tolist() for rows in gram.classes
    )
    assert (coded.intra, coded.inter, coded.value) == six_digits(0.946118, 0.339830, 0.606288)
    assert (strict.intra, strict.inter, strict.value) == six_digits(0.919177, 0.339830, 0.579347)
    assert informed.min_cosine == pytest.approx(0.897267, abs=SIX_DIGITS)
    assert tuple(first) == six_digits(0.790045, 0.209955, 0.0)
    assert tuple(second) == six_digits(0.607870, 0.392130, 0.0)
    assert informed.dimensions == (2, 2) and informed.dimension == 2
    assert informed.entropies == pytest.approx((0.5139, 0.6697), abs=6e-5)  # worked to 4 digits
    assert informed.entropy == pytest.approx(0.591794, abs=SIX_DIGITS)
    older = (1 - informed.min_cosine) * informed.entropy / math.log(informed.dimension)
    assert older == pytest.approx(0.087711, abs=SIX_DIGITS)
    assert tuple(pairs.nearest.tolist()) == six_digits(2.563201, 2.563201)
    assert efficient.norm == pytest.approx(3.175888, abs=SIX_DIGITS)
    assert 2 * efficient.gap / efficient.norm == pytest.approx(1.614164, abs=SIX_DIGITS)
    assert efficient.density == pytest.approx(1.240701, abs=SIX_DIGITS)


def test_the_trap_has_the_worked_entropy_when_zeros_add_nothing():
    scores = score_layer([TRAP], LABELS, train_size=6, variant="intended")
    assert scores["class_entropy"] == pytest.approx(0.483145, abs=SIX_DIGITS)
    assert scores["min_cosine"] == pytest.approx(0.844676, abs=SIX_DIGITS)


def test_density_is_nearly_constant_over_wide_layers():
    features, labels = sample(2, 3, 3)
    gram = LayerGram(labels, spectra_per_class=500, seed=0)
    gram.add(features)
    pairs = pair_statistics(gram)
    assert efficiency(pairs, train_size=6, width=3).density == pytest.approx(
        efficiency(pairs, train_size=6, width=2).density ** (2 / 3)
    )
    assert (
        efficiency(pairs, train_size=6, width=60).density
        == efficiency(pairs, train_size=6, width=6).density  # no more entries than images
    )


# Plain loops


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
@pytest.mark.parametrize(("num_classes", "per_class", "width"), SHAPES)
def test_scores_equal_plain_loops_over_images(num_classes, per_class, width, variant):
    features, labels = sample(num_classes, per_class, width)
    expected = plain_scores(features, labels, train_size=500, as_coded=variant == "as_coded")
    assert layer_quality(features, labels, train_size=500, variant=variant) == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
def test_scores_equal_plain_loops_where_classes_lie_on_a_line_each(variant):
    # one direction a class: the entropy is cut after one component for each class
    features, labels = sample(3, 30, 8, noise=0.01)
    features[:, 0] += torch.linspace(0, 5, len(labels), dtype=torch.float64)
    scores = score_layer([features], labels, train_size=90, variant=variant)
    expected = plain_scores(features, labels, train_size=90, as_coded=variant == "as_coded")
    assert scores["class_dimension"] == 1
    assert {name: scores[name] for name in NAMES} == pytest.approx(expected, rel=1e-9)
    assert scores["information"] > 0  # the zeros of padding lie beyond the cut and wipe nothing


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
def test_classes_of_unequal_size_equal_plain_loops(variant):
    features, labels = sample(4, 10, 25)
    keep = (labels != 2) | (torch.arange(len(labels)) > 20)
    features, labels = features[keep], labels[keep] * 7 - 3  # labels need not start at 0
    expected = plain_scores(features, labels, train_size=50, as_coded=variant == "as_coded")
    assert layer_quality(features, labels, train_size=50, variant=variant) == pytest.approx(
        expected, rel=1e-9
    )


def test_blocks_larger_than_any_class_leave_no_pair_out():
    # 1,100 images: more than one block of the product and of the walk over pairs
    features, labels = sample(3, 400, 6)
    features, labels = features[:1100], labels[:1100]
    scores = score_layer([features], labels, train_size=1100)
    units = torch.nn.functional.normalize(features, dim=1)
    cosines, distances = (units @ units.T).abs(), torch.cdist(features, features)
    same = labels[:, None] == labels
    intra, least, gaps, inter = [], [], [], []
    for c in range(3):
        own = (labels == c)[:, None] & same
        size = int((labels == c).sum())
        intra.append((cosines[own].sum() - size) / (size * (size - 1)))
        least.append(cosines[own].min())
        gaps.append(distances[(labels == c)[:, None] & ~same].min())
        inter += [cosines[labels == c][:, labels == o].mean() for o in range(3) if o != c]
    intra, inter, least, gaps = (torch.stack(v).mean() for v in (intra, inter, least, gaps))
    assert scores["intra_cosine"] == pytest.approx(intra.item(), rel=1e-9)
    assert scores["inter_cosine"] == pytest.approx(inter.item(), rel=1e-9)
    assert scores["min_cosine"] == pytest.approx(least.item(), rel=1e-9)
    assert scores["class_gap"] == pytest.approx(gaps.item(), rel=1e-6)


# Laws


@pytest.mark.parametrize(("num_classes", "per_class", "width"), SHAPES)
def test_counting_the_diagonal_draws_similarity_towards_one(num_classes, per_class, width):
    features, labels = sample(num_classes, per_class, width)
    coded = score_layer([features], labels, train_size=9, variant="as_coded")["intra_cosine"]
    strict = score_layer([features], labels, train_size=9)["intra_cosine"]
    assert coded == pytest.approx(((per_class - 1) * strict + 1) / per_class, rel=1e-12)


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_scores_do_not_change_with_the_scale_of_all_features(variant, scale):
    features, labels = sample(5, 8, 40)
    scores = layer_quality(features, labels, train_size=40, variant=variant)
    scaled = layer_quality(scale * features, labels, train_size=40, variant=variant)
    assert scaled == pytest.approx(scores, rel=1e-9)


def test_scaling_images_one_by_one_changes_efficiency_and_leaves_separation():
    features, labels = sample(5, 8, 40)
    scores = layer_quality(features, labels, train_size=40)
    factors = torch.linspace(0.5, 2.0, len(labels), dtype=torch.float64)
    scaled = layer_quality(factors[:, None] * features, labels, train_size=40)
    assert scaled["separation"] == pytest.approx(scores["separation"], rel=1e-9)
    assert abs(scaled["efficiency"] - scores["efficiency"]) > 0.01


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
def test_turning_the_features_does_not_change_scores(variant):
    features, labels = sample(5, 8, 40)
    generator = torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))
    scores = layer_quality(features, labels, train_size=40, variant=variant)
    turned = layer_quality(features @ turn, labels, train_size=40, variant=variant)
    assert turned == pytest.approx(scores, rel=1e-9)


def test_the_order_of_images_and_the_names_of_classes_do_not_matter():
    features, labels = sample(5, 8, 40)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    scores = layer_quality(features, labels, train_size=40)
    assert layer_quality(features[order], 10 - labels[order], train_size=40) == pytest.approx(
        scores, rel=1e-9
    )


@pytest.mark.parametrize("variant", ["intended", "as_coded"])
def test_a_layer_in_chunks_scores_like_the_whole(variant):
    features, labels = sample(4, 9, 57)
    whole = score_layer([features], labels, train_size=36, variant=variant)
    chunks = (part for part in features.split([1, 20, 36], dim=1))  # can be read once only
    assert score_layer(chunks, labels, train_size=36, variant=variant) == pytest.approx(
        whole, rel=1e-9
    )


def test_large_samples_in_float32_score_like_float64():
    features, labels = sample(10, 210, 48)  # 2,100 images: past the limit for float64
    half = features.half()
    exact = layer_quality(half.double(), labels, train_size=2100)
    assert layer_quality(half, labels, train_size=2100) == pytest.approx(exact, abs=5e-6)
    assert layer_quality(half.float(), labels, train_size=2100) == pytest.approx(exact, abs=5e-6)


def test_small_samples_are_scored_in_float64_whatever_the_features():
    features, labels = sample(5, 8, 40)
    half = features.half()
    exact = layer_quality(half.double(), labels, train_size=40)
    assert layer_quality(half, labels, train_size=40) == pytest.approx(exact, rel=1e-13)


def test_features_far_from_the_origin_lose_no_precision():
    features, labels = sample(10, 210, 48)
    far = (features + 100).float()
    exact = layer_quality(far.double(), labels, train_size=2100)
    assert layer_quality(far, labels, train_size=2100) == pytest.approx(exact, abs=5e-6)


def test_numpy_arrays_score_like_tensors():
    features, labels = sample(3, 5, 11)
    assert layer_quality(features.numpy(), labels.numpy(), train_size=15) == layer_quality(
        features, labels, train_size=15
    )


def test_scoring_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        features, labels = sample(3, 5, 11)
        layer_quality(features, labels, train_size=15)
        assert torch.get_num_threads() == 2
        with pytest.raises(KdstepsError):
            layer_quality(0 * features, labels, train_size=15)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_scores_do_not_touch_the_features():
    features, labels = sample(3, 5, 11)
    before = features.clone()
    layer_quality(features, labels, train_size=15)
    assert torch.equal(features, before)


# Zero eigenvalues


@pytest.mark.parametrize("dead", [0.0, 0.1])
def test_dead_features_wipe_out_a_class_as_coded_only(dead):
    # 4 images of a class and 3 features of which one is the same all over: a zero beyond padding
    features, labels = sample(2, 4, 5)
    features[:, 2:] = dead
    coded = layer_quality(features.float(), labels, train_size=8, variant="as_coded")
    intended = layer_quality(features.float(), labels, train_size=8)
    assert coded["information"] == 0 and coded["quality"] == coded["separation"]
    assert intended["information"] > 0.001


def test_a_feature_that_differs_by_rounding_alone_counts_as_dead():
    features, labels = sample(2, 4, 5)
    features = features.float()
    features[:, 2:] = 0.1
    features[0, 2:] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    coded = layer_quality(features, labels, train_size=8, variant="as_coded")
    assert coded["information"] == 0


def test_eigenvalues_beyond_the_rank_are_zero_and_not_rounding():
    features, _ = sample(2, 10, 6)
    products = (features @ features.T).float()
    assert (class_spectrum(products, varying=6) > 0).tolist() == [True] * 6 + [False] * 14
    few = class_spectrum(products[:4, :4], varying=4)
    assert (few > 0).tolist() == [True] * 3 + [False]  # centring takes one


def test_dead_features_of_a_wide_layer_wipe_out_nothing():
    features, labels = sample(2, 4, 50)
    features[:, 10:] = 0
    coded = layer_quality(features, labels, train_size=8, variant="as_coded")
    intended = layer_quality(features, labels, train_size=8)
    assert coded["information"] == pytest.approx(intended["information"], rel=1e-9)


def test_classes_collapsed_to_points_hold_no_information():
    labels = torch.arange(4).repeat(1000)
    features = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))[labels]
    scores = score_layer([features], labels, train_size=100)
    assert scores["class_dimension"] == 0 and scores["class_entropy"] == 0
    assert scores["information"] == 0 and scores["quality"] == scores["separation"]


def test_a_dimension_is_the_least_number_of_directions_that_reach_95_percent():
    shares = torch.tensor([0.8, 0.1, 0.06, 0.04, 0.0], dtype=torch.float64)
    assert class_dimension(shares) == 3
    assert class_dimension(torch.tensor([1.0, 0.0], dtype=torch.float64)) == 1


# Which images the spectra rest on


def test_spectra_of_large_classes_rest_on_a_drawn_sample():
    features, labels = sample(2, 60, 30)
    draw = {"train_size": 120, "spectra_per_class": 20}
    first = score_layer([features], labels, **draw, seed=0)
    assert score_layer([features], labels, **draw, seed=0) == first
    other = score_layer([features], labels, **draw, seed=1)
    changed = {name for name in first if first[name] != other[name]}
    derived = {"information", "root_information_efficiency", "quality", "class_dimension"}
    assert "class_entropy" in changed and changed <= derived | {"class_entropy"}


def test_spectra_equal_those_of_the_drawn_images_alone():
    features, labels = sample(2, 60, 30)
    gram = LayerGram(labels, spectra_per_class=20, seed=3)
    gram.add(features)
    in_order = features[labels.argsort(stable=True)]
    for rows, members in zip(gram.spectra_rows, gram.classes, strict=True):
        assert len(set(rows.tolist())) == 20
        assert rows.min() >= members.start and rows.max() < members.stop
        centred = in_order[rows] - in_order[rows].mean(dim=0)
        expected = torch.linalg.svdvals(centred).square()
        spectrum = class_spectrum(gram.products[rows][:, rows], varying=30)
        torch.testing.assert_close(spectrum, expected / expected.sum())


# Wrong input


def test_a_value_that_is_not_finite_is_named_by_image():
    features, labels = sample(3, 5, 11)
    for value in (math.nan, math.inf):
        broken = features.clone()
        broken[7, 4] = value
        with pytest.raises(KdstepsError, match=r"block2: features of 1 images .* image 7 "):
            score_layer([broken], labels, train_size=15, where="block2")


def test_an_image_without_direction_is_refused():
    features, labels = sample(3, 5, 11)
    features[[2, 9]] = 0
    with pytest.raises(KdstepsError, match="2 of 15 images are zero"):
        layer_quality(features, labels, train_size=15)


def test_one_class_alone_is_refused():
    with pytest.raises(KdstepsError, match=r"1 class.*at least 2"):
        layer_quality(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64), train_size=4)


def test_a_class_of_one_image_is_refused():
    with pytest.raises(KdstepsError, match="class 5 has 1 image"):
        layer_quality(torch.rand(4, 3), torch.tensor([0, 0, 5, 0]), train_size=4)


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        (torch.rand(5, 3), LABELS, {}, r"\(6, D\).*\(5, 3\)"),
        (torch.rand(6, 3, 2), LABELS, {}, r"\(6, 3, 2\)"),
        (torch.rand(6, 0), LABELS, {}, "no features"),
        (GENERIC, LABELS[:, None], {}, r"\(N,\).*\(6, 1\)"),
        (GENERIC, LABELS.float(), {}, "whole numbers"),
        (GENERIC, LABELS, {"variant": "coded"}, "as_coded.*'coded'"),
        (GENERIC, LABELS, {"train_size": 0}, "train_size.*0"),
        (GENERIC, LABELS, {"spectra_per_class": 1}, "at least 2, not 1"),
    ],
)
def test_misuse_is_told(features, labels, options, message):
    with pytest.raises(ValueError, match=message):
        score_layer([features], labels, **{"train_size": 6, **options})


def test_a_layer_without_chunks_is_refused():
    with pytest.raises(ValueError, match="no features"):
        score_layer([], LABELS, train_size=6)
