"""The logits of several teachers as those of one, and which teachers an audit finds to be bad."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _training import RECIPE, images
from torch import Tensor

from kdsteps.data.augmentation import Augmentation
from kdsteps.data.draws import DrawnSplit, Draws, targets_of
from kdsteps.data.images import Views
from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Task
from kdsteps.models import build_model
from kdsteps.models.chain import HEAD
from kdsteps.study import registry
from kdsteps.study.teacher_checks import methods_for_several
from kdsteps.teachers.audit import audit_teachers, class_distances
from kdsteps.teachers.combined_cache import (
    CachedCombination,
    CombinedTeachers,
    combined_outputs,
    write_combined,
)
from kdsteps.teachers.combining import Combining, combined_logits, confidence_weights, standardized
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.loop import Fit

# Three teachers and one image of class 0; the last teacher is wrong and has the largest logits.
THREE = torch.tensor([[[2.0, 1.0, 0.0]], [[3.0, 1.0, -1.0]], [[0.0, 3.0, 6.0]]])
LABEL = torch.tensor([0])
WEIGHTS = [0.498241, 0.498650, 0.003110]


ALL = [
    Combining(c, s) for c in ("mean", "median", "confidence") for s in ("logits", "standardized")
]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Combining("mean"), [5 / 3, 5 / 3, 5 / 3]),  # nothing is left
        (Combining("median"), [2.0, 1.0, 0.0]),
        (Combining("mean", "standardized"), [1 / 3, 0.0, -1 / 3]),
        (Combining("median", "standardized"), [1.0, 0.0, -1.0]),
        (
            Combining("confidence"),
            (torch.tensor([WEIGHTS]) @ THREE[:, 0])[0].tolist(),
        ),
    ],
)
def test_three_teachers_combine_to_the_values_worked_out(chosen, expected):
    found = combined_logits(THREE, chosen, LABEL)[0]
    assert found.tolist() == pytest.approx([float(value) for value in expected], abs=1e-5)


def test_confidence_follows_the_cross_entropies_of_the_teachers():
    losses = torch.stack([torch.nn.functional.cross_entropy(each, LABEL) for each in THREE])
    assert losses.tolist() == pytest.approx([0.407606, 0.142932, 6.050946], abs=1e-6)
    weights = confidence_weights(THREE.double(), LABEL)[:, 0]
    assert weights.tolist() == pytest.approx(WEIGHTS, abs=1e-6)
    shares = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(confidence_weights(THREE.double(), shares)[:, 0], weights)


def test_the_median_of_the_example_has_the_known_softmax():
    found = combined_logits(THREE, Combining("median")).softmax(dim=1)[0].tolist()
    assert found == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)


def test_the_median_of_an_even_number_is_between_the_middle_two():
    four = torch.tensor([0.0, 1.0, 3.0, 100.0]).view(4, 1, 1).expand(4, 1, 2)
    assert combined_logits(four, Combining("median")).tolist() == [[2.0, 2.0]]
    two = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        combined_logits(two, Combining("median")), combined_logits(two, Combining("mean"))
    )


@pytest.mark.parametrize("chosen", ALL, ids=str)
def test_equal_teachers_combine_to_one_of_them(chosen):
    one = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0)).expand(3, 6, 5)
    expected = one[0] if chosen.space == "logits" else standardized(one[0]).float()
    found = combined_logits(one, chosen, torch.arange(6) % 5)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("chosen", ALL, ids=str)
def test_a_combination_does_not_depend_on_the_other_images(chosen):
    logits = torch.randn(4, 33, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(33) % 10
    whole = combined_logits(logits, chosen, labels).half()
    one_by_one = [
        combined_logits(logits[:, n : n + 1], chosen, labels[n : n + 1]).half() for n in range(33)
    ]
    assert torch.equal(whole, torch.cat(one_by_one))


@pytest.mark.parametrize("combine", ["mean", "median", "confidence"])
def test_standardized_logits_do_not_depend_on_scale_and_shift(combine):
    logits = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    changed = torch.stack([10 * logits[0] + 3, logits[1], logits[2]])
    labels, chosen = torch.arange(8) % 5, Combining(combine, "standardized")
    assert torch.allclose(
        combined_logits(logits, chosen, labels), combined_logits(changed, chosen, labels), atol=1e-5
    )


def test_logits_that_are_all_equal_stay_finite():
    assert standardized(torch.full((1, 4), 3.0)).tolist() == [[0.0] * 4]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\(M, N, K\)"):
        combined_logits(THREE[0], Combining())
    with pytest.raises(ValueError, match="needs the classes"):
        combined_logits(THREE, Combining("confidence"))


# cached


def lives(count: int = 3) -> list[LiveTeacher]:
    """Teachers of different depths."""
    found = []
    for number in range(count):
        torch.manual_seed(number)
        options: dict[str, Any] = {"depth": 8 + 6 * (number % 2), "widths": [4, 4, 8, 8]}
        chain = build_model("cifar_resnet", num_classes=5, in_channels=3, image_size=8, **options)
        found.append(LiveTeacher(frozen(chain.eval(), images().image_shape), RECIPE.batch_size))
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Images in two views, three teachers, and the files of their logits."""
    part, views, teachers = images(), Views(0, flip=True), lives()
    part.labels %= 5
    terms, folder = Terms("always", 0, 100), tmp_path_factory.mktemp("cache")
    members = [
        teacher_outputs(folder / f"{number}.npy", each, part, views, terms)
        for number, each in enumerate(teachers)
    ]
    return part, views, teachers, members


@pytest.mark.parametrize("chosen", ALL, ids=str)
def test_combined_logits_are_the_same_from_the_file_and_on_the_fly(chosen, given, tmp_path):
    part, views, teachers, members = given
    path = tmp_path / "combined.npy"
    write_combined(path, [each.rows for each in members], chosen, part)
    from_file = CachedCombination(path, teachers, chosen, part, views)
    live, mixed = (
        CombinedTeachers(some, chosen) for some in (teachers, [members[0], *teachers[1:]])
    )
    generator = torch.Generator().manual_seed(1)
    for drawn in part.shuffled(RECIPE.batch_size, views, generator):
        expected = from_file(drawn)[HEAD]
        assert expected.dtype == torch.float32
        assert torch.equal(live(drawn)[HEAD], expected)
        assert torch.equal(mixed(drawn)[HEAD], expected)


@pytest.mark.parametrize("chosen", ALL, ids=str)
@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_combined_logits_of_fixed_draws_are_the_same_from_the_file(mixing, chosen, tmp_path):
    """Also `confidence`, which needs the fractions of the classes in mixed images."""
    part, draws, teachers = images(), Draws(1, True, Augmentation(5, **mixing), number=3), lives(2)
    part.labels %= 5
    split, terms = DrawnSplit(part, draws), Terms("always", 0, 100)
    members = [
        teacher_outputs(tmp_path / f"{number}.npy", each, split, draws, terms)
        for number, each in enumerate(teachers)
    ]
    write_combined(tmp_path / "all.npy", [each.rows for each in members], chosen, split)
    from_file = CachedCombination(tmp_path / "all.npy", teachers, chosen, split, draws)
    live = CombinedTeachers(teachers, chosen)
    for split.epoch in range(3):
        orders = split.orders(RECIPE.batch_size, Views(), torch.Generator().manual_seed(0))
        for drawn in split.batches(orders, Views()):
            assert torch.equal(targets_of(split, drawn.index, drawn.view), drawn.targets)
            assert torch.equal(live(drawn)[HEAD], from_file(drawn)[HEAD])


def test_a_file_of_other_teachers_is_noticed(given, tmp_path):
    part, views, teachers, members = given
    path = tmp_path / "combined.npy"
    write_combined(path, [each.rows for each in members], Combining(), part)
    with pytest.raises(KdstepsError, match=r"combined\.npy: differs from the teachers"):
        CachedCombination(path, [*teachers[:2], lives(5)[4]], Combining(), part, views)


@pytest.mark.parametrize("keep", ["auto", "never"])
def test_logits_are_combined_in_a_file_once_all_teachers_have_one(keep, given, tmp_path):
    part, views, teachers, members = given
    path = tmp_path / "combined.npy"

    def outputs(found: list[Any]) -> TeacherOutputs:
        return combined_outputs(
            path, teachers, Combining(), part, views, members=lambda: found, keep=keep
        )

    assert isinstance(outputs([*members[:2], teachers[2]]), CombinedTeachers)
    assert not path.exists()
    first = outputs(members)
    assert isinstance(first, CachedCombination) == path.exists() == (keep == "auto")
    if keep == "auto":
        assert isinstance(outputs([]), CachedCombination)  # of the file, without the teachers'
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        whole = path.read_bytes()
        path.write_bytes(damaged)
        assert isinstance(outputs(members), CachedCombination)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("name", methods_for_several())
def test_every_method_that_is_offered_learns_from_combined_logits(name, given):
    part, views, teachers, _ = given
    options: dict[str, Any] = {"depth": 8, "widths": [4, 4, 4, 8]}
    student = build_model("cifar_resnet", num_classes=5, in_channels=3, image_size=8, **options)
    task = Task(part.image_shape, 5, part.labels, None, RECIPE.batch_size, RECIPE.epochs)
    method = registry.load("methods", name)(None, student, task)
    teacher = CombinedTeachers(teachers, Combining("median"))
    fit = Fit(method, part, RECIPE, seed=0, validate=dict, teacher=teacher)
    drawn = next(part.shuffled(RECIPE.batch_size, views, torch.Generator().manual_seed(0)))
    assert fit.take_step(drawn).isfinite().all()


# the audit


def test_two_teachers_are_as_far_from_their_median():
    logits = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])
    assert class_distances(logits, torch.tensor([0])).tolist() == pytest.approx(
        [0.5, 0.5], abs=1e-3
    )


def test_a_distance_is_the_part_of_the_probability_that_is_elsewhere():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]], [[50.0, 0.0]]])
    assert class_distances(logits, torch.tensor([0])).tolist() == pytest.approx([0.0, 0.0, 0.5])


def logits_like(seed: int, labels: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.eye(4)[labels] + torch.randn(len(labels), 4, generator=generator)


def test_similar_teachers_pass_and_classes_need_no_labels():
    labels = torch.arange(200) % 4
    good = {name: logits_like(seed, labels) for seed, name in enumerate("abc")}
    for given in (labels, None):
        found = audit_teachers(good, given)
        assert [each.teacher for each in found] == ["a", "b", "c"]
        assert not any(each.problems or each.warnings for each in found)
        assert all(0.9 < each.scale < 1.1 and each.agreement > 0.95 for each in found)
    assert found[0].accuracy is None
    bad = audit_teachers(good | {"c": good["c"].roll(1, dims=1)}, None)
    assert [bool(each.problems) for each in bad] == [False, False, True]


def test_a_teacher_with_infinite_logits_is_a_problem():
    labels = torch.arange(40) % 4
    broken = logits_like(1, labels)
    broken[3] = torch.inf
    found = audit_teachers({"a": logits_like(0, labels), "b": broken}, labels)
    assert [each.problems[:1] for each in found] == [(), ("its logits contain NaN or infinity",)]


def test_teachers_are_compared_on_the_same_images():
    with pytest.raises(ValueError, match="2 teachers"):
        audit_teachers({"a": torch.zeros(3, 4), "b": torch.zeros(2, 4)}, None)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The logits of four teachers of digits, one of them bad in seven ways, by way; and labels."""
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, benchmarks)
    try:
        import bad_teachers as bad
    finally:
        sys.path.remove(benchmarks)
    part = bad.digits(tmp_path_factory.mktemp("digits")).part("train")
    return dict(bad.variants(bad.trained_teachers(part, epochs=6))), part.labels


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("reversed ranks", "class order"),
        ("class means", "nearly the same for all images of a class"),
        ("scaled by 10", "times as large"),
        ("permuted classes", "class order"),
        ("other normalization", "normalization"),
        ("untrained", "weights"),
        ("other classes", "class order"),
    ],
)
def test_a_teacher_that_is_bad_in_any_of_seven_ways_is_a_problem(planted, way, said):
    variants, labels = planted
    assert len(variants) == 2 + 7
    found = audit_teachers({str(n): each for n, each in enumerate(variants[way])}, labels)
    assert [bool(each.problems) for each in found] == [False, False, False, True]
    assert any(said in sentence for sentence in found[-1].problems)


def test_good_teachers_have_no_problem_and_a_scale_is_none_where_logits_are_standardized(planted):
    variants, labels = planted
    for way in ("none", "left out"):
        found = audit_teachers({str(n): each for n, each in enumerate(variants[way])}, labels)
        assert not any(each.problems or each.warnings for each in found)
    scaled = {str(n): each for n, each in enumerate(variants["scaled by 10"])}
    last = audit_teachers(scaled, labels, space="standardized")[-1]
    assert not last.problems and "no effect" in last.warnings[0]
