"""One training in several processes: the weights of one process with the whole batch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import REPOSITORY, STUDY, command, write_study
from _machines import fake_machine
from _parallel import (
    CASES,
    NOISY,
    PARALLEL,
    PER_DEVICE,
    fit_of,
    run_cases,
    run_until_killed,
)
from _parallel import refuse as refuse_in_second
from _training import images, same_bytes

from kdsteps.data.images import Order
from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.jobs.progress import read_progress, reported
from kdsteps.study.loading import parse_study
from kdsteps.training import processes
from kdsteps.training.loop import views_of
from kdsteps.training.processes import Processes, in_processes
from kdsteps.training.recorded import can_record

WITHOUT_SYNC = PARALLEL.model_copy(update={"sync_batchnorm": False})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all cases in two processes."""
    pytest.importorskip("lightning_fabric")
    folder = tmp_path_factory.mktemp("parallel")
    in_processes(run_cases, Job(CASES | {"noisy": NOISY}, {"folder": folder}, {}), PARALLEL)
    return folder


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name} {rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "diverged"])
def test_two_processes_give_the_weights_of_one(ran, name, tmp_path):
    fit = fit_of(CASES[name], tmp_path)
    start = {key: value.clone() for key, value in fit.method.state_dict().items()}
    fit.run()
    first, second = results(ran, name)
    for key, value in fit.method.state_dict().items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-5, atol=1e-5)
    assert not all(torch.equal(start[key], value) for key, value in first["weights"].items())
    assert same_bytes(first["weights"], second["weights"])


@pytest.mark.slow
def test_losses_are_averaged_and_the_first_process_alone_validates(ran, tmp_path):
    alone = fit_of(CASES["kd, live teacher"], tmp_path).run().rows()
    first, second = (result["history"] for result in results(ran, "kd, live teacher"))
    assert first["name"] == alone["name"]
    assert first["value"] == pytest.approx(alone["value"], rel=1e-5, abs=1e-7)
    assert "rank" in first["name"] and "rank" not in second["name"]


@pytest.mark.slow
def test_all_processes_end_a_run_that_diverges_at_the_same_step(ran, tmp_path):
    fit = fit_of(CASES["diverged"], tmp_path)
    fit.run()
    first, second = results(ran, "diverged")
    assert first["diverged"] == second["diverged"] == str(fit.diverged) != "None"
    assert first["history"]["epoch"] == fit.history.epoch


@pytest.mark.slow
def test_batch_norm_per_process_is_another_training_with_the_same_weights_in_both(tmp_path):
    pytest.importorskip("lightning_fabric")
    in_processes(run_cases, Job({"apart": PER_DEVICE}, {"folder": tmp_path}, {}), WITHOUT_SYNC)
    first, second = results(tmp_path, "apart")
    alone = fit_of(PER_DEVICE, tmp_path)
    alone.run()
    trained = [name for name, _ in alone.method.named_parameters()]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in trained)
    gaps = [(first["weights"][n] - alone.method.state_dict()[n]).abs().max() for n in trained]
    assert max(gaps) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ended_by"), [("SIGKILL", Exception), ("SIGTERM", SystemExit)])
def test_killed_and_resumed_the_processes_give_the_same_bytes(
    ran, tmp_path, monkeypatch, name, ended_by
):
    monkeypatch.chdir(tmp_path)
    target = Path("results/train/digits/big/teacher.safetensors")
    job = Job(NOISY, {"folder": tmp_path}, {"model": target})
    (tmp_path / "stop").write_text(f"4 {name}")  # in the second epoch
    with (
        pytest.raises(ended_by, match="143" if name == "SIGTERM" else name),
        reported(target),
    ):
        in_processes(run_until_killed, job, PARALLEL)
    stopped = read_progress(target)
    assert (tmp_path / "state.pt").exists()
    (tmp_path / "stop").unlink()
    with reported(target):
        in_processes(run_until_killed, job, PARALLEL)
        ended = read_progress(target)
    whole, resumed = results(ran, "noisy")[0], results(tmp_path, "resumed")
    assert stopped is not None and ended is not None
    assert (stopped.failed, stopped.epoch, stopped.epochs) == (name == "SIGKILL", 1, 4)
    rows = zip(*(whole["history"][column] for column in ("epoch", "name", "value")), strict=True)
    assert {(e, n, v) for e, of in ended.history.items() for n, v in of.items()} == set(rows)
    assert same_bytes(whole["weights"], resumed[0]["weights"])
    assert whole["history"] == resumed[0]["history"]
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.slow
def test_sigterm_to_the_job_saves_the_state_and_ends_all_processes(tmp_path):
    pytest.importorskip("lightning_fabric")
    recipe = {"epochs": 100_000, "batch_size": 64, "gpus": 2}
    write_study(tmp_path, methods={"kd": {}}, train=recipe)
    command(tmp_path, "prepare", "--dataset", "digits")
    train = ["train", "--dataset", "digits", "--teacher", "big", "--gpus", "0"]
    job = subprocess.Popen(
        [sys.executable, "-m", "kdsteps", *train],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stderr is not None
    for line in job.stderr:
        if line.startswith("epoch 1 of"):
            break
    job.terminate()
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 128 + signal.SIGTERM, said
    assert said.count("stopped by SIGTERM in epoch") == 1
    assert len(list(tmp_path.glob(".kdsteps/resume/*.pt"))) == 1


WAITING = """
import signal
import socket
from _parallel import PARALLEL, wait
from kdsteps.jobs.job import Job
from kdsteps.training.processes import in_processes
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
in_processes(wait, Job(None, {}, {}), PARALLEL)
"""


def test_processes_meet_at_a_port_that_no_other_program_is_given(monkeypatch):
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(given.read_text().split()[0]) if given.exists() else 32_768
    with socket.socket() as other:
        other.bind(("", processes._free_port()))
        taken = other.getsockname()[1]
        monkeypatch.setattr(processes, "_PORTS", [taken] * 99 + [taken + 1])
        assert processes._free_port() == taken + 1
    assert 1024 < taken < lowest


@pytest.mark.slow
def test_no_process_outlives_a_job_that_was_killed():
    pytest.importorskip("lightning_fabric")
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    job = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    ready = sorted(job.stdout.read(4))  # one may write between the other's number and its newline
    assert ready == ["\n", "\n", "0", "1"]
    job.kill()
    job.communicate(timeout=20)  # the output ends when the last process does


@pytest.mark.slow
def test_an_error_of_any_process_is_one_sentence():
    pytest.importorskip("lightning_fabric")
    with pytest.raises(KdstepsError, match="the second process refuses"):
        in_processes(refuse_in_second, Job(None, {}, {}), PARALLEL)


LINES = """
class Lines:
    def __init__(self, training):
        self.path = training.job.partition("/")[0] + ".txt"

    def log(self, epoch):
        with open(self.path, "a") as file:
            print(epoch.number, *epoch.values, file=file)

    def close(self):
        pass
"""


@pytest.mark.slow
def test_the_stages_train_teacher_and_student_in_two_processes(tmp_path):
    pytest.importorskip("lightning_fabric")
    both = {"epochs": 2, "batch_size": 64}
    write_study(
        tmp_path,
        methods={"kd": {}},
        train=both | {"gpus": 2},
        distil=both | {"gpus": 2},
        loggers={"mine": {"logger": "./mine.py:Lines"}},
    )
    (tmp_path / "mine.py").write_text(LINES)
    names = ("--pair", "pair", "--method", "kd", "--seed", "0")
    for stage, *given in [
        ("prepare", "--dataset", "digits"),
        ("train", "--dataset", "digits", "--teacher", "big"),
        ("distil", *names),
    ]:
        said = command(tmp_path, stage, *given, "--gpus", "0")
        assert said.returncode == 0, said.stderr
        if stage != "prepare":
            assert said.stderr.count("training in 2 processes") == 1
            assert said.stderr.count("epoch 2 of 2") == 1
            logged = (tmp_path / f"{stage}.txt").read_text().splitlines()
            assert [line.split()[0] for line in logged] == ["1", "2"], "each epoch once"
            assert all("validation_accuracy" in line for line in logged)
    assert not list(tmp_path.glob(".kdsteps/resume/*"))


@pytest.mark.slow
def test_snakemake_gives_a_job_the_gpus_of_its_training(tmp_path, monkeypatch):
    machine = fake_machine(monkeypatch, tmp_path).add_cards(*["NVIDIA H100"] * 4)
    folder = write_study(
        tmp_path / "study",
        methods={"kd": {}, "labels": {"distil": {"gpus": 1}}},
        seeds=[0],
        train=STUDY["train"] | {"gpus": 2},
        distil=STUDY["distil"] | {"gpus": 4},
    ).parent
    for name in ("Snakefile", "workflow", "profiles"):
        (folder / name).symlink_to(REPOSITORY / name)
    planned = subprocess.run(
        ["snakemake", "-n", "-p", "--cores", "8", "--resources", "gpu=4", "jobs_per_gpu=2"],
        cwd=folder,
        env=machine.environment(tmp_path / "site"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    given = {}
    for shell in planned.stdout.split("python -m kdsteps ")[1:]:
        written = re.search(r"--outputs \w+=results/(\S+)/\w+\.safetensors", shell)
        if written:
            given[written[1]] = re.findall(r"--(?:gpus|jobs-per-gpu) (\d)", shell)
    assert given == {
        "train/digits/big": ["2"],
        "distil/pair/kd/0": ["4", "1"],
        "distil/pair/labels/0": ["1", "2"],
    }


def test_the_parts_of_a_batch_are_equal_and_in_order():
    order = Order(torch.arange(8), torch.arange(8) + 5, seed=3)
    parts = [Processes(rank, 4).order(order, 1) for rank in range(4)]
    assert [part.index.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.cat([part.view for part in parts]).equal(order.view)
    assert {part.seed for part in parts} == {3}
    whole = images().made(
        Order(torch.arange(8), torch.zeros(8, dtype=torch.int64), 0), views_of(PARALLEL)
    )
    drawn = [Processes(rank, 2).images(whole, 1) for rank in range(2)]
    assert torch.cat([part.images for part in drawn]).equal(whole.images)
    assert torch.cat([part.targets for part in drawn]).equal(whole.targets)


def test_each_process_has_a_part_of_each_part_of_a_batch():
    order = Order(torch.arange(12), torch.zeros(12, dtype=torch.int64), seed=3)
    parts = [Processes(rank, 2).order(order, 3).index.tolist() for rank in range(2)]
    assert parts == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


def test_a_step_of_several_processes_is_not_recorded(monkeypatch, tmp_path):
    fit = fit_of(CASES["labels"], tmp_path)
    monkeypatch.setattr(type(fit.split), "device", torch.device("cuda"))
    assert not can_record(fit.method, fit.split, PARALLEL, 100)
    assert can_record(fit.method, fit.split, PARALLEL.model_copy(update={"gpus": 1}), 100)


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(KdstepsError, match=r"gpus is 2, .* install kdsteps\[parallel\] or"):
        in_processes(run_cases, Job({}, {}, {}), PARALLEL)


def test_fewer_gpus_than_processes_are_refused():
    with pytest.raises(KdstepsError, match=r"--gpus: is 1, and `gpus` in params.yaml is 2; use"):
        in_processes(run_cases, Job({}, {}, {}, gpus=1), PARALLEL)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gpus": 3}, "gpus is 3 and batch_size is 256; batch_size should be a multiple of 3"),
        ({"gpus": 2, "accumulate": 3}, "accumulate is 3 and gpus is 2 .* a multiple of 6"),
        ({"sync_batchnorm": False}, "sync_batchnorm is false and gpus is 1; leave it out, or"),
    ],
)
def test_contradictions_are_named_while_planning(section, message):
    for name in ("train", "distil"):
        with pytest.raises(KdstepsError, match=f"{name}: {message}"):
            parse_study(STUDY | {name: STUDY[name] | section})


@pytest.mark.parametrize(
    ("method", "options"), [("rkd", {}), ("crd", {}), ("block_kd", {"norm": "batch"})]
)
def test_a_method_that_compares_images_refuses_several_processes(method, options):
    given = {"methods": {method: options}, "distil": STUDY["distil"] | {"gpus": 2}}
    with pytest.raises(KdstepsError, match=rf"methods.{method}: .* and distil.gpus is 2; set"):
        parse_study(STUDY | given)


def test_a_job_knows_its_gpus_and_evaluating_needs_one():
    sections = {name: STUDY[name] | {"gpus": 2} for name in ("train", "distil")}
    study = parse_study(STUDY | sections | {"methods": {"kd": {}}})
    found = {
        rule: {graph.settings(study, rule, names).gpus for names in graph.jobs(study, rule)}
        for rule in ("train", "train_check", "distil", "evaluate", "prepare")
    }
    expected = {"train": {2}, "train_check": {1}, "distil": {2}, "evaluate": {1}, "prepare": {1}}
    assert found == expected
