"""Tiny images, teachers and students, and training runs over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _methods import class_of, plan_of
from _networks import IMAGE_SHAPE, NUM_CLASSES, network, teacher_of
from torch import Tensor

from kdsteps.data.images import ImageSplit
from kdsteps.methods.base import Method, Task
from kdsteps.models.chain import Chain
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logits import TeacherOutputs
from kdsteps.training.loop import Fit, Resume

NUM_IMAGES = 24
RECIPE = Distil(
    epochs=2,
    batch_size=8,
    learning_rate=0.05,
    schedule="cosine",
    crop_padding=1,
    flip=True,
)


def images(count: int = NUM_IMAGES, seed: int = 0, device: str = "cpu") -> ImageSplit:
    """A part of noise, its batches as a network of convolutions likes them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count, device=device) % NUM_CLASSES
    half = torch.full((IMAGE_SHAPE[0],), 0.5)
    return ImageSplit(pixels.to(device), labels, half, half, memory_format=torch.channels_last)


def frozen_teacher() -> Chain:
    return frozen(teacher_of("large resnet"), IMAGE_SHAPE)


def method_of(
    name: str,
    seed: int = 0,
    teacher: Chain | None = None,
    *,
    count: int = NUM_IMAGES,
    device: str = "cpu",
    epochs: int = RECIPE.epochs,
    **options: Any,
) -> Method:
    """A method over a small student; the seed is that of its weights."""
    student, kind = network("resnet", seed), class_of(name)
    if kind.wants != "nothing":
        teacher = teacher or frozen_teacher()
    plan = plan_of(kind.plan, teacher, student) if teacher is not None else None
    task = Task(IMAGE_SHAPE, NUM_CLASSES, images(count).labels, plan, RECIPE.batch_size, epochs)
    if teacher is not None:
        teacher.to(device)
    return kind(teacher, student.to(device), task, **options).to(device)


def fit_of(
    name: str = "kd",
    *,
    seed: int = 0,
    outputs: TeacherOutputs | None = None,
    state: Path | None = None,
    key: str = "",
    seconds: float = 0.0,
    teacher: Chain | None = None,
    count: int = NUM_IMAGES,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Fit:
    """A run of a method over the tiny images; with a path for its state, saved after each step."""
    settings = RECIPE.model_copy(update=recipe)
    given = {"count": count, "device": device, "epochs": settings.epochs} | dict(options or {})
    method = method_of(name, seed, teacher, **given)
    torch.manual_seed(seed)
    return Fit(
        method,
        images(count, device=device),
        settings,
        seed=seed,
        validate=dict,
        teacher=outputs,
        resume=None if state is None else Resume(state, key, seconds),
    )


def weights(fit: Fit) -> dict[str, Tensor]:
    """All that the run has trained, as it stands."""
    return {name: value.clone() for name, value in fit.method.state_dict().items()}


def same_bytes(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


class Stopped(Exception):
    pass


def stopped_after(step: int, fit: Fit) -> Fit:
    """The run with an end after that many steps, each of which is saved before."""
    save = fit._save_if_due
    done = [0]

    def save_and_stop(offset: float) -> None:
        save(offset)
        done[0] += 1
        if done[0] == step:
            raise Stopped

    fit._save_if_due = save_and_stop
    return fit
