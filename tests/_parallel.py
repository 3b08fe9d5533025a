"""Trainings that test_parallel.py runs in several processes, each of which imports this module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _training import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    RECIPE,
    frozen_teacher,
    images,
    method_of,
)
from torch import Tensor

from kdsteps.data.draws import DrawnSplit
from kdsteps.data.views import Views
from kdsteps.errors import KdstepsError
from kdsteps.jobs.job import Job
from kdsteps.methods.base import Batch, Task
from kdsteps.methods.labels import Labels
from kdsteps.study.training_settings import Distil, DrawSettings, FixedDraws
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.drawn import DrawnFit, draws_of
from kdsteps.training.loop import Fit, Resume, views_of
from kdsteps.training.processes import ALONE, Processes

PARALLEL = RECIPE.model_copy(update={"gpus": 2, "epochs": 4, "batch_size": 8})  # 12 steps


class Noisy(Labels):
    """Draws from torch's generator in every step, as dropout does."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student(F.dropout(batch.images, 0.5))
        return {"labels": F.cross_entropy(logits, batch.labels)}


@dataclass(frozen=True)
class Case:
    """A training: a method, where the teacher's logits come from, values of the recipe, draws.

    The last are the method's options.
    """

    method: str
    outputs: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    draws: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Distil:
        return PARALLEL.model_copy(update=self.recipe)


CASES = {
    "labels": Case("labels"),
    "kd, live teacher": Case("kd", "live"),
    "kd, cached logits": Case("kd", "cached"),
    # at the usual rates these two are chaotic: 1e-7 in a weight becomes 1e-3 within ten steps
    "kd, cached logits of fixed draws": Case("kd", "cached", {"mixup": 1.0}, draws=3),
    "fitnet": Case("fitnet", recipe={"learning_rate": 0.005}),
    "simkd, with unused weights": Case("simkd"),
    "sld, whose third loss begins later": Case("sld", "live", {"learning_rate": 0.005}),
    "feature_only, its classifier later": Case("feature_only", options={"classifier_after": 0.5}),
    "mixup": Case("labels", recipe={"mixup": 1.0}),
    "randaugment": Case("labels", recipe={"randaugment": 5}),
    "adamw, clipped": Case(
        "kd", "live", {"optimizer": "adamw", "clip_grad_norm": 0.5, "learning_rate": 0.005}
    ),
    "accumulate": Case("kd", "live", {"batch_size": 12, "accumulate": 3}),
    "mixup, accumulate": Case("labels", recipe={"batch_size": 12, "accumulate": 2, "mixup": 1.0}),
    "ema": Case("labels", recipe={"ema": 0.9}),
    "diverged": Case("labels", recipe={"learning_rate": 1e30, "schedule": "constant"}),
}
PER_DEVICE = Case("labels", recipe={"sync_batchnorm": False})
NOISY = Case("noisy")


def fit_of(
    case: Case, folder: Path, processes: Processes = ALONE, resume: Resume | None = None
) -> Fit:
    torch.manual_seed(0)
    split, recipe, teacher = images(), case.settings, frozen_teacher()
    views: Views = views_of(recipe)
    if case.draws:
        numbered = recipe.numbered_views(FixedDraws(draws=case.draws))
        assert isinstance(numbered, DrawSettings)
        views = draws_of(numbered, NUM_CLASSES)
        split = DrawnSplit(split, views)
    if case.method == "noisy":
        student = method_of("labels").student
        method: Any = Noisy(None, student, Task(IMAGE_SHAPE, NUM_CLASSES, split.labels))
    else:
        method = method_of(case.method, teacher=teacher, epochs=recipe.epochs, **case.options)
    outputs: TeacherOutputs | None = None
    if case.outputs:
        terms = Terms("always" if case.outputs == "cached" else "never", 0, 99)
        live = LiveTeacher(teacher, recipe.batch_size)
        outputs = teacher_outputs(folder / f"{case.draws}.npy", live, split, views, terms)
    kind: Any = DrawnFit if case.draws else Fit
    return kind(
        *(method, split, recipe),
        seed=0,
        validate=lambda: {"rank": float(processes.rank)},
        teacher=outputs,
        resume=resume,
        processes=processes,
    )


def result_of(fit: Fit) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in fit.method.state_dict().items()},
        "history": fit.history.rows(),
        "diverged": None if fit.diverged is None else str(fit.diverged),
    }


def run_cases(job: Job[dict[str, Case]], processes: Processes) -> None:
    """Run every case and save the results of each process."""
    folder = job.inputs["folder"]
    for name, case in job.settings.items():
        fit = fit_of(case, folder, processes)
        fit.run()
        torch.save(result_of(fit), folder / f"{name} {processes.rank}.pt")


def run_until_killed(job: Job[Case], processes: Processes) -> None:
    """Save the state after every step; end all after as many as "stop" says, by its signal.

    SIGKILL ends both processes, SIGTERM goes to the one that started them.
    """
    folder = job.inputs["folder"]
    fit = fit_of(job.settings, folder, processes, Resume(folder / "state.pt", "", 0.0))
    stop = folder / "stop"
    if stop.exists():
        save, steps = fit._save_if_due, iter(range(1, 99))
        last, name = stop.read_text().split()

        def save_and_die(offset: float) -> None:
            save(offset)
            if next(steps) != int(last):
                return
            if name == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif processes.first:
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(1)  # it passes the signal on

        fit._save_if_due = save_and_die  # type: ignore[method-assign]
    fit.run()
    torch.save(result_of(fit), folder / f"resumed {processes.rank}.pt")
    fit.forget()


def refuse(job: Job[Any], processes: Processes) -> None:
    """Raise in the second process while the first one waits for it."""
    if not processes.first:
        raise KdstepsError("the second process refuses")
    processes.mean(torch.zeros(1))


def wait(job: Job[Any], processes: Processes) -> None:
    """Say that this process runs, and go on until it is ended."""
    print(processes.rank, flush=True)
    while True:
        time.sleep(1)
