"""What submitting a large study to Slurm costs: 20 pairs x 18 methods x 5 seeds, 3,742 jobs.

Slurm is replaced by programs of its names: `sbatch` writes the files of the job at once, empty,
and `squeue` says that every job is complete. Counted are submissions, and what the main process
computes itself: planning, forecasts, and the plugin. The cost of Slurm's programs is not measured.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from _finished import PROGRAMS, write_study
from _timing import Row, table
from bench_planning import large_study

from kdsteps.jobs import graph
from kdsteps.study.study import Study

_PLUGIN = "snakemake_executor_plugin_slurm"
_LIMIT = 115  # submissions per 100 runs: one for each run, and those of teachers and plans
_SBATCH = """#!{python} -ISs
import os, re, sys
targets = re.search(r"--target-jobs (.*?) --", " ".join(sys.argv))[1]
for rule, names in re.findall(r"'?(\\w+):([^' ]*)'?", targets):
    with open("{folder}/jobs/" + rule + ":" + ",".join(sorted(names.split(",")))) as file:
        for path in file.read().splitlines():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "w").close()
with open("{folder}/submitted", "a") as file:
    file.write("job\\n")
    number = file.tell() // 4
print(number)
"""
_SQUEUE = """#!/bin/sh
awk '{{print NR "|COMPLETED"}}' "{folder}/submitted"
"""
_SCONTROL = """#!/bin/sh
echo "MinJobAge = 300 sec"; echo "MaxArraySize = 1001"
"""


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    if find_spec(_PLUGIN) is None:
        yield Row("a large study on Slurm", "-", None, f"{_PLUGIN} is not installed", "-", None)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, programs = Path(name) / "study", Path(name) / "programs"
        folder.mkdir()
        study = write_study(folder, large_study())
        _replace_slurm(programs, study)
        seconds = _run(folder, programs)
        submitted = len((programs / "submitted").read_text().splitlines())
    jobs = sum(len(graph.jobs(study, rule)) for rule in graph.OUTPUTS)
    runs = len(graph.jobs(study, "distil"))
    each = 100 * submitted / runs
    what = f"{jobs:,} jobs of {runs:,} runs on Slurm"
    yield Row(
        f"{what}: submissions per 100 runs",
        "-",
        None,
        f"{each:.0f}",
        f"<= {_LIMIT}",
        each <= _LIMIT,
    )
    yield Row(
        f"{what}: CPU time of the main process per job",
        *("-", None, f"{1000 * seconds / jobs:.0f} ms", "-", None),
    )


def _replace_slurm(programs: Path, study: Study) -> None:
    """Write programs of Slurm's names, and for each job a list of the files that it makes."""
    (programs / "jobs").mkdir(parents=True)
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            key = ",".join(f"{name}={value}" for name, value in sorted(names.items()))
            paths = graph.outputs(rule, names).values()
            (programs / "jobs" / f"{rule}:{key}").write_text("\n".join(paths))
    nothing = "#!/bin/sh\n"
    texts = {"sbatch": _SBATCH, "squeue": _SQUEUE, "scontrol": _SCONTROL}
    for name in (*texts, "sinfo", "sacct", "sacctmgr", "scancel"):
        text = texts.get(name, nothing).format(folder=programs, python=sys.executable)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


def _run(folder: Path, programs: Path) -> float:
    """Run a study with the profile for Slurm; return CPU seconds of the main process itself."""
    options = "--workflow-profile profiles/slurm --slurm-init-seconds-before-status-checks 1"
    command = f"snakemake {options} --latency-wait 5 --jobs 2000 --cores 20000 --resources gpu=2000"
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), PROGRAMS, os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    with (folder / "command.txt").open("w") as output:
        process = subprocess.Popen(
            shlex.split(command), cwd=folder, env=environment, stdout=output, stderr=output
        )
        seconds = 0.0
        while process.poll() is None:
            seconds = _own_seconds(process.pid) or seconds
            time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{(folder / 'command.txt').read_text()[-3000:]}")
    return seconds


def _own_seconds(process: int) -> float:
    """CPU seconds of a process without its children; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(table(rows()))
