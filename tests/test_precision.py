"""`precision`: what a run computes in, TF32 only where it is set, and gradient scaling."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _methods import make
from _networks import IMAGE_SHAPE
from _training import Stopped, fit_of, images, same_bytes, stopped_after, weights
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import CheckSettings, DistilSettings, LogitSettings, TrainSettings
from kdsteps.models.precision import HALF, autocast
from kdsteps.stages import _student, cache, train
from kdsteps.study.settings import Model
from kdsteps.study.training_settings import Distil, Train, ViewSettings
from kdsteps.teachers.logits import TOLERANCE, LiveTeacher
from kdsteps.training import loop
from kdsteps.training.device import choose_device
from kdsteps.training.precision import gradient_scaler, warn_of_overflow

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
SMALL = Model(family="cifar_resnet", options={"depth": 8})
STEPS = 6
OVERFLOWING = 2.0**40


@pytest.fixture
def card(monkeypatch) -> Iterator[None]:
    """A fake GPU without bfloat16; the TF32 switches are restored."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    properties = SimpleNamespace(uuid="8f3a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def scaler_of(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
def test_only_tf32_allows_tf32_in_products_and_convolutions(precision, card):
    torch.backends.cudnn.allow_tf32 = True
    assert choose_device(1, 1, precision=precision) == torch.device("cuda")
    assert tf32() == (precision == "tf32",) * 2


def test_a_stage_that_trains_nothing_computes_in_float32(card):
    choose_device(1, 1, precision="tf32")
    choose_device(1, 1)
    assert tf32() == (False, False)


def test_a_card_without_bfloat16_is_refused_in_one_sentence(card, monkeypatch):
    with pytest.raises(KdstepsError) as error:
        choose_device(1, 1, precision="bfloat16")
    said = str(error.value)
    assert all(part in said for part in ("bfloat16", "Tesla T4", "7.5", "float16 or float32"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_device(1, 1, precision="bfloat16").type == "cuda"


def test_a_cpu_keeps_its_settings(monkeypatch):
    before = tf32()
    for precision in PRECISIONS:
        choose_device(0, torch.get_num_threads(), precision=precision)
        assert tf32() == before


@pytest.mark.parametrize(
    ("stage", "settings", "outputs", "expected"),
    [
        (
            _student,
            DistilSettings(
                student=SMALL,
                method="kd",
                options={},
                distil=Distil(precision="tf32"),
                seed=0,
            ),
            {},
            "tf32",
        ),
        (
            train,
            TrainSettings(model=SMALL, train=Train(precision="float16")),
            {},
            "float16",
        ),
        (cache, LogitSettings(views=ViewSettings(precision="tf32")), {"ticket": Path("t")}, "tf32"),
        (
            train,
            CheckSettings(on_failure="stop", expected_accuracy=None, batch_size=8),
            {"check": Path("check.json")},
            "float32",
        ),
    ],
    ids=["distil", "train", "cached logits", "check of a teacher"],
)
def test_a_job_computes_in_the_precision_of_its_recipe(
    stage, settings, outputs, expected, monkeypatch
):
    def choose(gpus: int, threads: int, jobs_per_gpu: int, precision: str = "float32") -> None:
        raise Stopped(precision)

    monkeypatch.setattr(stage, "choose_device", choose)
    with pytest.raises(Stopped, match=expected):
        stage.run(Job(settings, {"model": Path("model")}, outputs))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_networks_compute_in_the_precision_and_weights_stay_float32(precision):
    fit, seen = fit_of("kd", precision=precision, epochs=1), set()
    layer = next(module for module in fit.method.modules() if isinstance(module, nn.Conv2d))
    layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    fit.run()
    assert seen == {HALF.get(precision, torch.float32)}
    assert {weight.dtype for weight in fit.method.parameters()} == {torch.float32}
    exact = fit_of("kd", epochs=1)
    exact.run()
    assert fit.history.of("kd") == pytest.approx(exact.history.of("kd"), rel=0.1)
    assert same_bytes(weights(fit), weights(exact)) == (precision not in HALF)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_teacher_that_runs_on_every_batch_computes_in_the_precision(precision):
    teacher = make("kd").teacher
    live = LiveTeacher(teacher, 4, precision=precision)
    pictures = torch.randn(4, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), autocast(precision, "cpu"):
        expected = teacher(pictures.contiguous(memory_format=live.format))
    assert expected.dtype == HALF.get(precision, torch.float32)
    assert torch.equal(live.compute(pictures), expected.to(torch.float16))
    assert TOLERANCE[precision] >= TOLERANCE["float32"]


def test_gradients_are_scaled_for_float16_only_and_back_before_the_step():
    for precision in PRECISIONS:
        scaler = gradient_scaler(precision, torch.device("cpu"))
        assert scaler.is_enabled() == (precision == "float16")
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=1e8)
    scaler = gradient_scaler("float16", torch.device("cpu"))
    scaler.scale(weight.half().float() * 1e-8).backward()  # in float16 1e-8 is 0
    scaler.step(optimizer)
    assert weight.item() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaling_leaves_float32_steps_as_they_are(clip, monkeypatch):
    plain = fit_of("kd", clip_grad_norm=clip, epochs=1)
    plain.run()
    monkeypatch.setattr(loop, "gradient_scaler", lambda *given: scaler_of(2.0**10))
    scaled = fit_of("kd", clip_grad_norm=clip, epochs=1)
    scaled.run()
    found, expected = weights(scaled), weights(plain)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_a_step_whose_gradients_overflow_is_left_out():
    fit = fit_of("kd", precision="float16")
    fit.scaler = scaler_of(OVERFLOWING)
    before = {name: weight.clone() for name, weight in fit.method.named_parameters()}
    fit.method.train()
    fit._epoch_rng = fit.generator.get_state()
    drawn = images().take(torch.arange(8), fit.views, torch.zeros(8, dtype=torch.long))
    fit.take_step(drawn)
    assert all(torch.equal(weight, before[name]) for name, weight in fit.method.named_parameters())
    assert fit.scaler.get_scale() == OVERFLOWING / 2


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_float16_run_resumes_with_its_scale(step, tmp_path, monkeypatch, recwarn):
    lively = partial(torch.amp.GradScaler, init_scale=2.0**21, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", lively)
    options: dict[str, Any] = {"precision": "float16", "learning_rate": 0.01}
    whole = fit_of("kd", **options)
    whole.run()
    assert whole.scaler.get_scale() < 2.0**21  # the first steps overflow
    state = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        stopped_after(step, fit_of("kd", state=state, **options)).run()
    resumed = fit_of("kd", state=state, **options)
    resumed.run()
    assert same_bytes(weights(resumed), weights(whole))
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert not recwarn.list


def test_gradients_that_overflow_however_little_they_are_scaled_are_warned_of(caplog):
    warn_of_overflow(scaler_of(2.0**-19))
    warn_of_overflow(gradient_scaler("float32", torch.device("cpu")))
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, "kdsteps"):
        warn_of_overflow(scaler_of(2.0**-21))
    assert "left out" in caplog.text
    assert "bfloat16 or float32" in caplog.text


def test_the_default_is_float32_under_the_name_it_had():
    assert ViewSettings().model_dump()["precision"] == "float32"
    assert ViewSettings(crop_padding=4, flip=True).name == "crop4_flip_batch64"
    names = {ViewSettings(precision=precision).name for precision in PRECISIONS}
    assert len(names) == len(PRECISIONS)
