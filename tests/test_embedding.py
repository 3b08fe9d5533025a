"""The method embedding: its two losses, its queue, and the layers that it reads."""

from __future__ import annotations

import pytest
import torch
from _examples import B, S, T, six, tensor
from _methods import batch_of, make, terms_of
from _networks import teacher_of
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods.embedding import default_queue, embedding_loss, patch_loss

QUEUE = tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.124974), (0.07, 7.718482)])
def test_the_loss_has_the_value_of_its_worked_example(temperature, expected):
    assert embedding_loss(S, T, QUEUE, temperature).item() == six(expected)


def test_only_the_directions_of_embeddings_count():
    lengths = tensor([[2], [0.1]])
    again = embedding_loss(S * lengths, 5 * T, QUEUE * tensor([[1], [2], [3], [4]]), 0.07)
    assert again.item() == pytest.approx(embedding_loss(S, T, QUEUE, 0.07).item())


def test_a_student_like_the_teacher_has_no_loss_and_no_gradient():
    student = (3 * T).requires_grad_()
    loss = embedding_loss(student, T, QUEUE, 0.07)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_the_order_of_the_queue_does_not_matter_and_a_turn_of_the_space_neither():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    expected = embedding_loss(S, T, QUEUE, 0.5).item()
    assert embedding_loss(S, T, QUEUE.flip(0), 0.5).item() == pytest.approx(expected)
    assert embedding_loss(S @ turn, T @ turn, QUEUE @ turn, 0.5).item() == pytest.approx(expected)


def test_embeddings_and_queues_of_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        embedding_loss(S, T[:, :2], QUEUE, 1.0)
    with pytest.raises(ValueError, match=r"queue .* \(4, 2\) and \(2, 3\)"):
        embedding_loss(S, T, QUEUE[:, :2], 1.0)


def test_the_loss_of_patches_by_hand():
    """Two patches whose cosine is 0 for the student and 1 for the teacher."""
    student, teacher = tensor([[[[1, 0]], [[0, 1]]]]), tensor([[[[2, 3]]]])  # (1, C, 1, 2)
    ours = torch.softmax(tensor([1, 0]) / 0.5, dim=0)  # of either patch, itself first
    expected = 0.5 * (0.5 / ours).log().sum()
    assert patch_loss(student, teacher, 0.5).item() == pytest.approx(expected.item())


def test_patches_do_not_depend_on_channels_and_maps_of_one_size_are_not_resized():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    expected = patch_loss(student, teacher, 0.07).item()
    assert patch_loss(student[:, [3, 1, 0, 5, 4, 2]], teacher, 0.07).item() == pytest.approx(
        expected
    )
    assert patch_loss(teacher, teacher, 0.07).item() == 0
    assert patch_loss(torch.randn(2, 6, 8, 8).double(), teacher, 0.07).isfinite()
    assert patch_loss(torch.randn(2, 6, 2, 2).double(), teacher, 0.07).isfinite()
    assert patch_loss(student, B[:, :, :1, :1], 0.07).item() == 0  # one patch


@pytest.mark.parametrize(
    ("images", "expected"), [(1, 16), (40, 16), (64, 32), (1797, 512), (50_000, 8192)]
)
def test_the_queue_grows_with_the_data_set(images, expected):
    assert default_queue(images) == expected


def test_the_queue_holds_the_latest_embeddings_of_the_teacher():
    teacher = teacher_of("large resnet")
    method = make("embedding", teacher=teacher, queue=12, local_weight=0)
    drawn = [batch_of(number) for number in range(3)]  # of 8 images
    for batch in drawn:
        method.terms(batch)
    seen = torch.cat([embedded(teacher, batch.images) for batch in drawn])
    expected = torch.stack([seen[12 + (row + 12) % 12] for row in range(12)])
    assert torch.allclose(method.queue, expected, atol=1e-3)  # rounded to float16
    assert method.position.item() == 0
    before = method.queue.clone()
    method.eval().terms(drawn[0])
    assert torch.equal(method.queue, before)


def test_a_batch_larger_than_the_queue_leaves_its_last_images():
    teacher = teacher_of("large resnet")
    method = make("embedding", teacher=teacher, queue=3, local_weight=0)
    method.terms(batch_of())
    expected = embedded(teacher, batch_of().images)[-3:]
    assert torch.allclose(method.queue, expected, atol=1e-3)


def test_images_are_compared_with_the_queue_before_they_enter_it():
    method, batch = make("embedding"), batch_of()
    before = method.queue.clone()
    found = terms_of(method, batch)["queue"]
    ours = method.projector(method.student.trace(batch.images, ["pool"])["pool"])
    theirs = method.teacher_features(batch)["pool"]
    assert found.item() == pytest.approx(embedding_loss(ours, theirs, before, 0.07).item())
    assert not torch.equal(method.queue, before)


def test_labels_train_the_classifier_alone():
    method = make("embedding")
    method.terms(batch_of())["labels"].backward()
    trained = {
        name for name, weight in method.student.named_parameters() if weight.grad is not None
    }
    assert trained == {"fc.weight", "fc.bias"}


def test_without_patches_only_pooled_features_are_read():
    assert make("embedding").feature_layers == ("layer3.1", "pool")
    assert make("embedding", local_weight=0).feature_layers == ("pool",)
    assert set(terms_of(make("embedding", local_weight=0), batch_of())) == {"queue", "labels"}


def test_a_layer_of_one_patch_is_refused_with_those_of_several():
    with pytest.raises(KdstepsError, match=r"teacher's layer 'pool' has no .* local_weight.*stem"):
        make("embedding", teacher_layer="pool")


def embedded(teacher: torch.nn.Module, images: Tensor) -> Tensor:
    features = teacher.trace(images, ["pool"])["pool"]
    return features / features.norm(dim=1, keepdim=True)
