"""What snakemake and dvc take for a finished study of 100 runs, in which there is nothing to do.

The files of the study are empty, for neither program looks into them; that they count as made is
said by `snakemake --touch` and `dvc commit`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from _timing import ROOT, Row, table

from kdsteps.jobs import graph
from kdsteps.study.study import Study, load_study, parse_study

_TURNS = 3
_PARTS = ("Snakefile", "workflow", "profiles", "dvc.yaml", ".dvcignore", ".gitignore", "kdsteps")
_PROGRAMS = str(Path(sys.executable).parent)


def rows() -> Iterator[Row]:
    """Measure everything this module knows."""
    if shutil.which("snakemake", path=_PROGRAMS) is None:
        yield Row("snakemake, nothing to do", "-", None, "not installed here", "<= 4 s", None)
        return
    with tempfile.TemporaryDirectory() as folder:
        study = _finished_study(Path(folder))
        runs = len(graph.jobs(study, "distil"))
        for command, limit in ((("snakemake",), 4), (("dvc", "repro"), 6)):
            walls, processors = zip(
                *[_timed(Path(folder), *command) for _ in range(_TURNS)], strict=True
            )
            yield Row(
                f"`{' '.join(command)}` with nothing to do, {runs} runs",
                "-",
                None,
                f"{statistics.median(processors):.1f} s of a processor, "
                f"{min(walls):.1f} s on the clock at best",
                f"<= {limit} s",
                statistics.median(processors) <= limit,
            )


def _finished_study(folder: Path) -> Study:
    """The study of params.yaml with 100 runs, every file of it there."""
    for part in _PARTS:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        if source.exists():
            copy(source, folder / part)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    methods = load_study(ROOT / "params.yaml").methods
    content["seeds"] = list(range(-(-100 // len(methods))))
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    study = parse_study(content)
    for stage in graph.STAGES:
        for path in graph.all_outputs(study, stage):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    _call(folder, "git", "init", "--quiet")
    _call(folder, "dvc", "init", "--quiet")
    _call(folder, "snakemake", "--touch", "--quiet", "all")
    _call(folder, "dvc", "commit", "--force", "--quiet")
    return study


def _timed(folder: Path, *command: str) -> tuple[float, float]:
    """Seconds on the clock and of processors."""
    before, started = os.times(), time.perf_counter()
    said = _call(folder, *command)
    wall, after = time.perf_counter() - started, os.times()
    if not any(word in said for word in ("Nothing to be done", "up to date")):
        raise RuntimeError(f"{' '.join(command)} found something to do:\n{said}")
    spent = after.children_user + after.children_system
    return wall, spent - before.children_user - before.children_system


def _call(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PATH": os.pathsep.join([_PROGRAMS, os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "KDSTEPS_TRUST_RESULTS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    print(table(rows()))
