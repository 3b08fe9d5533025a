"""What snakemake and dvc cost for a finished study of 100 runs in which there is nothing to do."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from _finished import PROGRAMS, call, finish, write_study
from _timing import ROOT, Row, table

from kdsteps.jobs import graph
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

_TURNS = 3


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    if shutil.which("snakemake", path=PROGRAMS) is None:
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
                f"{statistics.median(processors):.1f} s of CPU time, "
                f"{min(walls):.1f} s of wall-clock time at best",
                f"<= {limit} s",
                statistics.median(processors) <= limit,
            )


def _finished_study(folder: Path) -> Study:
    """The study of params.yaml with 100 runs and all of its files."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    methods = load_study(ROOT / "params.yaml").methods
    content["seeds"] = list(range(-(-100 // len(methods))))
    study = write_study(folder, content)
    call(folder, "git", "init", "--quiet")
    call(folder, "dvc", "init", "--quiet")
    finish(folder, study)
    call(folder, "dvc", "commit", "--force", "--quiet")
    return study


def _timed(folder: Path, *command: str) -> tuple[float, float]:
    """Wall-clock seconds and CPU seconds."""
    started = time.perf_counter()
    cost = call(folder, *command)
    if not any(word in cost.output for word in ("Nothing to be done", "up to date")):
        raise RuntimeError(f"{' '.join(command)} found something to do:\n{cost.output}")
    return time.perf_counter() - started, cost.processor_s


if __name__ == "__main__":
    print(table(rows()))
