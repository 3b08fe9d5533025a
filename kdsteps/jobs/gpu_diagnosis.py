"""Why a job cannot use the GPU it was given, from what the machine says about itself."""

from __future__ import annotations

import os
import re

from kdsteps.jobs.gpus import (
    TorchBuild,
    device_files,
    machine_file,
    torch_build,
    usable_cards,
    visible_list,
    visible_variable,
    wsl_files,
)

ON_CPU = "to run on the CPU, use `--gpus 0`, or `snakemake --resources gpu=0`"
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for each major version of CUDA.

Source: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1.
"""
_DOCS = "docs/gpus-and-clusters.md"
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # a vendor on the PCI bus, and how the classes of GPUs begin
_CONTAINER_FILES = (".dockerenv", "run/.containerenv", ".singularity.d")


def why_hidden() -> str | None:
    """Which variable or which request to Slurm leaves a job without a GPU; None: neither."""
    listed = visible_list()
    if listed is None or usable_cards():
        return None
    name = visible_variable() if visible_variable() in os.environ else "CUDA_VISIBLE_DEVICES"
    if name not in os.environ:
        return "Slurm gave this job no GPU; request one, such as with `--gres=gpu:1`"
    files = device_files()
    if listed.partition(",")[0].strip().isdecimal() and not files:
        return None  # there is none to hide
    there = f", and there are {', '.join(map(str, range(len(files))))}" if files else ""
    return f"{name} is {listed!r}{there}; list a GPU in it, or unset it to use all"


def why_unusable(error: str, card: str = "") -> str:
    """The likely cause of an error with which CUDA or ROCm did not start, and what would help.

    Args:
        error: What torch said.
        card: The GPU's name and compute capability, if torch could tell.
    """
    build = torch_build()
    return (
        _for_cpu(build)
        or _without_device(build)
        or _old_driver(build, error)
        or _without_access(build)
        or _refused(build, error, card or "the GPU")
        or f"CUDA does not start: {error.strip().partition(chr(10))[0]}"
    )


def doubt() -> str | None:
    """Why jobs may be unable to use the GPUs of this machine, as far as that is seen beforehand."""
    build = torch_build()
    cause = _for_cpu(build) or _old_driver(build) or _without_access(build)
    return cause and f"jobs may be unable to use the GPU: {cause}; {ON_CPU}"


def _for_cpu(build: TorchBuild) -> str | None:
    """Whether torch can use no GPU at all."""
    if build.cuda or build.rocm:
        return None
    return f"torch {build.version} is a build for the CPU; install one for CUDA ({_DOCS})"


def _without_device(build: TorchBuild) -> str | None:
    """Why there is no device file."""
    if device_files():
        return None
    if build.rocm:
        return "there is no /dev/kfd or no /dev/dri/renderD*; install AMD's driver, amdgpu"
    if _in_container():
        return (
            "this container has no /dev/nvidia*; start it with the GPU (docker: --gpus all, "
            "podman: --device nvidia.com/gpu=all, apptainer: --nv)"
        )
    if _driver_version():
        return "NVIDIA's driver is loaded, but /dev/nvidia* is missing; run `nvidia-smi` as root"
    if _has_nvidia_card():
        return "NVIDIA's driver is not loaded; install it or restart the machine"
    return "this machine has no GPU: no /dev/nvidia*, and no NVIDIA card on the PCI bus"


def _old_driver(build: TorchBuild, error: str = "") -> str | None:
    """Whether the driver is older than torch's CUDA needs."""
    if not build.cuda:
        return None
    found, oldest = _driver_version(), OLDEST_DRIVERS.get(int(build.cuda.partition(".")[0]))
    older = bool(found and oldest and int(found.partition(".")[0]) < oldest)
    if not older and "driver on your system is too old" not in error:
        return None
    needed = f"driver {oldest} or newer" if oldest else "a newer driver"
    return (
        f"torch {build.version} (CUDA {build.cuda}) needs {needed}, and this machine has "
        f"{found or 'an older one'}; update it, or install torch for an older CUDA ({_DOCS})"
    )


def _without_access(build: TorchBuild) -> str | None:
    """Whether device files are missing or may not be opened."""
    for path in device_files():
        if not os.access(path, os.R_OK | os.W_OK):
            group = path.group()
            return f"{path} may not be opened by this user; join its group, {group!r}"
    if build.rocm or wsl_files():
        return None
    for name in ("nvidiactl", "nvidia-uvm"):
        if not machine_file(f"dev/{name}").exists():
            return (
                f"there is no /dev/{name}; run `nvidia-modprobe -u -c 0` as root, or start the "
                "container with the GPU's other device files"
            )
    return None


def _refused(build: TorchBuild, error: str, card: str) -> str | None:
    """What CUDA refuses, by its error."""
    if "out of memory" in error:
        return (
            f"the memory of {card} is full (`nvidia-smi` shows by which processes); wait, or "
            f"choose another GPU with {visible_variable()}"
        )
    if "no kernel image" in error or "not compatible" in error:
        return f"torch {build.version} has no code for {card}; install another build ({_DOCS})"
    if "busy or unavailable" in error:
        return f"another process has {card} exclusively; wait, or change its compute mode"
    if "unsupported display driver" in error or "version mismatch" in error:
        return "the NVIDIA driver was updated, but its old version is loaded; restart the machine"
    if "no NVIDIA driver" in error:
        return "libcuda.so.1 is missing; install the driver's libraries, in a container too"
    if "No CUDA GPUs" in error or "No HIP GPUs" in error:
        name = visible_variable()
        return f"no GPU is {os.environ.get(name, '')!r}, which {name} selects (see `nvidia-smi -L`)"
    return None


def _driver_version() -> str | None:
    """The version of NVIDIA's driver, such as "580.95.05"; None where it does not say."""
    path = machine_file("proc/driver/nvidia/version")
    if not path.exists():
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text().partition("\n")[0])
    return found[0] if found else None


def _has_nvidia_card() -> bool:
    """Whether an NVIDIA GPU is on the PCI bus, with or without a driver."""
    return any(
        path.read_text().strip() == _NVIDIA
        and path.with_name("class").read_text().startswith(_DISPLAY)
        for path in machine_file("sys/bus/pci/devices").glob("*/vendor")
    )


def _in_container() -> bool:
    there = any(machine_file(name).exists() for name in _CONTAINER_FILES)
    return there or "KUBERNETES_SERVICE_HOST" in os.environ
