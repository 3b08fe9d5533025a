"""Training on a GPU: steps recorded as CUDA graphs, resumed runs, every method as a command."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from _commands import DATA, TEACHER, command, outputs_of, run_of, started, write_study
from _training import Stopped, fit_of, frozen_teacher, stopped_after, weights
from torch import Tensor

from kdsteps.data.device_memory import allowed_bytes
from kdsteps.study import registry
from kdsteps.teachers.logits import LiveTeacher
from kdsteps.training import recorded
from kdsteps.training.device import choose_device
from kdsteps.training.loop import Fit

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

METHODS = registry.names("methods")
SHARED = ("--jobs-per-gpu", "8")  # beside other jobs of this machine
COUNT = 8 * (recorded.FEWEST + 5)  # images: enough steps of 8 for a recording


def run_on_gpu(name: str, *, record: bool = True, state: Path | None = None, **recipe) -> Fit:
    """A finished run of a method."""
    fit = fit_of(name, device="cuda", count=COUNT, state=state, seconds=1e9, **recipe)
    if not record:
        fit.method.capturable = False
    fit.run()
    return fit


def far(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two weights, relative to the largest weight of its tensor."""
    assert first.keys() == second.keys()
    gaps = [
        ((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-3)).item()
        for name in first
        if torch.is_floating_point(first[name])
    ]
    return max(gaps)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_are_the_steps(name):
    recipe = {"epochs": 2, "learning_rate": 0.01}
    plain = run_on_gpu(name, record=False, **recipe)
    fast = run_on_gpu(name, **recipe)
    assert not plain.recorded.covers(1)
    assert fast.recorded.covers(1)
    assert fast.history.of("total") == pytest.approx(plain.history.of("total"), rel=1e-4)
    assert far(weights(plain), weights(fast)) < 1e-3


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adamw", "learning_rate": 1e-3},
        {"clip_grad_norm": 0.1},
        {"schedule": "onecycle"},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_recorded_steps_follow_the_recipe(recipe):
    recipe = {"epochs": 3, "warmup": 0.3, "learning_rate": 0.01} | recipe
    plain = run_on_gpu("kd", record=False, **recipe)
    fast = run_on_gpu("kd", **recipe)
    assert fast.recorded.covers(fast.epoch - 1)
    half = recipe.get("precision") == "bfloat16"
    assert far(weights(plain), weights(fast)) < (5e-2 if half else 1e-3)


@pytest.mark.parametrize("name", ["dkd", "reviewkd", "feature_only"])
def test_a_loss_that_grows_over_the_epochs_is_recorded_for_each(name):
    """The weights of these methods, or their terms, change in the first epochs."""
    recipe = {"epochs": 4, "learning_rate": 0.01}
    plain, fast = run_on_gpu(name, record=False, **recipe), run_on_gpu(name, **recipe)
    assert fast.history.of("total") == pytest.approx(plain.history.of("total"), rel=1e-4)


def test_a_method_that_waits_for_the_gpu_is_trained_without_a_recording(caplog):
    fit = fit_of("kd", device="cuda", count=COUNT)
    terms = fit.method.terms

    def waiting(batch):
        found = terms(batch)
        assert found["kd"].item() >= 0
        return found

    fit.method.terms = waiting
    fit.run()
    assert "not recorded as a CUDA graph" in caplog.text
    assert far(weights(fit), weights(run_on_gpu("kd", record=False))) < 1e-3


@pytest.mark.parametrize("name", ["kd", "block_kd", "crd", "feature_only", "reviewkd"])
@pytest.mark.parametrize("stop", [3, recorded.FEWEST, recorded.FEWEST + 9])
def test_a_stopped_run_resumes_on_the_gpu(name, stop, tmp_path):
    state = tmp_path / "state.pt"
    cut_off = fit_of(name, device="cuda", count=COUNT, state=state, learning_rate=0.01)
    with pytest.raises(Stopped):
        stopped_after(stop, cut_off).run()
    resumed = run_on_gpu(name, state=state, learning_rate=0.01)
    alone = run_on_gpu(name, learning_rate=0.01)
    assert far(weights(resumed), weights(alone)) < 1e-3


def test_logits_on_the_fly_are_part_of_the_recording():
    live = LiveTeacher(frozen_teacher().to("cuda"), 8)
    fast = run_on_gpu("kd", outputs=live, learning_rate=0.01)
    assert fast.recorded.covers(fast.epoch - 1)
    assert far(weights(run_on_gpu("kd", learning_rate=0.01)), weights(fast)) < 2e-2  # float16


@pytest.mark.parametrize("name", ["labels", "kd", "block_kd"])
def test_a_compiled_student_is_recorded_too(name, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    fast = run_on_gpu(name, compile=True, learning_rate=0.01)
    assert "times as fast" in caplog.text
    assert fast.recorded.covers(fast.epoch - 1)
    assert far(weights(run_on_gpu(name, learning_rate=0.01)), weights(fast)) < 2e-2


def test_a_job_may_use_its_fraction_of_the_memory():
    try:
        device = choose_device(gpus=1, threads=1, jobs_per_gpu=4)
        total = torch.cuda.get_device_properties(device).total_memory
        assert allowed_bytes(device) == pytest.approx(total / 4, rel=1e-3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_every_method_runs_one_epoch_as_a_command(tmp_path):
    options = {"semckd": {}, "crd": {"negatives": 16}}
    methods = {name: options.get(name, {}) for name in METHODS}
    small = {"family": "cifar_resnet", "depth": 8, "widths": [4, 4, 8, 8]}
    recipe = {"epochs": 2, "batch_size": 32, "learning_rate": 0.02, "flip": True}
    write_study(
        tmp_path,
        methods=methods,
        models={"big": small, "small": small},
        train=recipe | {"teacher_check": "warn"},
        distil=recipe | {"precision": "bfloat16"},
        cache={"images": 200, "outputs": "always"},
    )
    stages = [("prepare", *DATA), ("train", *TEACHER), ("cache", *TEACHER), ("score", *TEACHER)]
    stages.append(("evaluate", *TEACHER))
    for name in METHODS:
        if registry.load("methods", name).plan:
            stages.append(("build", "--pair", "pair", "--method", name))
        stages += [("distil", *run_of(name)), ("evaluate", *run_of(name))]
    for stage in [*stages, ("evaluate", "--pair", "pair")]:
        done = command(tmp_path, *stage, *SHARED)
        assert done.returncode == 0, (stage, done.stderr)
        if stage[0] in ("train", "distil", "evaluate"):
            assert "on NVIDIA" in done.stderr + done.stdout, stage


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_command_resumes_on_the_gpu(how, tmp_path):
    recipe = {"epochs": 400, "batch_size": 32, "learning_rate": 0.01, "checkpoint_minutes": 0.01}
    write_study(tmp_path, methods={"kd": {}}, seeds=[0], distil=recipe)
    for stage in (("prepare", *DATA), ("train", *TEACHER)):
        done = command(tmp_path, *stage, *SHARED)
        assert done.returncode == 0, (stage, done.stderr)
    first = started(tmp_path, "distil", *run_of("kd"), *SHARED)
    while not list(tmp_path.glob(".kdsteps/resume/*.pt")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(how)
    assert first.wait() in (-how, 128 + how)
    student = outputs_of(tmp_path, "distil", {"pair": "pair", "method": "kd", "seed": "0"})
    assert not any(path.exists() for path in student.values())
    second = command(tmp_path, "distil", *run_of("kd"), *SHARED)
    assert second.returncode == 0, second.stderr
    assert "resuming in epoch" in second.stderr + second.stdout
    assert not list(tmp_path.glob(".kdsteps/resume/*.pt"))
    epochs = pd.read_parquet(student["history"])["epoch"].unique().tolist()
    assert epochs == list(range(1, 401))
