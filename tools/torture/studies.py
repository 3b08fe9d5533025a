"""The study that is tortured: made once as the reference, copied for each trial, compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]  # this copy of the package

from _study import TINY, Study, clean_environment  # noqa: E402

from kdsteps.cli.calls import call_of  # noqa: E402
from kdsteps.cli.running import run_call  # noqa: E402
from kdsteps.jobs import graph  # noqa: E402
from kdsteps.study.loading import load_study  # noqa: E402

PARAMS: dict[str, Any] = {
    **TINY,
    "methods": {"labels": {}, "kd": {}, "block_kd": {}, "feature_only": {}},
    "seeds": [0, 1],
    "cache": {"images": 100, "outputs": "always"},
}
SEVERAL: dict[str, Any] = {
    **TINY,
    "models": TINY["models"] | {"other": TINY["models"]["big"] | {"depth": 14}},
    "pairs": {"both": {"dataset": "digits", "teachers": ["big", "other"], "student": "small"}},
    "methods": {"kd": {}},
    "cache": {"draws": 2, "outputs": "always"},
    "distil": {"epochs": 1, "batch_size": 256, "mixup": 0.2},
}
RUN = ("snakemake", "--cores", "2", "--resources", "gpu=1")
# What differs between two runs of one study: times, and what depends on them.
_TIMES = re.compile(r"second|latency|throughput|speedup|provenance|faster|time")
_BYTE_FOR_BYTE = ("*.safetensors", "images.npy", "index.parquet", "summary.json")


class Folder(Study):
    """A study whose programs import the package of its own folder and use one core each."""

    def attempt(self, command: list[str], **environment: str) -> tuple[int, str]:
        return super().attempt(command, **self.own(**environment))

    def begin(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A command in a process group of its own, which goes on while the trial does."""
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.path,
                env=clean_environment() | self.own(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def copy(self, path: Path) -> Folder:
        return Folder(super().copy(path).path)

    def own(self, **environment: str) -> dict[str, str]:
        return {"PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1", **environment}


def new_study(path: Path, params: Mapping[str, Any] = PARAMS) -> Folder:
    """A fresh clone of this repository with a small study."""
    return Folder(Study.new(path, dict(params)).path)


def run_here(folder: Path, params: Mapping[str, Any]) -> None:
    """Run all jobs of a study in this process, whose working directory is its folder."""
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params)))
    study = load_study()
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            run_call(call_of(study, rule, names), threads=1)


def heal(study: Folder, runs: int = 2) -> tuple[list[str], str]:
    """Run snakemake until it succeeds.

    Args:
        runs: How often at most.

    Returns:
        What is wrong, and what the runs printed.
    """
    printed = ""
    for _ in range(runs):
        status, said = study.attempt(list(RUN))
        printed += said
        if "Traceback" in said:
            return [f"traceback: {last_line(said)}"], printed
        if status == 0:
            return [], printed
    return [f"{runs} runs of snakemake do not heal it: {last_line(printed)}"], printed


def problems(study: Folder, reference: Folder) -> list[str]:
    """In what a healed study differs from the reference; empty: in nothing but times."""
    if planned := study.planned():
        return [f"jobs are planned after a finished run: {dict(planned)}"]
    return [*_leftovers(study.path), *_differences(study.path, reference.path)]


def _leftovers(folder: Path) -> Iterator[str]:
    for pattern in ("results/**/*.damaged", "results/**/.*.part", ".snakemake/metadata/*.part"):
        for path in folder.glob(pattern):
            yield f"{path.relative_to(folder)} is left"


def _differences(ours: Path, theirs: Path) -> Iterator[str]:
    names = {str(path.relative_to(theirs)) for path in theirs.glob("results/**/*.*")}
    for name in sorted(names):
        if name.endswith(".provenance.json"):
            continue
        if not (ours / name).is_file():
            yield f"{name} is missing"
        elif (theirs / name).is_file() and not same(ours / name, theirs / name):
            yield f"{name} differs from the reference"


def same(ours: Path, theirs: Path) -> bool:
    """Whether two results are equal: byte by byte, or in their values apart from times."""
    if ours.read_bytes() == theirs.read_bytes():
        return True
    if any(ours.match(pattern) for pattern in _BYTE_FOR_BYTE):
        return False
    if ours.name == "digest.json":  # of files that are compared themselves
        return bool(json.loads(ours.read_text()).keys() == json.loads(theirs.read_text()).keys())
    if ours.suffix == ".json":
        a, b = (_timeless(json.loads(path.read_text())) for path in (ours, theirs))
        return bool(a == b)
    if ours.suffix == ".parquet":
        a, b = (_timeless_table(pq.read_table(path)) for path in (ours, theirs))
        return bool(a.equals(b))
    return ours.suffix in (".html", ".png")  # drawn from the tables, with times among them


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _timeless(v) for k, v in content.items() if not _TIMES.search(k)}
    return [_timeless(each) for each in content] if isinstance(content, list) else content


def _timeless_table(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not _TIMES.search(name)])


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "(nothing was printed)"


_FIRST = ('Snakefile", line ', 'kdsteps/__main__.py", line ')  # what Snakemake and jobs run first


def last_traceback(text: str) -> str:
    """The last lines of code of the last traceback, and the error; nothing if there is none.

    An interrupt before the first line of the workflow or of a job is left out: Python prints its
    traceback, and nothing has begun then.
    """
    found = ""
    for part in text.split("Traceback (most recent call last):\n")[1:]:
        lines = part.splitlines()
        ends = (at for at, line in enumerate(lines) if line.strip() and not line.startswith(" "))
        end = next(ends, len(lines))
        begun = any(file in line for line in lines[:end] for file in _FIRST)  # on the stack
        if begun or not "".join(lines[end : end + 1]).startswith("KeyboardInterrupt"):
            found = " | ".join(line.strip() for line in lines[max(0, end - 6) : end + 1])
    return found
