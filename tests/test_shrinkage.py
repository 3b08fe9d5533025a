"""Warnings about students whose weights fade away because weight decay outweighs the losses."""

from __future__ import annotations

import pytest
import torch
from _training import Stopped, fit_of, stopped_after
from torch import nn

from kdsteps.training.shrinkage import Shrinkage

ERASING = {"weight_decay": 4.0, "momentum": 0.0, "epochs": 12, "schedule": "constant"}
TOLD = "of their initial size: weight decay outweighs the losses"


def test_weights_that_fade_away_are_told_of_once(caplog):
    fit = fit_of("feature_only", **ERASING)
    fit.run()
    assert fit.shrinkage.fraction() < 0.05
    assert caplog.text.count(TOLD) == 1


def test_a_usual_training_says_nothing(caplog):
    fit = fit_of("feature_only", epochs=12)
    fit.run()
    assert fit.shrinkage.fraction() > 0.5
    assert TOLD not in caplog.text


def test_a_resumed_run_compares_with_its_beginning(tmp_path, caplog):
    state = tmp_path / "state.pt"
    stopped = stopped_after(30, fit_of("kd", state=state, **ERASING))
    with pytest.raises(Stopped):
        stopped.run()
    caplog.clear()
    again = fit_of("kd", state=state, seed=1, **ERASING)  # other weights, before it resumes
    again.run()
    assert torch.equal(again.shrinkage.start, stopped.shrinkage.start)
    assert TOLD in caplog.text


def test_the_median_of_what_was_not_zero_counts():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    nn.init.zeros_(network[0].bias)
    shrinkage = Shrinkage(network)
    with torch.no_grad():
        for layer, left in zip(network, (0.25, 0.5, 0.75), strict=True):
            layer.weight *= left
        network[0].bias += 1
    assert shrinkage.fraction() == pytest.approx(0.5)  # of 0.25, 0.5, 0.75 and 1
    assert Shrinkage(nn.Flatten()).fraction() == 1
