"""Feature-only distillation: what reaches the backbone and what does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdsteps.errors import KdstepsError
from kdsteps.methods._feature_distances import distribution_distance, feature_distance
from kdsteps.methods.base import Batch, Task
from kdsteps.methods.feature_only import FeatureOnly
from kdsteps.models import build_model
from kdsteps.plans.layer_pairs import plan_pairs

SHAPE = (1, 8, 8)


def network(widths, seed):
    torch.manual_seed(seed)
    return build_model(
        "cifar_resnet", num_classes=3, in_channels=1, image_size=8, depth=8, widths=widths
    )


def method(teacher_layers=("layer2.0", "layer3.0"), student_layers=None, epochs=240, **options):
    teacher = network((4, 8, 12, 16), 0).requires_grad_(False).eval()
    student = network((2, 2, 4, 6), 1)
    pairs = plan_pairs(
        teacher,
        student,
        SHAPE,
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        projector=options.pop("projector", "conv"),
    )
    torch.manual_seed(2)
    labels = torch.zeros(6, dtype=torch.long)
    task = Task(SHAPE, 3, labels, {"pairs": pairs}, epochs=epochs)
    return FeatureOnly(teacher, student, task, **options)


def batch() -> Batch:
    number = torch.arange(6)
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(3))
    return Batch(images, number % 3, number, torch.zeros_like(number))


@pytest.mark.parametrize(
    ("detach", "student_layers", "free"),
    [
        ("last", None, ("fc", "head")),
        ("last", ("layer1.0", "layer2.0"), ("layer3", "fc", "head")),
        ("head", ("layer1.0", "layer2.0"), ("fc", "head")),
    ],
)
def test_no_logit_loss_reaches_the_backbone(detach, student_layers, free):
    tried = method(detach=detach, student_layers=student_layers)
    tried.terms(batch())["labels"].backward()
    reached = {
        name
        for name, parameter in tried.student.named_parameters()
        if parameter.grad is not None and bool((parameter.grad != 0).any())
    }
    assert reached, "the classifier has to learn from labels"
    assert all(name.startswith(free) for name in reached), reached


def test_features_reach_the_backbone_up_to_the_last_distilled_layer_and_no_further():
    tried = method(student_layers=("layer1.0", "layer2.0"))
    tried.terms(batch())["features"].backward()
    reached = {
        n for n, p in tried.student.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight"} <= reached
    assert not any(name.startswith(("layer3", "fc")) for name in reached)


def test_the_feature_loss_is_that_of_the_paper_written_out():
    tried = method(projector="conv").eval()
    found = tried.terms(batch())["features"]
    ours = tried.student.trace(batch().images)
    theirs = tried.teacher.trace(batch().images)
    losses = []
    for projector, student, teacher in zip(
        tried.projectors, ("layer2.0", "layer3.0"), ("layer2.0", "layer3.0"), strict=True
    ):
        losses.append(F.mse_loss(projector.body(ours[student]), theirs[teacher]))
    torch.testing.assert_close(found, sum(losses) / 2)


def test_a_larger_map_is_pooled_to_the_smaller_on_either_side():
    tried = method(teacher_layers=("layer1.0",), student_layers=("layer3.0",)).eval()
    found = tried.terms(batch())["features"]
    ours = tried.student.trace(batch().images)["layer3.0"]  # 2 x 2
    theirs = tried.teacher.trace(batch().images)["layer1.0"]  # 8 x 8
    expected = F.mse_loss(tried.projectors[0].body(ours), F.adaptive_avg_pool2d(theirs, 2))
    torch.testing.assert_close(found, expected)


def test_all_to_all_links_every_student_layer_with_every_teacher_layer():
    tried = method(mapping="all_to_all")
    assert tried.links == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(tried.projectors) == 4
    assert torch.isfinite(tried.terms(batch())["features"])


def test_the_three_layer_projector_is_twice_as_wide_as_the_teacher_inside():
    widths = [
        module.out_channels for module in method(projector="three_layer").projectors[0].body[::3]
    ]
    assert widths == [24, 24, 12]


@pytest.mark.parametrize("distance", ["mse", "cosine", "huber", "distribution"])
def test_every_distance_is_zero_for_equal_features_and_has_a_finite_gradient(distance):
    features = torch.rand(4, 3, 2, 2, dtype=torch.double).requires_grad_()
    value = feature_distance(distance, features, features.detach())
    assert value.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, features)
    assert gradient.isfinite().all()


def test_the_distribution_distance_adds_geometry_mean_and_spread():
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    theirs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # error 1/2; cosines (0 against 1 off the diagonal): 1/2; means (.5, .5) and (1, 0): 1/4;
    # spreads (.5, .5) and (0, 0): 1/4
    assert distribution_distance(ours, theirs).item() == pytest.approx(1.5, abs=1e-3)


def test_layers_that_do_not_pair_are_refused_in_a_sentence():
    with pytest.raises(KdstepsError, match=r"1 student layers .* for 2 teacher layers"):
        method(student_layers=("layer3.0",))
    with pytest.raises(KdstepsError, match=r"the teacher has no layer 'layer4\.0'; did you mean"):
        method(teacher_layers=("layer4.0", "layer2.0"))


def test_attention_weighs_all_pairs_and_sums_to_one():
    tried = method(mapping="attention")
    found = tried.terms(batch())
    assert len(tried.projectors) == 4
    assert torch.isfinite(found["features"])
    found["features"].backward()
    assert all(parameter.grad is not None for parameter in tried.attention.parameters())
    with pytest.raises(KdstepsError, match="use mse, cosine or huber"):
        method(mapping="attention", distance="distribution")


def test_a_classifier_trained_afterwards_leaves_the_backbone_alone():
    tried = method(classifier_after=2)
    first, later = batch(), Batch(**(vars(batch()) | {"epoch": 2}))
    assert tried.terms(first)["labels"] == 0 < tried.terms(first)["features"]
    assert tried.terms(later)["features"] == 0 < tried.terms(later)["labels"]
    torch.stack(list(tried.terms(later).values())).sum().backward()
    touched = {name for name, p in tried.student.named_parameters() if p.grad is not None}
    assert touched
    assert all(name.startswith("fc") for name in touched)


@pytest.mark.parametrize(("after", "epochs"), [(12, 12), (0.95, 12), (0.5, 1)])
def test_a_classifier_that_would_never_be_trained_is_refused(after, epochs):
    with pytest.raises(
        KdstepsError, match=rf"classifier_after of .* should be at most {epochs - 1}"
    ):
        method(classifier_after=after, epochs=epochs)
    if epochs > 1:
        method(classifier_after=epochs - 1, epochs=epochs)
