"""The loop with recorded steps, on a CPU: a stand-in takes each step again instead of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from _training import Stopped, fit_of, same_bytes, stopped_after, weights
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdsteps.study import registry
from kdsteps.training import loop, recorded
from kdsteps.training.loop import Fit

METHODS = registry.names("methods")
COUNT = 40  # images: five steps of 8 in an epoch


class Again:
    """Takes a step with what its inputs then hold, and writes its losses where they were."""

    def __init__(self, step: recorded.Step, inputs: Mapping[str, Tensor], losses: Tensor) -> None:
        self.step, self.inputs, self.losses = step, inputs, losses

    def replay(self) -> None:
        self.losses.copy_(self.step(self.inputs)[0])


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Runs record their steps as on a GPU; a list that grows with each recording."""
    made: list[Fit] = []

    def captured(step: Any, inputs: Mapping[str, Tensor]) -> tuple[Again, Tensor, bool]:
        fit: Fit = step.__self__
        changed = [*fit.method.state_dict(keep_vars=True).values(), *fit.optimizer.state.values()]
        tensors = [value for value in tree_leaves(changed) if isinstance(value, Tensor)]
        before = [value.detach().clone() for value in tensors]
        losses, by_epoch = step(inputs)  # a GPU would only record it
        for value, old in zip(tensors, before, strict=True):
            value.detach().copy_(old)
        made.append(fit)
        return Again(step, inputs, losses), losses, by_epoch

    monkeypatch.setattr(recorded, "captured", captured)
    monkeypatch.setattr(loop, "can_record", lambda method, *_: method.capturable)
    monkeypatch.setattr(recorded, "is_fused", lambda optimizer: True)
    return made


def plain_run(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Fit:
    fit = fit_of(name, count=COUNT, **options)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "can_record", lambda *_: False)
        fit.run()
    return fit


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_train_the_same_weights(name, recordings, monkeypatch):
    fit = fit_of(name, count=COUNT, epochs=3)
    fit.run()
    plain = plain_run(name, monkeypatch, epochs=3)
    assert same_bytes(weights(fit), weights(plain))
    assert fit.history == plain.history
    grows = name in ("dkd", "reviewkd", "sld")  # their losses depend on the epoch
    assert len(recordings) == (3 if grows else 1)


def test_an_average_of_the_weights_follows_recorded_steps(recordings, monkeypatch):
    fit = fit_of("kd", count=COUNT, ema=0.9)
    fit.run()
    assert recordings
    assert same_bytes(weights(fit), weights(plain_run("kd", monkeypatch, ema=0.9)))
    assert not same_bytes(weights(fit), weights(plain_run("kd", monkeypatch)))


@pytest.mark.parametrize("schedule", ["cosine", "steps", "onecycle"])
def test_recorded_steps_follow_the_learning_rate(schedule, recordings, monkeypatch):
    recipe = {"epochs": 4, "schedule": schedule, "warmup": 0.2}
    fit = fit_of("kd", count=COUNT, **recipe)
    fit.run()
    assert same_bytes(weights(fit), weights(plain_run("kd", monkeypatch, **recipe)))
    assert len(recordings) == 1


@pytest.mark.parametrize("name", ["kd", "crd", "embedding"])
@pytest.mark.parametrize("stop", range(1, 10))
def test_a_stopped_run_goes_on_with_a_recording_of_its_own(
    name, stop, tmp_path, recordings, monkeypatch
):
    state = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        stopped_after(stop, fit_of(name, count=COUNT, state=state)).run()
    resumed = fit_of(name, count=COUNT, state=state)
    resumed.run()
    assert same_bytes(weights(resumed), weights(plain_run(name, monkeypatch)))


def test_a_step_that_cannot_be_recorded_is_tried_once_and_taken_as_before(
    recordings, monkeypatch, caplog
):
    tried = []

    def fails(step: Any, inputs: Any) -> None:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorded, "captured", fails)
    fit = fit_of("kd", count=COUNT)
    fit.run()
    assert len(tried) == 1
    assert "not recorded as a CUDA graph" in caplog.text
    assert "operation not permitted when stream is capturing" in caplog.text
    assert same_bytes(weights(fit), weights(plain_run("kd", monkeypatch)))
    assert all(isinstance(group["lr"], float) for group in fit.optimizer.param_groups)


def test_a_step_is_not_recorded_on_a_cpu():
    fit = fit_of("kd", count=COUNT)
    assert not recorded.can_record(fit.method, fit.split, fit.recipe, 1000)
