"""The real command in a folder of its own, and what it says when it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdsteps.jobs import graph
from kdsteps.study.loading import load_study

REPOSITORY = Path(__file__).parents[1]
_KDSTEPS = (sys.executable, "-m", "kdsteps")

NET = {"family": "cifar_resnet", "depth": 8, "widths": [2, 2, 2, 2]}
STUDY: dict[str, Any] = {
    "datasets": {"digits": {"kind": "digits", "size": 8}},
    "models": {"big": NET, "small": NET},
    "pairs": {"pair": {"dataset": "digits", "teacher": "big", "student": "small"}},
    "methods": {"labels": {}, "kd": {}, "block_kd": {}, "fitnet": {}},
    "seeds": [0, 1],
    "train": {"epochs": 1, "batch_size": 256},
    "distil": {"epochs": 1, "batch_size": 256},
}

DATA = ("--dataset", "digits")
TEACHER = (*DATA, "--teacher", "big")
PLAN = ("--pair", "pair", "--method", "block_kd")


def run_of(method: str) -> tuple[str, ...]:
    """The names of the first run of a method."""
    return ("--pair", "pair", "--method", method, "--seed", "0")


def write_study(folder: Path, **sections: Any) -> Path:
    """The small study with some sections replaced, as params.yaml in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(STUDY | sections, sort_keys=False))
    return path


def command(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m kdsteps` as a process of its own, run in `folder`."""
    return subprocess.run(
        [*_KDSTEPS, *arguments],
        cwd=folder,
        env=_environment() | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def started(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The same process while it runs, without what it says."""
    return subprocess.Popen(
        [*_KDSTEPS, *arguments], cwd=folder, env=_environment(), stderr=subprocess.DEVNULL
    )


def _environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("KDSTEPS_")}
    return inherited | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, with its bytes; without caches and locks."""
    names = ("parts.json", "code.json", "manifests", "jobs")
    cached = [folder / ".snakemake", *(folder / ".kdsteps" / name for name in names)]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not {file, file.parent} & set(cached)
    }


def outputs_of(folder: Path, rule: str, names: dict[str, str]) -> dict[str, Path]:
    """Where a job of the study in `folder` leaves its files."""
    assert names in graph.jobs(load_study(folder / "params.yaml"), rule)
    return {name: folder / path for name, path in graph.outputs(rule, names).items()}
