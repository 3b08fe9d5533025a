"""Studies whose files exist but are empty, to measure the cost of planning.

The programs do not read the files; `snakemake --touch` and `dvc commit` record them as finished.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from _timing import ROOT

from kdsteps.jobs import graph
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

PROGRAMS = str(Path(sys.executable).parent)
_COPIED = ("Snakefile", "workflow", "profiles", "dvc.yaml", ".dvcignore", ".gitignore", "kdsteps")


@dataclass(frozen=True)
class Cost:
    """What a command cost.

    Attributes:
        output: What it printed.
        processor_s: Seconds of processors, user and system.
        peak_mib: Largest resident memory.
    """

    output: str
    processor_s: float
    peak_mib: float


def write_study(folder: Path, content: Mapping[str, Any]) -> Study:
    """A folder with the workflow and a params.yaml of `content`, without results."""
    for name in _COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        if source.exists():
            copy(source, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(content)))
    return parse_study(content)


def finish(folder: Path, study: Study) -> None:
    """Create every file of the study, empty, and let Snakemake take them for finished."""
    for stage in graph.STAGES:
        for path in graph.all_outputs(study, stage):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    call(folder, "snakemake", "--touch", "--quiet", "all")


def call(folder: Path, *command: str) -> Cost:
    """Run a command in a study's folder, with the package that is copied there."""
    environment = os.environ | {
        "PATH": os.pathsep.join([PROGRAMS, os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "KDSTEPS_TRUST_RESULTS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    log = folder / "command.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    printed = log.read_text()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{printed}")
    return Cost(printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
