"""The options of a recipe that decide how far a step goes, for which weights."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import STUDY
from _networks import ENTRIES, IMAGE_SHAPE, NUM_CLASSES, network
from _training import RECIPE, Stopped, fit_of, images, same_bytes, stopped_after, weights
from torch import Tensor

from kdsteps.jobs import graph
from kdsteps.methods.base import Task
from kdsteps.methods.labels import Labels
from kdsteps.models import build_model
from kdsteps.study.loading import parse_study
from kdsteps.training.loop import Fit, Resume
from kdsteps.training.optimizers import SGD, AdamW, make_optimizer

RUN = {"pair": "pair", "method": "kd", "seed": "0"}
TEACHER = {"dataset": "digits", "teacher": "big"}


def after_one_step(fit: Fit) -> dict[str, Tensor]:
    """How far plain SGD moves each weight in its first step."""
    before = {name: weight.detach().clone() for name, weight in fit.method.named_parameters()}
    fit.optimizer.param_groups[0] |= {"momentum": 0.0, "weight_decay": 0.0}
    fit.optimizer.param_groups[-1] |= {"momentum": 0.0, "weight_decay": 0.0}
    batches = fit.split.shuffled(fit.recipe.batch_size, fit.views, fit.generator)
    fit.method.train()
    fit.take_step(next(iter(batches)))
    return {name: weight.detach() - before[name] for name, weight in fit.method.named_parameters()}


def norm(changes: dict[str, Tensor], start: str = "") -> float:
    return math.hypot(*(c.norm().item() for name, c in changes.items() if name.startswith(start)))


@pytest.mark.parametrize("name", ["labels", "fitnet"])
def test_a_gradient_is_scaled_down_to_the_norm_for_student_and_projectors_together(name):
    free = norm(after_one_step(fit_of(name, learning_rate=1.0, schedule="constant")))
    clipped = after_one_step(
        fit_of(name, learning_rate=1.0, schedule="constant", clip_grad_norm=free / 4)
    )
    assert norm(clipped) == pytest.approx(free / 4, rel=1e-4)
    if name == "fitnet":
        assert norm(clipped, "projector") > 0
        assert norm(clipped, "student") < norm(clipped)


def test_a_gradient_below_the_norm_is_left_as_it_is():
    plain, clipped = fit_of("kd"), fit_of("kd", clip_grad_norm=1e9)
    plain.run(), clipped.run()
    assert same_bytes(weights(plain), weights(clipped))


def started_from_weights(tmp_path: Path, resume: Resume | None = None, **recipe: Any) -> Fit:
    """A run of a student whose checkpoint is of another number of classes."""
    torch.save(network("resnet", seed=4, num_classes=7).plain().state_dict(), tmp_path / "w.pt")
    torch.manual_seed(0)
    entry = ENTRIES["resnet"]
    student = build_model(
        entry["family"],
        num_classes=NUM_CLASSES,
        image_size=IMAGE_SHAPE[1:],
        checkpoint=str(tmp_path / "w.pt"),
        will_train=True,
        **entry["options"],
    )
    assert student.new_weights
    method = Labels(None, student, Task(IMAGE_SHAPE, NUM_CLASSES, images().labels))
    settings = RECIPE.model_copy(update=recipe)
    return Fit(method, images(), settings, seed=0, validate=dict, resume=resume)


def test_a_new_classifier_moves_as_many_times_further(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    plain = after_one_step(started_from_weights(tmp_path, schedule="constant"))
    fit = started_from_weights(tmp_path, schedule="constant", head_learning_rate_factor=10.0)
    moved = after_one_step(fit)
    assert (
        "fc.weight, fc.bias: learning rate 0.5, 10 times that of the other weights" in caplog.text
    )
    new = {f"student.{name}" for name in fit.method.student.new_weights}
    for name, change in moved.items():
        factor = 10 if name in new else 1
        torch.testing.assert_close(change, factor * plain[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle", "steps"])
def test_both_rates_follow_the_schedule_and_the_history_has_that_of_the_other_weights(
    tmp_path, schedule
):
    alone = started_from_weights(tmp_path, schedule=schedule)
    fit = started_from_weights(tmp_path, schedule=schedule, head_learning_rate_factor=4.0)
    rest, head = fit.optimizer.param_groups
    assert head["lr"] == pytest.approx(4 * rest["lr"])
    assert fit.run().of("learning_rate") == alone.run().of("learning_rate")
    assert head["lr"] == pytest.approx(4 * rest["lr"])


def test_a_run_with_two_rates_resumes_to_the_same_bytes(tmp_path):
    options = {"head_learning_rate_factor": 4.0, "clip_grad_norm": 0.5}
    alone = started_from_weights(tmp_path, **options)
    alone.run()
    resume = Resume(tmp_path / "state.pt", "", 0.0)
    with pytest.raises(Stopped):
        stopped_after(4, started_from_weights(tmp_path, resume, **options)).run()
    resumed = started_from_weights(tmp_path, resume, **options)
    resumed.run()
    assert same_bytes(weights(alone), weights(resumed))


def test_without_a_new_classifier_or_a_factor_there_is_one_group(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    assert len(started_from_weights(tmp_path).optimizer.param_groups) == 1
    assert "head_learning_rate_factor" not in caplog.text
    method = fit_of("kd").method
    recipe = RECIPE.model_copy(update={"head_learning_rate_factor": 3.0})
    assert len(make_optimizer(method, recipe).param_groups) == 1
    assert "head_learning_rate_factor has no effect" in caplog.text


@pytest.mark.parametrize(
    ("option", "off", "on"),
    [
        ("clip_grad_norm", None, 1.0),
        ("head_learning_rate_factor", 1, 10),
        ("accumulate", 1, 2),
        ("ema", None, 0.9),
    ],
)
def test_an_option_that_is_off_leaves_what_a_job_is_made_with_as_it_was(option, off, on):
    def settings(value: object) -> list[str]:
        changed = {name: STUDY[name] | {option: value} for name in ("train", "distil")}
        study = parse_study(STUDY | (changed if value != "unset" else {}))
        return [
            graph.settings_text(study, "distil", RUN),
            graph.settings_text(study, "train", TEACHER),
        ]

    assert settings(off) == settings("unset")
    assert all(option not in text for text in settings(off))
    assert all(option in text for text in settings(on))


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (AdamW, torch.optim.AdamW, {}),
    ],
)
def test_steps_and_states_are_those_of_torch(ours, theirs, options):
    weights = [torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    ended = []
    for first, second in ((ours, ours), (theirs, theirs), (theirs, ours)):
        parameter = torch.nn.Parameter(weights[0].clone())
        optimizer = first([parameter], lr=0.1, weight_decay=0.01, **options)
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                optimizer = second([parameter], lr=0.5, **options)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            (parameter - weights[1]).square().sum().backward()
            optimizer.step()
        ended.append(parameter.detach())
    assert torch.equal(ended[0], ended[1]) and torch.equal(ended[2], ended[1])


def test_training_does_not_import_the_compiler():
    """It takes about as long as importing torch, for every job."""
    code = (
        "import sys; from _training import fit_of; fit_of('kd').run(); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
