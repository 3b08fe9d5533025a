"""The GPUs that jobs started from here may use, found without torch."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path("/")  # of the files that describe this machine; tests have a folder instead


@dataclass(frozen=True)
class Card:
    """A GPU, or a MIG instance of one.

    Attributes:
        entry: Selects it in CUDA_VISIBLE_DEVICES, or in HIP_VISIBLE_DEVICES for ROCm.
        key: Identifies it on this machine, however it was selected.
        model: Its name, where the driver says so.
        uuid: Its UUID, likewise.
    """

    entry: str
    key: str
    model: str = ""
    uuid: str = ""


@dataclass(frozen=True)
class TorchBuild:
    """What the installed torch was built for.

    Attributes:
        version: Such as "2.13.0+cu130".
        cuda: Such as "13.0"; None: not built for CUDA.
        rocm: Such as "6.4"; None: not built for ROCm.
    """

    version: str
    cuda: str | None
    rocm: str | None


def gpus_there() -> int:
    """The number of GPUs that jobs started from here may use."""
    return len(usable_cards())


def usable_cards() -> list[Card]:
    """The GPUs of this machine that neither Slurm nor an environment variable hides.

    GPUs that Slurm gave count even where no device file is found.
    """
    installed, listed = _installed(), visible_list()
    if listed is None:
        return installed
    if not installed and not in_slurm():
        return []
    return list({card.key: card for card in _selected(listed, installed)}.values())


def visible_variable() -> str:
    """The environment variable that selects GPUs for the installed torch."""
    return "HIP_VISIBLE_DEVICES" if torch_build().rocm else "CUDA_VISIBLE_DEVICES"


def visible_entry(number: int) -> str:
    """What selects one of the GPUs that this process sees: an entry of the list, or its index.

    Args:
        number: As torch numbers them.
    """
    entries = os.environ.get(visible_variable(), "").split(",")
    return (entries[number] if number < len(entries) else "") or str(number)


def visible_list() -> str | None:
    """The GPUs to choose from, as a list for `visible_variable`; None: all.

    In a Slurm job without that variable they are those that Slurm gave; "" if it gave none.
    """
    for name in dict.fromkeys((visible_variable(), "CUDA_VISIBLE_DEVICES")):
        if (listed := os.environ.get(name)) is not None:
            return listed
    return ",".join(_given_by_slurm()) if in_slurm() else None


def in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


@cache
def torch_build() -> TorchBuild:
    """What the installed torch was built for, without importing it."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is not installed"
    found = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(found["__version__"], found.get("cuda"), found.get("hip"))


def machine_file(name: str) -> Path:
    """A file that the system keeps about this machine, such as "dev/nvidia0"."""
    return _ROOT / name


def device_files() -> list[Path]:
    """The device files of the GPUs that the installed torch could use."""
    dev = machine_file("dev")
    if torch_build().rocm:
        return sorted((dev / "dri").glob("renderD*")) if (dev / "kfd").exists() else []
    nvidia = [path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return sorted(nvidia, key=lambda path: int(path.name[6:])) or wsl_files()


def wsl_files() -> list[Path]:
    """The device file of all GPUs together in the Windows Subsystem for Linux."""
    path = machine_file("dev/dxg")
    return [path] if path.exists() else []


def _installed() -> list[Card]:
    """The GPUs of this machine, by their index in the order of the PCI bus."""
    files = [path.name for path in device_files()]
    if torch_build().rocm and (chosen := os.environ.get("ROCR_VISIBLE_DEVICES")) is not None:
        files = [entry.strip() for entry in chosen.split(",") if entry.strip()]
    known = [card for card in _described() if card.key in files]
    if len(known) == len(files):
        return known
    return [Card(str(index), name) for index, name in enumerate(files)]


def _described() -> Iterator[Card]:
    """The GPUs that NVIDIA's driver describes; their keys are the names of their device files."""
    number = 0
    for path in sorted(machine_file("proc/driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in path.read_text().splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
        name = f"nvidia{facts.get('Device Minor', '')}"
        if machine_file(f"dev/{name}").exists():
            uuid = facts.get("GPU UUID", "")  # question marks until the card is first used
            yield Card(str(number), name, facts.get("Model", ""), "" if "?" in uuid else uuid)
            number += 1


def _selected(listed: str, installed: list[Card]) -> Iterator[Card]:
    """The GPUs of a list for CUDA_VISIBLE_DEVICES: up to the first entry that is not valid.

    Their entries stay as they are, since indices may count in another order than the PCI bus's.
    """
    entries = [entry.strip() for entry in listed.split(",")]
    count = 0 if in_slurm() or wsl_files() else len(installed)
    given = _given_by_slurm()
    for number, entry in enumerate(entries):
        valid = entry.startswith(("GPU-", "MIG-")) or entry.isdecimal()
        if not valid or (count and entry.isdecimal() and int(entry) >= count):
            return
        known = given[number] if len(given) == len(entries) else _key(entry, installed)
        yield Card(entry, known)


def _key(entry: str, installed: list[Card]) -> str:
    """The key of the GPU that an entry selects; the entry itself where that is not known."""
    if not entry.isdecimal():
        return next((card.key for card in installed if card.uuid.startswith(entry)), entry)
    ordered = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    known = ordered or len({card.model for card in installed}) == 1
    return installed[int(entry)].key if known and int(entry) < len(installed) else entry


def _given_by_slurm() -> list[str]:
    """The numbers of the GPUs that Slurm gave this job step, in the order of its list of them.

    In the list they may count from 0 in every job, whichever GPUs these are.
    """
    given = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
    return [number for number in given.split(",") if number] if in_slurm() else []
