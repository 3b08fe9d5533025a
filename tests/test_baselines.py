"""What is particular to single baselines: layers, projectors, draws, and what SimKD deploys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _methods import BATCH_SIZE, batch_of, class_of, fingerprint, make, step
from _networks import IMAGE_SHAPE, network
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods._checks import layer_pairs, same_classes
from kdsteps.methods._draws import Sampler
from kdsteps.methods.base import Task
from kdsteps.methods.ofd import OFD
from kdsteps.models import build_model
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.feature_shapes import feature_shapes


def test_kd_beside_features_is_a_term_of_its_own():
    terms = make("fitnet", kd_weight=0.9, labels_weight=0.1).terms(batch_of())
    plain = make("kd").terms(batch_of())
    assert torch.equal(terms["kd"], plain["kd"])
    assert torch.equal(terms["labels"], plain["labels"])


@pytest.mark.parametrize(("name", "term"), [("dkd", "dkd"), ("reviewkd", "review")])
def test_a_loss_that_warms_up_reaches_its_weight_after_the_warm_up(name, term):
    loss = [
        make(name, warmup=4).terms(batch_of(epoch=epoch))[term].item() for epoch in (0, 1, 3, 9)
    ]
    assert loss[:3] == pytest.approx([loss[3] / 4, loss[3] / 2, loss[3]])
    assert make(name, warmup=0).terms(batch_of(epoch=0))[term].item() == loss[3]


def test_layers_are_paired_evenly_and_the_last_meets_the_last():
    student, teacher = network("mobilenet"), network("large resnet")
    assert len(student.stages) > len(teacher.stages) == 3
    pairs = layer_pairs(student, teacher, None, None, "at")
    assert [layer for _, layer in pairs] == list(teacher.stages)
    assert pairs[-1] == (student.stages[-1], teacher.stages[-1])
    named = layer_pairs(student, teacher, None, ["stem", "pool"], "at")
    assert [layer for _, layer in named] == ["stem", "pool"]
    repeated = layer_pairs(student, teacher, list(student.stages), None, "at")
    assert [layer for layer, _ in repeated] == list(student.stages)
    assert repeated[-1][1] == teacher.stages[-1]
    with pytest.raises(KdstepsError, match="student_layers has 1 names and teacher_layers 2"):
        layer_pairs(student, teacher, ["stem"], ["stem", "pool"], "at")
    with pytest.raises(KdstepsError, match="teacher_layers is empty"):
        layer_pairs(student, teacher, None, [], "at")


class Gated(nn.Module):
    """Its classifier is not its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 4)
        self.stem = nn.Sequential(nn.Conv2d(IMAGE_SHAPE[0], 8, 3), nn.ReLU())
        self.gate = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).mean(dim=(2, 3))
        return self.classifier(features) * self.gate(features).sigmoid()


def test_a_teacher_has_as_many_classes_as_it_returns_logits():
    teacher = CutChain(Gated(), image_shape=IMAGE_SHAPE)
    same_classes(teacher, Task(IMAGE_SHAPE, 4, torch.arange(4)), "kd")
    with pytest.raises(KdstepsError, match="the teacher has 4 classes and the study has 3"):
        same_classes(teacher, Task(IMAGE_SHAPE, 3, torch.arange(3)), "kd")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fitnet", 16768), ("ofd", 86912), ("reviewkd", 1808774), ("crd", 65792), ("simkd", 214016)],
)
def test_projectors_of_the_benchmark_have_their_published_sizes(name, expected):
    teacher, student = (
        build_model("cifar_resnet", num_classes=100, depth=depth, widths=(32, 64, 128, 256))
        for depth in (32, 8)
    )
    task = Task((3, 32, 32), 100, torch.arange(200) % 100)
    method = class_of(name)(teacher.requires_grad_(False).eval(), student, task)
    own = sum(value.numel() for value in method.parameters())
    assert own - sum(value.numel() for value in student.parameters()) == expected


def test_negatives_are_of_other_classes_and_friends_of_the_same():
    torch.manual_seed(0)
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 2])
    sampler = Sampler(labels, num_classes=4)
    own = torch.tensor([0, 1, 2, 9])
    rows = sampler(own, 2000, relax=False)
    assert torch.equal(rows[:, 0], own)
    for image, row in zip(own, rows[:, 1:], strict=True):
        others = labels != labels[image]
        share = torch.bincount(row, minlength=10) / 2000
        assert share[~others].sum() == 0
        assert torch.allclose(share[others], 1 / others.sum(), atol=0.05)
    friends = torch.cat([sampler(own, 1, relax=True)[:, :1] for _ in range(50)], dim=1)
    assert torch.equal(labels[friends], labels[own][:, None].expand(-1, 50))
    assert len(friends[0].unique()) == 4


def test_contrast_without_another_class_is_refused():
    with pytest.raises(KdstepsError, match="all training images are of one class"):
        Sampler(torch.zeros(5, dtype=torch.long), num_classes=2)


def test_every_image_of_a_class_may_be_the_positive_of_a_relaxed_contrast():
    assert make("crd", mode="relax").terms(batch_of())["contrast"].isfinite()


def test_margins_are_taken_from_the_batch_where_no_norm_tells_them():
    with_norms, without = make("ofd"), make("ofd", ("large vit", "vit"))
    assert isinstance(with_norms, OFD)
    assert all(match.margin is not None for match in with_norms.matches)
    assert all(match.margin is None for match in without.matches)


def test_simkd_ends_in_a_relu_only_where_the_teachers_map_does():
    assert make("simkd").rectified
    assert not make("simkd", ("large wide resnet", "resnet")).rectified
    assert not make("simkd", ("large vit", "vit")).rectified


def test_simkd_deploys_the_teachers_own_classifier():
    method = make("simkd", labels_weight=1.0, kd_weight=1.0)
    assert set(method.terms(batch_of())) == {"map", "labels", "kd"}
    tail = method.deployed().span("projector", "head")
    features = torch.randn(2, *method.target.shape)
    assert torch.equal(tail(features), method.teacher.tail(method.teacher_layer)(features))
    before = fingerprint(tail)
    step(method, batch_of())
    assert fingerprint(method.deployed().span("projector", "head")) == before


def test_what_simkd_deploys_is_a_chain():
    deployed, images = make("simkd", ("large vit", "resnet")).deployed().eval(), batch_of().images
    assert deployed.layers == ("front", "projector")
    for layer, place in feature_shapes(deployed, IMAGE_SHAPE).items():
        features = deployed.front(layer)(images)
        assert tuple(features.shape[1:]) == place.shape
        assert torch.equal(deployed.tail(layer)(features), deployed(images))


def test_standardized_dkd_does_not_see_the_scale_of_the_teachers_logits():
    method, batch = make("dkd", standardize=True), batch_of()
    logits = method.teacher_logits(batch)
    plain, scaled = (
        method.terms(replace(batch, teacher_logits=factor * logits))["dkd"] for factor in (1, 4)
    )
    assert torch.allclose(plain, scaled)


def test_attention_refuses_a_batch_it_was_not_made_for():
    with pytest.raises(ValueError, match=f"{BATCH_SIZE + 1} images, and attention for"):
        make("semckd").terms(batch_of(count=BATCH_SIZE + 1))


def test_the_weight_of_semckd_reaches_the_student_and_not_the_projectors():
    gradients = {}
    for weight in (1.0, 400.0):
        method = make("semckd", weight=weight, labels_weight=0.0, kd_weight=0.0)
        method.terms(batch_of())["layers"].backward()
        gradients[weight] = {
            name: parameter.grad
            for name, parameter in method.named_parameters()
            if parameter.grad is not None
        }
    for name, plain in gradients[1.0].items():
        factor = 400 if name.startswith("student.") else 1
        torch.testing.assert_close(gradients[400.0][name], factor * plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("student", ["resnet", "large resnet"])
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_semckd_with_its_defaults_trains_narrow_networks(student, rate):
    method, batch = make("semckd", ("large resnet", student)), batch_of()
    optimizer = torch.optim.SGD(method.parameters(), lr=rate, momentum=0.9)
    losses = []
    for _ in range(30):
        terms = method.terms(batch)
        losses.append(terms["layers"].item())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
