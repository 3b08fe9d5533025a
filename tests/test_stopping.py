"""SIGTERM, which Slurm sends before it kills a job: a training run saves its state and ends."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from _training import NUM_IMAGES, RECIPE, fit_of, same_bytes, weights

from kdsteps.training.loop import Fit
from kdsteps.training.stopping import STATUS, stop_on_sigterm

STEPS = NUM_IMAGES // RECIPE.batch_size


def with_sigterm(step: int, fit: Fit) -> Fit:
    """A run that gets SIGTERM while it takes its n-th step."""
    terms, taken = fit.method.terms, 0

    def counted(batch):
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms(batch)

    fit.method.terms = counted
    return fit


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1])
def test_the_next_attempt_ends_with_the_same_bytes_and_history(tmp_path: Path, step: int):
    alone = fit_of("kd")
    alone.run()
    state = tmp_path / "state.pt"
    with pytest.raises(SystemExit) as stopped:
        with_sigterm(step, fit_of("kd", state=state)).run()
    assert stopped.value.code == STATUS == 143
    resumed = fit_of("kd", state=state)
    resumed.run()
    assert resumed.history == alone.history
    assert same_bytes(weights(resumed), weights(alone))


def test_the_log_says_where_it_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(SystemExit):
        with_sigterm(STEPS + 2, fit_of("labels", state=tmp_path / "state.pt")).run()
    assert "SIGTERM in epoch 2, after step 2" in caplog.text


def test_without_a_place_for_a_state_the_run_ends_all_the_same():
    with pytest.raises(SystemExit):
        with_sigterm(1, fit_of("labels")).run()


def test_afterwards_the_signal_has_its_former_effect():
    former = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as stop:
        assert signal.getsignal(signal.SIGTERM) != former
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wanted
    assert signal.getsignal(signal.SIGTERM) == former


def test_a_run_in_another_thread_leaves_signals_alone():
    seen = []

    def run():
        with stop_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    former = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [former]
