"""Why a job cannot use its GPU, and what it says when the GPU's memory runs out."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _commands import DATA, TEACHER, command, run_of, write_study
from _fake_cuda import number_of
from _machines import CPU_ONLY, ROCM, Machine, fake_machine, use_build

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.gpu_diagnosis import OLDEST_DRIVERS, doubt, why_unusable
from kdsteps.jobs.gpus import TorchBuild
from kdsteps.jobs.job import Files, Job
from kdsteps.study.loading import load_study
from kdsteps.training.device import choose_device
from kdsteps.training.out_of_memory import out_of_memory

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there and can be used")

H100 = "NVIDIA H100 80GB HBM3"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return fake_machine(monkeypatch, tmp_path)


def says(sentence: str, *parts: str) -> bool:
    missing = [part for part in parts if part not in sentence]
    assert not missing, f"{missing} not in {sentence!r}"
    return "\n" not in sentence


# why CUDA does not start


def test_a_torch_without_cuda_is_named(machine, monkeypatch):
    use_build(monkeypatch, CPU_ONLY)
    machine.add_cards(H100)
    said = why_unusable("Torch not compiled with CUDA enabled")
    assert says(said, "torch 2.13.0+cpu is a build for the CPU", "docs/gpus-and-clusters.md")


@pytest.mark.parametrize("version", ["535.183.01", "570.86.15", "470.256.02"])
def test_a_driver_that_is_too_old_for_torch_is_named(machine, version):
    machine.add_cards(H100).add_driver(version)
    parts = ("torch 2.13.0+cu130 (CUDA 13.0)", "needs driver 580 or newer", version, "update it")
    assert says(why_unusable(OLD), *parts, "docs/gpus-and-clusters.md")


def test_the_driver_that_is_new_enough_depends_on_the_build(machine, monkeypatch):
    machine.add_cards(H100).add_driver("535.183.01")
    use_build(monkeypatch, TorchBuild("2.13.0+cu126", "12.6", None))
    assert says(why_unusable("something else"), "CUDA does not start: something else")


def test_where_the_driver_is_not_described_torch_is_believed(machine):
    machine.add("dev/dxg")
    assert says(why_unusable(OLD), "needs driver 580 or newer", "an older one")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], ["has no GPU", "no NVIDIA card on the PCI bus"]),
        ([".dockerenv"], ["container has no /dev/nvidia*", "--gpus all", "--nv"]),
        ([".singularity.d/env"], ["container has no /dev/nvidia*"]),
        (["dev/nvidia0"], ["no /dev/nvidiactl", "nvidia-modprobe"]),
        (["dev/nvidia0", "dev/nvidiactl"], ["no /dev/nvidia-uvm", "nvidia-modprobe"]),
    ],
)
def test_a_device_file_that_is_missing_is_named(machine, files, expected):
    machine.add(*files)
    assert says(why_unusable(NO_DRIVER), *expected)


def test_a_driver_without_device_files_is_distinguished_from_no_driver(machine):
    card = "sys/bus/pci/devices/0000:01:00.0"
    machine.add(f"{card}/vendor", text="0x10de\n").add(f"{card}/class", text="0x030200\n")
    assert says(why_unusable(NO_DRIVER), "driver is not loaded", "install it")
    machine.add_driver("580.95.05")
    assert says(why_unusable(NO_DRIVER), "driver is loaded", "/dev/nvidia* is missing")


def test_an_audio_device_of_nvidia_is_no_gpu(machine):
    card = "sys/bus/pci/devices/0000:01:00.1"
    machine.add(f"{card}/vendor", text="0x10de\n").add(f"{card}/class", text="0x040300\n")
    assert says(why_unusable(NO_DRIVER), "has no GPU")


def test_a_device_file_that_may_not_be_opened_is_named_with_its_group(machine, monkeypatch):
    machine.add_cards(H100).add_driver("580.95.05")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr(Path, "group", lambda path: "video")
    said = why_unusable("No CUDA GPUs are available")
    assert says(said, "dev/nvidia0 may not be opened", "'video'")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("CUDA error: out of memory\nCUDA kernel", ["the memory of", "is full", "nvidia-smi"]),
        ("CUDA error: no kernel image is available", ["has no code for a card (6.1)", "build"]),
        ("CUDA-capable device(s) is/are busy or unavailable", ["a card (6.1) exclusively"]),
        ("Error 803: system has unsupported display driver", ["was updated", "restart"]),
        (NO_DRIVER, ["libcuda.so.1 is missing"]),
        ("No CUDA GPUs are available", ["no GPU is 'GPU-77'", "CUDA_VISIBLE_DEVICES"]),
        ("Unexpected error\nand a lot more", ["CUDA does not start: Unexpected error"]),
    ],
)
def test_what_cuda_refuses_is_said_with_a_way_out(machine, monkeypatch, error, expected):
    machine.add_cards(H100).add_driver("580.95.05")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-77")
    assert says(why_unusable(error, "a card (6.1)"), *expected)


def test_rocm_without_its_driver_is_named(machine, monkeypatch):
    use_build(monkeypatch, ROCM)
    assert says(why_unusable("No HIP GPUs are available"), "/dev/kfd", "amdgpu")


def test_the_oldest_driver_is_known_for_the_cuda_of_the_installed_torch():
    assert torch.version.cuda is None or int(torch.version.cuda.split(".")[0]) in OLDEST_DRIVERS


def test_what_is_seen_beforehand_is_said_only_if_there_is_a_doubt(machine, monkeypatch):
    machine.add_cards(H100).add_driver("580.95.05")
    assert doubt() is None
    machine.add_driver("470.256.02")
    assert says(doubt(), "jobs may be unable to use the GPU", "470.256.02", "gpu=0")
    use_build(monkeypatch, CPU_ONLY)
    assert says(doubt(), "torch 2.13.0+cpu is a build for the CPU")


# what a stage does


@no_gpu
def test_a_job_with_a_gpu_that_cannot_be_used_does_not_run_on_the_cpu(machine):
    machine.add_cards(H100).add_driver("535.183.01")
    with pytest.raises(KdstepsError) as refused:
        choose_device(gpus=1, threads=1)
    assert says(str(refused.value), "--gpus: torch ", "`--gpus 0`", "`snakemake --resources gpu=0`")


def test_a_job_without_a_gpu_runs_on_the_cpu_and_says_so(machine, caplog):
    with caplog.at_level(logging.INFO, "kdsteps"):
        assert choose_device(gpus=0, threads=1).type == "cpu"
    assert caplog.messages == ["on the CPU, 1 core"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """CUDA as far as `choose_device` uses it; what is set there."""
    found: dict[str, Any] = {}
    properties = SimpleNamespace(name=H100, uuid="8f3a", total_memory=80 << 30)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # so that it is given back
    fake = {
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: H100,
        "get_device_properties": lambda device: properties,
        "set_per_process_memory_fraction": lambda fraction, device=None: found.update(
            memory=fraction, gpu=number_of(device)
        ),
        "max_memory_reserved": lambda: 18 << 30,
        "memory_reserved": lambda: 16 << 30,
        "mem_get_info": lambda: (4 << 30, 80 << 30),
    }
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def test_the_log_says_which_gpu_a_job_has_and_how_many_cores(machine, cuda, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with caplog.at_level(logging.INFO, "kdsteps"):
        assert choose_device(gpus=1, threads=1).type == "cuda"
    assert caplog.messages == [f"on {H100} (GPU 3, UUID 8f3a), 1 core"]
    assert cuda == {"memory": 1.0, "gpu": 0}


def test_a_job_that_shares_a_gpu_gets_a_fraction_of_its_memory(machine, cuda, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    with caplog.at_level(logging.INFO, "kdsteps"):
        choose_device(gpus=1, threads=1, jobs_per_gpu=4)
    assert caplog.messages == [f"on {H100} (MIG-1), shared by up to 4 jobs, 1 core"]
    assert cuda == {"memory": 0.25, "gpu": 0}


def test_the_cores_of_a_job_are_its_own_on_a_gpu_too(machine, cuda):
    torch.set_num_threads(2)
    choose_device(gpus=1, threads=1)
    assert torch.get_num_threads() == 1


@no_gpu
@pytest.mark.slow
def test_the_command_refuses_a_gpu_that_cannot_be_used(machine, tmp_path):
    """The whole way, as a command: nothing is written."""
    folder = write_study(tmp_path / "study").parent
    assert command(folder, "prepare", *DATA, "--gpus", "0").returncode == 0
    machine.add("dev/nvidia0")
    environment = machine.environment(tmp_path / "site")
    done = command(folder, "train", *TEACHER, environment=environment)
    assert done.returncode == 2
    assert says(done.stderr.strip(), "kdsteps train: --gpus: ", "`--gpus 0`")
    assert not list(folder.rglob("*.safetensors"))


# out of memory


def job_of(folder: Path, rule: str, *names: str, **options: Any) -> Job[Any]:
    study = load_study(write_study(folder, distil={"batch_size": 512}))
    known = dict(zip((name[2:] for name in names[::2]), names[1::2], strict=True))
    call = call_of(study, rule, known)
    files = Files(call.inputs, "--inputs"), Files(call.outputs, "--outputs")
    return Job(call.settings, *files, gpus=1, **options)


def test_what_to_lower_is_said_when_the_memory_runs_out(machine, cuda, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    job = job_of(tmp_path, "distil", *run_of("kd"), jobs_per_gpu=4)
    said = out_of_memory(torch.OutOfMemoryError("CUDA out of memory."), job)
    used = ("GPU 3, 80.0 GiB", "held 18.0 GiB of the 20.0 GiB", "other processes 60.0 GiB")
    lower = ("jobs_per_gpu is 4", "lower batch_size of 'distil' (512)", "`precision: bfloat16`")
    assert says(said, H100, *used, *lower, "`cache: {outputs: never}`", "CUDA_VISIBLE_DEVICES")


def test_only_what_the_job_uses_is_suggested(machine, cuda, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job = job_of(tmp_path, "evaluate_latency", "--pair", "pair")
    said = out_of_memory(RuntimeError("CUDA error: out of memory"), job)
    assert says(said, "lower throughput_batch of 'evaluate'")
    assert not {"jobs_per_gpu", "precision", "cache"} & set(said.split())


def test_another_error_is_left_alone(machine, tmp_path):
    job = job_of(tmp_path, "distil", *run_of("kd"))
    assert out_of_memory(RuntimeError("shapes cannot be multiplied"), job) is None


def test_a_stage_that_runs_out_of_memory_ends_in_a_sentence_and_leaves_results_alone(
    machine, cuda, monkeypatch, tmp_path, capsys
):
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    (output,) = [Path(p) for n, p in graph.outputs("prepare", {"dataset": "digits"}).items()][:1]
    output.parent.mkdir(parents=True)
    output.write_text("an earlier result")

    def run(job: Any) -> None:
        job.outputs[next(iter(job.outputs))].write_text("half a result")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("kdsteps.stages.prepare.run", run)
    assert main(["prepare", *DATA]) == 2
    logging.captureWarnings(False)
    assert says(capsys.readouterr().err.strip(), "kdsteps prepare: the GPU's memory ran out")
    assert output.read_text() == "an earlier result"
    assert [path.name for path in output.parent.iterdir()] == [output.name]
