"""A run that diverges ends there; the study goes on without it."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import TEACHER, command, outputs_of, run_of, write_study
from _training import fit_of, weights

from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.stages._shared import prepared, trained_model
from kdsteps.study.loading import load_study
from kdsteps.training.divergence import Divergence
from kdsteps.training.loop import Fit

STEPS = 3  # of an epoch


def broken_at(step: int, **given: Any) -> Fit:
    """A run whose loss `kd` is NaN in one step."""
    fit = fit_of("kd", **given)
    terms, done = fit.method.terms, [0]

    def broken(batch):
        done[0] += 1
        found = terms(batch)
        return found | ({"kd": found["kd"] * torch.nan} if done[0] == step else {})

    fit.method.terms = broken
    return fit


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_ends_with_the_epoch_of_the_first_loss_that_is_not_finite(step):
    fit = broken_at(step, epochs=5)
    history = fit.run()
    epoch, inside = divmod(step - 1, STEPS)
    assert fit.diverged == Divergence("kd", epoch + 1, inside + 1)
    assert f"the loss 'kd' became NaN or infinite in epoch {epoch + 1}, step" in str(fit.diverged)
    assert history.epoch[-1] == epoch + 1
    assert math.isnan(history.of("kd")[-1])
    assert all(map(math.isfinite, history.of("kd")[:-1]))


def test_the_last_epoch_of_a_run_that_diverged_is_not_validated():
    fit = broken_at(STEPS + 1)
    fit.validate = lambda: {"validation_accuracy": 0.5}
    assert fit.run().of("validation_accuracy") == [0.5]


def test_weights_that_the_last_step_breaks_are_noticed():
    fit = fit_of("labels", epochs=1)

    def break_the_last(*_):
        if fit.step + 1 == STEPS:
            next(fit.method.parameters()).data.fill_(torch.inf)

    fit.optimizer.register_step_post_hook(break_the_last)
    fit.run()
    assert fit.diverged == Divergence(None, 1, STEPS)
    assert "the weights became" in str(fit.diverged)


def test_where_a_run_ends_does_not_depend_on_saving_and_no_broken_state_is_saved(tmp_path):
    alone, saving = broken_at(2), broken_at(2, state=tmp_path / "state.pt")
    assert alone.run().rows()["epoch"] == saving.run().rows()["epoch"]
    assert {name: value.numpy().tobytes() for name, value in weights(alone).items()} == {
        name: value.numpy().tobytes() for name, value in weights(saving).items()
    }
    resumed = fit_of("kd", state=tmp_path / "state.pt")
    resumed._load()
    assert (resumed.epoch, resumed.step) == (0, 1)
    assert all(value.isfinite().all() for value in resumed.method.parameters())


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """A finished study in which one method diverged, and what the command said of that run."""
    folder = tmp_path_factory.mktemp("study")
    recipe = {"epochs": 3, "batch_size": 64}
    wild = {"method": "kd", "distil": {"learning_rate": 1e6}}
    write_study(
        folder,
        methods={"labels": {}, "kd": {}, "wild": wild},
        seeds=[0],
        train={"epochs": 1, "batch_size": 64, "teacher_check": "warn"},
        distil=recipe,
        cache={"images": 100},
        evaluate={"latency_runs": 2},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = load_study()
        jobs = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(given, rule)]
        said = None
        while jobs:
            rule, names = next(job for job in jobs if is_ready(call_of(given, *job)))
            jobs.remove((rule, names))
            if rule == "distil" and names["method"] == "wild":
                said = command(folder, "distil", *run_of("wild"))
            else:
                run_call(call_of(given, rule, names))
        assert said is not None
        yield folder, said


def is_ready(call: Any) -> bool:
    lists = [path for paths in call.lists.values() for path in paths]
    return all(path.is_file() for path in (*call.inputs.values(), *lists))


def files_of(folder: Path, rule: str, method: str) -> dict[str, Path]:
    return outputs_of(folder, rule, {"pair": "pair", "method": method, "seed": "0"})


@pytest.mark.slow
def test_a_student_that_diverges_is_saved_and_its_log_says_where(study):
    folder, said = study
    files = files_of(folder, "distil", "wild")
    diverged = read_checkpoint_header(files["model"])["diverged"]
    assert diverged["term"] in ("labels", "kd", None)
    assert said.returncode == 0
    assert f"in epoch {diverged['epoch']}, step {diverged['step']}" in said.stderr
    assert "learning_rate" in said.stderr
    history = read_table(files["history"], HISTORY).to_pandas()
    assert history["epoch"].max() == diverged["epoch"]
    assert not history["value"].isin([math.inf, -math.inf]).any()
    ends = history.groupby("name")["epoch"].max()
    assert ends["total"] == diverged["epoch"]
    assert ends.get("validation_accuracy", 0) < diverged["epoch"]


@pytest.mark.slow
def test_metrics_say_diverged_and_those_of_other_runs_are_complete(study):
    folder, _ = study
    found = {
        method: read_json(files_of(folder, "evaluate", method)["measures"])
        for method in ("labels", "kd", "wild")
    }
    assert {name: each["diverged"] for name, each in found.items()} == {
        "labels": False,
        "kd": False,
        "wild": True,
    }
    header = read_checkpoint_header(files_of(folder, "distil", "wild")["model"])
    assert found["wild"]["divergence"] == header["diverged"]
    assert found["wild"]["accuracy"] is None
    assert 0 < found["kd"]["accuracy"] <= 1


@pytest.mark.slow
def test_the_report_names_the_run_that_diverged_next_to_complete_ones(study):
    folder, _ = study
    page = outputs_of(folder, "report", {})["page"].read_text()
    assert "Diverged: wild (seed 0)." in page
    methods = read_json(outputs_of(folder, "report", {})["metrics"])["pair"]["methods"]
    assert methods["wild"] == {"diverged": 1}
    assert methods["kd"]["seeds"] == methods["labels"]["seeds"] == 1


@pytest.mark.slow
def test_a_student_that_diverged_is_no_teacher(study, tmp_path):
    folder, _ = study
    call = call_of(load_study(), "distil", {"pair": "pair", "method": "kd", "seed": "0"})
    path = files_of(folder, "distil", "wild")["model"]
    with pytest.raises(KdstepsError, match=r"student.safetensors: .* in epoch .*; train it again"):
        trained_model(path, prepared(call, torch.device("cpu")))


@pytest.mark.slow
def test_a_teacher_that_diverges_stops_the_study_with_one_sentence(tmp_path):
    recipe = {"epochs": 3, "batch_size": 64, "learning_rate": 1e6}
    write_study(tmp_path, train=recipe)
    assert command(tmp_path, "prepare", "--dataset", "digits").returncode == 0
    said = command(tmp_path, "train", *TEACHER)
    assert said.returncode == 2
    assert "the teacher diverged: the" in said.stderr
    assert "in epoch" in said.stderr
    assert "Traceback" not in said.stderr
    files = outputs_of(tmp_path, "train", {"dataset": "digits", "teacher": "big"})
    assert not any(path.exists() for path in files.values())
