"""The contrastive methods between logits: ckd, and the three views of contrastive_logits."""

from __future__ import annotations

import math
import re

import pytest
import torch
from _commands import command, write_study
from _methods import batch_of, make, terms_of
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Method
from kdsteps.methods.ckd import ckd_loss
from kdsteps.methods.contrastive_logits import category_contrast, class_contrast

LABELS = torch.tensor([0, 0, 1, 2, 1])


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    return student.requires_grad_(), teacher


def gradients(method: Method) -> tuple[list[float], list[Tensor]]:
    terms = terms_of(method, batch_of())
    torch.stack(list(terms.values())).sum().backward()
    found = [weight.grad for weight in method.student.parameters() if weight.grad is not None]
    return [term.item() for term in terms.values()], found


def test_the_instance_view_alone_is_ckd():
    alone, ckd = make("contrastive_logits", views=("instance",)), make("ckd")
    assert list(terms_of(alone, batch_of())) == ["labels", "instance"]
    (values, slopes), (expected, right) = gradients(alone), gradients(ckd)
    assert values == expected
    assert len(slopes) == len(right) > 0
    assert all(map(torch.equal, slopes, right))


def test_each_view_is_one_term_and_does_not_depend_on_the_others():
    together = terms_of(make("contrastive_logits"), batch_of())
    assert list(together) == ["labels", "instance", "class", "category"]
    for view in ("instance", "class", "category"):
        terms = terms_of(make("contrastive_logits", views=(view,)), batch_of())
        assert list(terms) == ["labels", view]
        assert torch.equal(terms[view], together[view])


def test_the_class_view_leaves_out_the_columns_of_other_images_of_a_class(logits):
    student, teacher = logits
    by_image = []
    for image, label in enumerate(LABELS):
        order = [image, *(other for other in range(5) if LABELS[other] != label)]
        scores = torch.cosine_similarity(teacher[[image]], student[order], dim=1) / 0.5
        by_image.append(scores.logsumexp(dim=0) - scores[0])
    found = class_contrast(student, teacher, LABELS, 0.5)
    assert found.item() == pytest.approx(torch.stack(by_image).mean().item())
    assert found < ckd_loss(student, teacher, 0.5)


def test_the_class_view_is_that_of_instances_where_no_class_occurs_twice(logits):
    distinct = torch.arange(5)
    assert torch.equal(class_contrast(*logits, distinct, 0.5), ckd_loss(*logits, 0.5))


def test_a_batch_without_negatives_has_no_loss_and_no_gradient(logits):
    student, teacher = logits
    one_class = class_contrast(student, teacher, torch.zeros(5, dtype=torch.long), 0.5)
    one_image = ckd_loss(student[:1], teacher[:1], 0.5)
    for loss in (one_class, one_image):
        assert loss.item() == 0
        (found,) = torch.autograd.grad(loss, student)
        assert not found.any()


def test_images_are_compared_by_the_direction_of_their_logits_alone(logits):
    student, teacher = logits
    lengths = torch.tensor([[0.1], [2], [3], [4], [50]])
    assert ckd_loss(lengths * student, teacher, 0.5).item() == pytest.approx(
        ckd_loss(student, lengths * teacher, 0.5).item()
    )


def test_scale_and_mean_of_a_class_do_not_matter_to_the_category_view(logits):
    student, teacher = logits
    scale, mean = torch.tensor([0.1, 2, 30, 4]), torch.tensor([5.0, -6, 70, 8])
    expected = category_contrast(student, teacher, 0.5).item()
    assert category_contrast(scale * student + mean, teacher, 0.5).item() == pytest.approx(expected)
    assert category_contrast(student, scale * teacher + mean, 0.5).item() == pytest.approx(expected)


def test_the_category_view_normalizes_as_batch_normalization_does(logits):
    student, teacher = logits
    normalized = [
        torch.nn.functional.batch_norm(side, None, None, training=True, eps=1e-12)
        for side in logits
    ]
    expected = ckd_loss(normalized[0].T, normalized[1].T, 0.5).item()
    assert category_contrast(student, teacher, 0.5).item() == pytest.approx(expected)


def test_the_loss_of_a_student_with_equal_logits_is_the_logarithm_of_their_number():
    alike = torch.ones(5, 4)
    torch.manual_seed(0)
    teacher = torch.randn(5, 4)
    assert ckd_loss(alike, teacher, 0.5).item() == pytest.approx(math.log(5))
    assert category_contrast(alike, teacher, 0.5).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("views", "said"),
    [
        (["instance", "class", "instance"], "views lists 'instance' 2 times"),
        ([], "views"),
        (["clas"], r"views\[0\] is 'clas'.*'class'"),
    ],
)
def test_views_that_are_repeated_missing_or_misspelled_are_refused_while_planning(
    tmp_path, views, said
):
    write_study(tmp_path, methods={"labels": {}, "contrastive_logits": {"views": views}})
    refused = command(tmp_path, "resolve")
    assert refused.returncode == 2
    assert re.search(rf"methods\.contrastive_logits\.{said}", refused.stderr)


def test_repeated_views_are_refused_without_a_study_too():
    with pytest.raises(KdstepsError, match=r"methods.contrastive_logits.views lists 'class' 2 t"):
        make("contrastive_logits", views=("class", "class"))
