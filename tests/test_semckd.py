"""SemCKD with its defaults trains narrow students, whatever the scale of the teacher's maps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _methods import batch_of, class_of, make

from kdsteps.data.images import ImageSplit
from kdsteps.data.kinds import digits
from kdsteps.evaluation.predictions import accuracy, predict
from kdsteps.methods.base import Task
from kdsteps.methods.semckd import scaled
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.frozen import frozen
from kdsteps.training.loop import Fit

IMAGE_SHAPE = (1, 8, 8)
NUM_TRAIN = 1200


def test_the_scale_of_the_teachers_maps_changes_the_loss_as_published_alone():
    batch = batch_of()
    found = {}
    for scale_teacher in (True, False):
        method = make("semckd", scale_teacher=scale_teacher)
        ours = method.student.trace(batch.images, method.student_layers)
        theirs = method.teacher_trace(batch, method.teacher_layers)
        larger = {layer: 30 * maps for layer, maps in theirs.items()}
        found[scale_teacher] = [method.loss(ours, maps, batch).item() for maps in (theirs, larger)]
    assert found[True][1] == pytest.approx(found[True][0], rel=1e-4)
    assert found[False][1] > 300 * found[False][0]


def test_maps_are_scaled_as_a_batch_and_dead_ones_stay_zero():
    maps = torch.stack([torch.full((2, 3, 3), 1.0), torch.full((2, 3, 3), 7.0)])
    assert torch.allclose(scaled(maps), maps / 5)  # the mean square of 1 and 49 is 25
    assert torch.equal(scaled(torch.zeros(2, 2, 3, 3)), torch.zeros(2, 2, 3, 3))


@pytest.mark.slow
def test_on_digits_the_defaults_keep_up_with_labels_at_a_high_learning_rate():
    train, test = splits()
    torch.manual_seed(0)
    teacher = resnet(8)
    fit("labels", None, teacher, train, epochs=5, learning_rate=0.05)
    teacher = frozen(teacher.eval().requires_grad_(False), IMAGE_SHAPE)
    found = {}
    for name in ("labels", "semckd"):
        torch.manual_seed(0)
        student = resnet(8, widths=[2, 2, 4, 8])
        given = None if name == "labels" else teacher
        fit(name, given, student, train, epochs=8, learning_rate=0.4)
        found[name] = accuracy(*predict(student, test.in_order(500)))
    assert found["labels"] > 0.8
    assert found["semckd"] > found["labels"] - 0.05


def splits() -> tuple[ImageSplit, ImageSplit]:
    source = digits.load()
    pixels, labels = torch.from_numpy(source.images), torch.from_numpy(source.labels)
    half = torch.full((1,), 0.5)
    train = ImageSplit(pixels[:NUM_TRAIN], labels[:NUM_TRAIN], half, half)
    return train, ImageSplit(pixels[NUM_TRAIN:], labels[NUM_TRAIN:], half, half)


def resnet(depth: int, **options: object) -> Chain:
    return build_model(
        "cifar_resnet", num_classes=10, in_channels=1, image_size=8, depth=depth, **options
    )


def fit(
    name: str, teacher: Chain | None, student: Chain, train: ImageSplit, **recipe: float
) -> None:
    task = replace(Task(IMAGE_SHAPE, 10, train.labels), epochs=recipe["epochs"])
    method = class_of(name)(teacher, student, task)
    Fit(method, train, Distil(schedule="cosine", **recipe), seed=0, validate=dict).run()
