"""Which GPUs a job may choose from, which one it takes, and what it sees of the others."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from _commands import DATA, TEACHER, write_study
from _machines import CPU_ONLY, ROCM, UUIDS, Machine, fake_machine, use_build

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.jobs.gpu_slots import given_gpus
from kdsteps.jobs.gpus import gpus_there, torch_build, usable_cards

H100 = "NVIDIA H100 80GB HBM3"
MIG = "MIG-5c89852c-d268-5c7a-9c2b-000000000001"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return fake_machine(monkeypatch, tmp_path)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def take(held: ExitStack, count: int = 1, jobs_per_gpu: int = 1) -> str:
    """Take GPUs as another job would; what that job finds in CUDA_VISIBLE_DEVICES."""
    before = dict(os.environ)
    held.enter_context(given_gpus(count, jobs_per_gpu))
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    os.environ.clear()
    os.environ.update(before)
    return seen


def entries() -> list[str]:
    return [card.entry for card in usable_cards()]


# which there are


def test_gpus_are_counted_by_their_device_files(machine):
    assert gpus_there() == 0
    machine.add("dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia0", "dev/nvidia1", "dev/nvidia10")
    assert gpus_there() == 3
    assert [card.key for card in usable_cards()] == ["nvidia0", "nvidia1", "nvidia10"]


def test_wsl_has_one_device_file_for_its_gpu(machine):
    assert gpus_there() == 0
    machine.add("dev/dxg")
    assert gpus_there() == 1


def test_amd_gpus_count_only_for_a_torch_that_can_use_them(machine, monkeypatch):
    """Most laptops have such files, for the graphics in their processor."""
    machine.add("dev/kfd", "dev/dri/renderD128", "dev/dri/renderD129")
    assert gpus_there() == 0
    use_build(monkeypatch, ROCM)
    assert gpus_there() == 2


def test_the_build_of_torch_is_read_without_importing_it():
    import torch

    build = torch_build()
    found = (str(torch.__version__), torch.version.cuda, torch.version.hip)
    assert (build.version, build.cuda, build.rocm) == found


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("0", ["0"]),
        ("1,0", ["1", "0"]),
        ("2, 3", ["2", "3"]),
        ("0,7,1", ["0"]),  # CUDA stops at the first that is not valid
        ("0,-1,1", ["0"]),
        ("1,1", ["1"]),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        (UUIDS[2], [UUIDS[2]]),
        ("GPU-3,GPU-1", ["GPU-3", "GPU-1"]),
        (MIG, [MIG]),
        (f"{MIG},MIG-{UUIDS[0]}/1/0", [MIG, f"MIG-{UUIDS[0]}/1/0"]),
    ],
)
def test_the_users_choice_of_gpus_is_followed(machine, monkeypatch, listed, expected):
    machine.add_cards(H100, H100, H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert entries() == expected


def test_a_gpu_is_the_same_one_by_its_index_and_by_its_uuid(machine, monkeypatch):
    machine.add_cards(H100, H100)
    keys = set()
    for listed in ("1", UUIDS[1], "GPU-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        keys |= {card.key for card in usable_cards()}
    assert keys == {"nvidia1"}


def test_an_index_is_not_resolved_where_cuda_may_count_the_fastest_gpu_first(machine, monkeypatch):
    machine.add_cards("NVIDIA T400", H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [card.key for card in usable_cards()] == ["0"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [card.key for card in usable_cards()] == ["nvidia0"]


def test_rocm_has_variables_of_its_own(machine, monkeypatch):
    use_build(monkeypatch, ROCM)
    machine.add("dev/kfd", *(f"dev/dri/renderD{number}" for number in range(128, 132)))
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,3")
    assert entries() == ["0", "1"]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,0")
    assert [(card.entry, card.key) for card in usable_cards()] == [("1", "3"), ("0", "2")]
    with given_gpus(1):
        assert os.environ["HIP_VISIBLE_DEVICES"] == "1"


# what Slurm gave


def test_a_job_of_slurm_has_the_gpus_that_slurm_gave_it(machine, monkeypatch):
    machine.add_cards(H100, H100, H100, H100)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert entries() == []
    monkeypatch.setenv("SLURM_JOB_GPUS", "2,3")
    assert entries() == ["2", "3"]
    monkeypatch.setenv("SLURM_STEP_GPUS", "3")
    assert entries() == ["3"]


def test_gpus_are_distinguished_although_slurm_counts_from_zero_in_every_job(machine, monkeypatch):
    machine.add_cards(H100, H100, H100, H100)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_GPUS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [(card.entry, card.key) for card in usable_cards()] == [("0", "3")]


def test_a_gpu_that_slurm_gave_counts_where_no_device_file_is_seen(machine, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus_there() == 1


def test_jobs_of_slurm_do_not_wait_for_each_other(machine, monkeypatch, held):
    machine.add_cards(H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for number in ("17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        assert take(held) == "0"


# which one a job takes


def test_a_job_sees_one_gpu_and_afterwards_all_are_as_before(machine):
    machine.add_cards(H100, H100)
    with given_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert not {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} & os.environ.keys()


def test_the_order_that_the_user_set_is_left_where_the_user_chose_by_index(machine, monkeypatch):
    machine.add_cards(H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with given_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert "CUDA_DEVICE_ORDER" not in os.environ


def test_a_job_without_a_gpu_sees_none(machine, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    machine.add_cards(H100)
    with given_gpus(0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_hiding_all_gpus_does_not_blind_later_jobs_of_the_same_process(machine):
    import torch  # noqa: F401

    machine.add_cards(H100)
    with given_gpus(0):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with given_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_jobs_take_different_gpus(machine, held):
    machine.add_cards(H100, H100, H100)
    assert take(held) == "0"
    assert take(held, count=2) == "1,2"


def test_jobs_that_share_fill_one_gpu_before_the_next(machine, held):
    machine.add_cards(H100, H100)
    assert [take(held, jobs_per_gpu=3) for _ in range(6)] == ["0", "0", "0", "1", "1", "1"]


def test_a_job_that_has_its_gpu_alone_takes_none_that_others_share(machine, held):
    machine.add_cards(H100, H100)
    assert take(held, jobs_per_gpu=4) == "0"
    assert take(held) == "1"


def test_jobs_that_share_stay_off_a_gpu_that_another_has_alone(machine, held):
    machine.add_cards(H100, H100)
    assert take(held) == "0"
    assert {take(held, jobs_per_gpu=4) for _ in range(4)} == {"1"}


def test_two_processes_take_two_gpus_a_third_waits_and_a_killed_one_makes_way(machine, tmp_path):
    machine.add_cards(H100, H100)
    jobs = [machine.hold(tmp_path / "site") for _ in range(2)]
    first, second = (job.stdout.readline().strip() for job in jobs)
    assert {first, second} == {"0", "1"}
    third = machine.hold(tmp_path / "site")
    assert "waiting for a free GPU: other jobs of kdsteps use 0, 1" in third.stderr.readline()
    jobs[1].kill()
    assert third.stdout.readline().strip() == second
    for job in (*jobs, third):
        job.communicate("")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "5"}, ["CUDA_VISIBLE_DEVICES is '5', and there are 0, 1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["CUDA_VISIBLE_DEVICES is ''", "list a GPU", "unset"]),
        ({"SLURM_JOB_ID": "1"}, ["Slurm gave this job no GPU", "--gres=gpu:1"]),
    ],
)
def test_a_gpu_that_is_hidden_is_not_used_and_the_reason_is_said(
    machine, monkeypatch, environment, expected
):
    machine.add_cards(H100, H100)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KdstepsError) as refused, given_gpus(1):
        pytest.fail("it ran")
    for part in ("--gpus: ", *expected, "`--gpus 0`", "`snakemake --resources gpu=0`"):
        assert part in str(refused.value)


def test_more_gpus_than_there_are_are_refused(machine):
    machine.add_cards(H100, H100)
    with pytest.raises(KdstepsError, match=r"^--gpus: is 3; at most 2 "), given_gpus(3):
        pytest.fail("it ran")


# what the command hands to a job


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The jobs that stages are run with, each with the GPUs that it sees."""
    seen: list[Any] = []
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(job: Any) -> None:
        seen.append((job.gpus, job.jobs_per_gpu, os.environ.get("CUDA_VISIBLE_DEVICES")))
        raise KdstepsError("it ran")

    for stage in ("prepare", "train"):
        monkeypatch.setattr(f"kdsteps.stages.{stage}.run", run)
    for check in ("_check_inputs", "_check_provenance"):
        monkeypatch.setattr(f"kdsteps.cli.running.{check}", lambda call: None)
    monkeypatch.setattr("kdsteps.cli.running.remembered", lambda *job: nullcontext(False))
    yield seen
    logging.captureWarnings(False)


def test_a_stage_by_hand_uses_a_gpu_if_there_is_one(machine, jobs):
    main(["train", *TEACHER])
    machine.add_cards(H100, H100)
    main(["train", *TEACHER])
    main(["train", *TEACHER, "--gpus", "0"])
    main(["train", *TEACHER, "--gpus", "2", "--jobs-per-gpu", "4"])
    assert jobs == [(0, 1, None), (1, 1, "0"), (0, 1, None), (2, 4, "0,1")]


def test_a_stage_that_computes_on_the_cpu_takes_no_gpu(machine, jobs):
    machine.add_cards(H100)
    main(["prepare", *DATA])
    assert jobs == [(0, 1, None)]


def test_a_job_takes_its_gpu_before_torch_is_imported(machine, tmp_path):
    write_study(tmp_path)
    code = (
        "import sys\n"
        "from kdsteps.cli import main, running\n"
        "def given(*arguments): sys.exit('too late' if 'torch' in sys.modules else 'in time')\n"
        "running.given_gpus = given\n"
        f"main.main(['prepare', *{DATA!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=machine.environment(tmp_path / "site"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "in time\n"


@pytest.mark.parametrize("given", ["0", "33"])
def test_a_number_of_jobs_per_gpu_has_limits(machine, jobs, capsys, given):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", *DATA, "--jobs-per-gpu", given])
    assert f"--jobs-per-gpu: is {given}; it should be from 1 to 32" in capsys.readouterr().err


def test_a_gpu_counts_although_the_installed_torch_is_for_the_cpu(machine, monkeypatch):
    use_build(monkeypatch, CPU_ONLY)
    machine.add_cards(H100)
    assert gpus_there() == 1
