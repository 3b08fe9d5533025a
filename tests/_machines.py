"""Machines with GPUs that are files in a folder, for tests of what a job is given."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdsteps.jobs import gpu_diagnosis, gpu_slots, gpus
from kdsteps.jobs.gpus import TorchBuild

REPOSITORY = Path(__file__).parents[1]
VARIABLES = ("CUDA_", "HIP_", "ROCR_", "SLURM_", "KUBERNETES_", "KDSTEPS_")
UUIDS = [f"GPU-{number}0000000-aaaa-bbbb-cccc-000000000000" for number in range(8)]

CUDA_13 = TorchBuild("2.13.0+cu130", "13.0", None)
CPU_ONLY = TorchBuild("2.13.0+cpu", None, None)
ROCM = TorchBuild("2.13.0+rocm6.4", None, "6.4")


@dataclass
class Machine:
    """The files of a machine below `root`, and names of slots that no other test uses."""

    root: Path
    prefix: str

    def add(self, *names: str, text: str = "") -> Machine:
        """Create files by their paths from the root."""
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self

    def add_cards(self, *models: str) -> Machine:
        """NVIDIA GPUs with all device files, in the order of the PCI bus."""
        self.add("dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-modeset")
        for number, model in enumerate(models):
            self.add(f"dev/nvidia{number}")
            lines = [f"Model: \t\t {model}", "IRQ:   \t\t 5", f"GPU UUID: \t {UUIDS[number]}"]
            lines += [f"Bus Location: \t 0000:0{number}:00.0", f"Device Minor: \t {number}"]
            path = f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information"
            self.add(path, text="\n".join(lines))
        return self

    def add_driver(self, version: str) -> Machine:
        """NVIDIA's driver, which says its version."""
        first = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release\n"
        return self.add("proc/driver/nvidia/version", text=first + "GCC version: gcc 13.2.0\n")

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment in which other processes see this machine; `folder` is for its files."""
        folder.mkdir(exist_ok=True)
        lines = [
            "from pathlib import Path",
            "from kdsteps.jobs import gpu_slots, gpus",
            f"gpus._ROOT = Path({str(self.root)!r})",
            f"gpu_slots._PREFIX = {self.prefix!r}",
            "gpu_slots.LOOK_EVERY = 0.05",
        ]
        (folder / "sitecustomize.py").write_text("\n".join(lines))
        path = os.pathsep.join([str(folder), str(REPOSITORY)])
        own = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)}
        return own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def hold(self, folder: Path, jobs_per_gpu: int = 1) -> subprocess.Popen[str]:
        """A process that takes a GPU, prints which one, and holds it until its input ends."""
        code = (
            "import logging, os, sys; from kdsteps.jobs.gpu_slots import given_gpus\n"
            "logging.basicConfig(level=logging.INFO)\n"
            f"with given_gpus(1, {jobs_per_gpu}):\n"
            "    print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
        )
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=self.environment(folder),
        )


def fake_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Machine:
    """A machine without GPUs, seen by this process; nothing restricts them."""
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
    made = Machine(folder / "machine", f"kdsteps-test-{uuid.uuid4().hex[:8]}")
    monkeypatch.setattr(gpus, "_ROOT", made.root)
    monkeypatch.setattr(gpu_slots, "_PREFIX", made.prefix)
    monkeypatch.setattr(gpu_slots, "LOOK_EVERY", 0.05)
    use_build(monkeypatch, CUDA_13)
    return made


def use_build(monkeypatch: pytest.MonkeyPatch, build: TorchBuild) -> None:
    """Let another build of torch be installed."""
    for module in (gpus, gpu_diagnosis):
        monkeypatch.setattr(module, "torch_build", lambda: build)
