"""A teacher is judged by its predictions: good ones pass, planted faults are named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import yaml
from torch import Tensor

from kdsteps.models import build_model
from kdsteps.teachers.checks import as_yaml, check_teacher
from kdsteps.teachers.diagnosis import (
    best_temperature,
    by_chance,
    class_order,
    missing_classes,
    more_often,
    proportion,
)
from kdsteps.teachers.variants import better_forms, input_forms

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


def form(accuracy: float, seen: list[int] | None = None) -> Callable[[Tensor], Tensor]:
    """A form of the images in which the teacher has an accuracy; notes how many it was shown."""

    def predicted(numbers: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(numbers))
        logits, _ = predictions(accuracy, seed=1)
        return logits.argmax(dim=1)[numbers]

    return predicted


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.9, 0.99])
def test_a_good_teacher_passes(accuracy, seed):
    forms = {"same": form(accuracy), "worse": form(accuracy / 2)}
    found = check_teacher(
        *predictions(accuracy, seed=seed), NAMES, expected_accuracy=accuracy, forms=forms
    )
    assert (found.classes, found.problems, found.warnings) == (None, (), ())
    assert (
        found.accuracy.low < accuracy < found.accuracy.high
        or abs(found.accuracy.value - accuracy) < 0.06
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_teacher_at_chance_is_stopped_and_no_order_is_made_up_for_it(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(400, 10, generator=generator), torch.arange(400) % 10
    found = check_teacher(logits, labels, NAMES)
    assert found.classes is None
    (problem,) = found.problems
    assert "near chance (10.0%)" in problem


def test_a_teacher_that_is_little_better_than_chance_is_near_it():
    logits, labels = predictions(0.13, count=4000)
    found = check_teacher(logits, labels, NAMES)
    assert found.accuracy.low > 0.1
    assert "near chance" in found.problems[0]


def test_with_one_frequent_class_a_teacher_that_knows_the_others_is_not_near_chance():
    labels = torch.tensor([0] * 190 + [1] * 10)
    predicted = torch.tensor([0] * 188 + [1] * 7 + [0] * 5)
    found = check_teacher(5 * torch.eye(2)[predicted], labels, NAMES[:2])
    assert found.accuracy.low < found.chance == 0.95
    assert found.problems == ()
    always = check_teacher(5 * torch.eye(2)[torch.zeros_like(labels)], labels, NAMES[:2])
    assert "near chance (95.0%)" in always.problems[0]


def test_chance_counts_how_often_classes_are_predicted():
    predicted, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert by_chance(predicted, labels, 2) == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)


def test_shifted_classes_are_named_with_the_order_that_is_right():
    logits, labels = predictions(0.9)
    shifted = logits.roll(1, dims=1)  # output n + 1 means class n
    found = check_teacher(shifted, labels, NAMES)
    assert found.classes == ("class9", *NAMES[:9])
    assert "class1 means class0" in found.problems[0]
    assert f"`classes: [class9, {', '.join(NAMES[:9])}]`" in found.problems[0]


def test_the_right_order_continues_a_list_of_more_outputs():
    logits, labels = predictions(0.9)
    logits[:, [2, 5]] = logits[:, [5, 2]]
    outputs = ["unused", *NAMES[::-1]]
    found = check_teacher(logits, labels, NAMES, outputs=outputs)
    right = {"class2": "class5", "class5": "class2"}
    assert found.classes == tuple(right.get(name, name) for name in outputs)


def test_a_long_order_is_not_part_of_the_sentence():
    names = [f"class{number}" for number in range(40)]
    labels = torch.arange(800) % 40
    found = check_teacher(5 * torch.eye(40)[(labels + 1) % 40], labels, names)
    assert found.classes == ("class39", *names[:39])
    assert "class20" not in found.problems[0]
    assert "and 35 more" in found.problems[0]


@pytest.mark.parametrize("names", [("c", "a"), ("9", "no"), ("T-shirt/top", "a, b: c", "Käse")])
def test_a_list_of_classes_can_be_pasted_into_params(names):
    assert yaml.safe_load(as_yaml(names)) == list(names)


def test_two_exchanged_classes_are_found_among_ten_and_among_a_hundred():
    for num_classes in (10, 100):
        labels = torch.arange(20 * num_classes) % num_classes
        predicted = torch.where(torch.arange(len(labels)) % 7 == 0, (labels + 3), labels)
        order = torch.arange(num_classes)
        order[2], order[5] = 5, 2
        found = class_order(order[predicted % num_classes], labels, num_classes)
        assert found == tuple(order.tolist())


def test_an_untrained_classifier_is_not_taken_for_another_order():
    labels = torch.arange(400) % 10
    outputs = torch.tensor([3, 3, 0, 7, 7, 7, 1, 2, 0, 3])  # of each class: five of ten are used
    assert class_order(outputs[labels], labels, 10) is None


def test_another_order_is_found_although_few_images_of_a_class_are_recognized():
    labels = torch.arange(6).repeat_interleave(8)
    order = torch.tensor([5, 0, 4, 2, 1, 3])
    meant = labels.clone()
    meant[labels == 1] = torch.tensor([3, 3, 3, 3, 3, 1, 3, 3])  # an image that is not fitted
    assert class_order(order.argsort()[meant], labels, 6) == tuple(order.tolist())


def test_classes_that_a_teacher_was_not_trained_on_are_named():
    logits, labels = predictions(0.9)
    logits[:, 7:] -= 20
    found = check_teacher(logits, labels, NAMES)
    assert "never predicts 3 of 10 classes (class7, class8, class9)" in found.problems[0]
    assert missing_classes(predictions(0.3)[0], labels) == []
    rare = labels < 9  # one image of class9 is too few to say that it is not known
    rare[9] = True
    assert missing_classes(logits[rare], labels[rare]) == [7, 8]


def test_less_than_what_was_expected_is_stopped():
    found = check_teacher(*predictions(0.6), NAMES, expected_accuracy=0.8)
    assert "below expected_accuracy (80.0%)" in found.problems[0]
    assert "check its weights, normalization, image size and class order" in found.problems[0]


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.8, 0.95])
def test_logits_that_are_scaled_are_named(accuracy):
    logits, labels = predictions(accuracy)
    assert best_temperature(logits, labels) == pytest.approx(1, abs=0.3)
    found = check_teacher(10 * logits, labels, NAMES)
    assert found.problems == ()
    assert "times as large" in found.warnings[0]
    small = check_teacher(logits / 20, labels, NAMES).warnings[0]
    assert "times as large" in small and "multiply the distillation temperature by 0.0" in small


def test_an_overfitted_teacher_is_not_called_scaled_but_a_sharp_one_is():
    logits, labels = predictions(0.7)
    overfitted = 3.5 * logits
    assert best_temperature(overfitted, labels) > 3
    assert check_teacher(overfitted, labels, NAMES).warnings == ()
    logits, labels = predictions(0.95)
    sharp = 10 * 0.35 * logits  # scaled, of a teacher that was not confident enough
    assert best_temperature(sharp, labels) < 4
    assert "times as large" in check_teacher(sharp, labels, NAMES).warnings[0]


def test_scaled_logits_are_named_where_no_error_shows_it():
    labels = torch.arange(60) % 10
    assert check_teacher(0.5 * torch.eye(10)[labels], labels, NAMES).warnings == ()
    assert check_teacher(20.0 * torch.eye(10)[labels], labels, NAMES).warnings == ()
    assert (
        "200 above the second"
        in check_teacher(200 * torch.eye(10)[labels], labels, NAMES).warnings[0]
    )


def test_a_better_form_of_the_images_is_named():
    found = check_teacher(*predictions(0.5), NAMES, forms={"channels reversed": form(0.9)})
    assert "% with channels reversed" in found.problems[0]


def test_a_form_that_is_a_little_better_is_a_warning():
    logits, labels = predictions(0.9)
    correct = logits.argmax(dim=1) == labels
    better = correct | (torch.arange(len(labels)) % 3 > 0)  # two of three errors less
    predicted = torch.where(better, labels, (labels + 1) % len(NAMES))
    forms = {"`normalize: none`": lambda numbers: predicted[numbers]}
    found = check_teacher(logits, labels, NAMES, forms=forms)
    assert found.problems == ()
    assert "% with `normalize: none`" in found.warnings[0]


def test_a_form_that_leaves_most_errors_explains_nothing():
    found = check_teacher(*predictions(0.1), NAMES, forms={"other pixels": form(0.24)})
    assert "near chance" in found.problems[0]
    assert "other pixels" not in found.problems[0]


def test_few_images_are_shown_in_other_forms_unless_there_is_doubt():
    seen: list[int] = []
    logits, labels = predictions(0.9)
    check_teacher(logits, labels, NAMES, forms={"worse": form(0.5, seen)})
    assert seen == [32]
    seen.clear()
    check_teacher(logits, labels, NAMES, forms={"w": form(0.5, seen)}, expected_accuracy=0.97)
    assert seen == [400]
    seen.clear()
    check_teacher(*predictions(1.0), NAMES, forms={"worse": form(0.5, seen)})
    assert seen == []


def test_forms_are_compared_on_the_same_images_of_all_classes():
    labels = torch.arange(1000) // 100
    predicted = torch.where(labels >= 5, labels, 9)  # the first half is not known
    shown: list[Tensor] = []

    def same(numbers: Tensor) -> Tensor:
        shown.append(numbers)
        return predicted[numbers]

    assert better_forms(predicted, labels, {"same": same}, doubtful=True) == []
    assert len(shown[0].unique()) == 512
    assert 220 < int((shown[0] < 500).sum()) < 292


def test_another_order_is_also_sought_in_other_forms_of_the_images():
    """Both faults at once: as they are, the images look alike to the teacher."""
    logits, labels = predictions(0.9)
    as_it_is = torch.zeros_like(logits)
    as_it_is[:, 3] = 5.0
    forms = {
        "`normalize: none`": lambda numbers: logits.roll(1, dims=1).argmax(dim=1)[numbers],
        "other pixels": lambda numbers: as_it_is.argmax(dim=1)[numbers],
    }
    found = check_teacher(as_it_is, labels, NAMES, forms=forms)
    (problem,) = found.problems
    both = r"with `normalize: none` and in another class order, `classes: \[class9, "
    assert re.search(rf"but (89|9\d)\.\d% {both}", problem)
    assert found.classes == (NAMES[-1], *NAMES[:-1])
    assert "near chance" in check_teacher(as_it_is, labels, NAMES).problems[0]


@pytest.mark.parametrize(
    ("size", "tried"),
    [
        ((32, 32), ["28", "48", "64"]),
        ((224, 224), ["112", "160", "320", "448"]),
        ((16, 48), ["[8, 24]", "[11, 32]", "[24, 72]", "[32, 96]"]),
    ],
)
@torch.no_grad()
def test_smaller_and_larger_images_are_tried_where_the_network_takes_them(size, tried):
    torch.manual_seed(0)
    chain = build_model("cifar_resnet", depth=8, widths=[4, 4, 4, 8], num_classes=3).eval()
    forms = input_forms(chain, (0.5,) * 3, (0.25,) * 3, size)
    names = re.findall(r"`image_size: (.*?)`", " ".join(forms))
    assert names == tried
    images = torch.rand(5, 3, *size)
    last = forms[f"`image_size: {names[-1]}` (resized images)"](images)
    larger = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    assert torch.allclose(last, chain(larger), atol=1e-5)
    assert not torch.allclose(last, chain(images), atol=1e-3)


def test_a_network_for_images_of_one_size_is_tried_at_no_other():
    options = {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "patch": 8}
    chain = build_model("vit", num_classes=3, image_size=32, **options)
    forms = input_forms(chain.eval(), (0.5,) * 3, (0.25,) * 3, (32, 32))
    assert len(forms) == 4 and not any("image_size" in form for form in forms)


def test_more_often_is_decided_by_the_images_that_differ():
    reference = torch.arange(200) < 100
    assert not more_often(reference, reference)
    assert not more_often(reference | (torch.arange(200) >= 195), reference)  # 5 of 5: p = 1/32
    assert more_often(reference | (torch.arange(200) >= 185), reference)  # 15 of 15
    assert not more_often(reference, reference | (torch.arange(200) >= 185))


def test_logits_that_are_not_finite_are_stopped():
    logits, labels = predictions()
    logits[3, 4] = float("nan")
    found = check_teacher(logits, labels, NAMES)
    assert "NaN or infinity" in found.problems[0]
    assert found.accuracy is None


def test_a_proportion_has_the_interval_of_wilson():
    found = proportion(torch.arange(10) < 8)
    # by hand: center (0.8 + z2/20) / (1 + z2/10), z = 1.96
    assert (found.low, found.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )


def test_where_few_classes_leave_two_explanations_both_are_named():
    logits, labels = predictions(0.95)
    shifted = logits.roll(1, dims=1)
    found = check_teacher(shifted, labels, NAMES, forms={"other pixels": form(0.95)})
    assert "other pixels" in found.problems[0]
    assert "class1 means class0" in found.problems[0]


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 0.99])
def test_probabilities_in_place_of_logits_stop_the_study(accuracy):
    logits, labels = predictions(accuracy)
    (problem,) = check_teacher(logits.softmax(dim=1), labels, NAMES).problems
    assert problem.startswith("its outputs are probabilities and not logits")
    assert check_teacher(logits.log_softmax(dim=1), labels, NAMES).problems == ()


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (-3000.0, "changes the predicted class of"),
        (20_000.0, "subtract the mean of each image's logits in the network"),
        (70_000.0, "end at 65504"),
    ],
)
def test_logits_that_16_bits_cannot_hold_stop_the_study(offset, words):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 10
    logits = torch.randn(400, 10, generator=generator)
    logits[torch.arange(400), labels] += 3
    assert check_teacher(logits, labels, NAMES).problems == ()
    assert check_teacher(logits + 100, labels, NAMES).problems == ()
    (problem,) = check_teacher(logits + offset, labels, NAMES).problems
    assert words in problem


def test_two_logits_that_are_nearly_equal_stop_nothing():
    logits, labels = predictions(0.9, count=50)
    logits[0, :2] = torch.tensor([5.0001, 5.0002])
    assert check_teacher(logits, labels, NAMES).problems == ()
