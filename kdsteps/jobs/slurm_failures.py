"""Why jobs that a run submitted to Slurm failed: one sentence each, when the run ends.

Snakemake's log says which jobs failed. Why Slurm ended a job is in the job's own output, where
Slurm's daemon writes it, whether or not the cluster has accounting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_LOGS = re.compile(r"\s+log: (.*) \(check log file")
_FILES = re.compile(r"\s+output: ([^,]+)")
_OUTPUT = re.compile(r"/slurm_logs/.*?(\d+(?:_\d+)?)\.log$")
_AGAIN = "run again, and training continues where it was stopped"
_REASONS = {
    r"exceeded memory limit|oom.kill|Out Of Memory": (
        "ran out of memory; raise memory_percent in the profile"
    ),
    r"CANCELLED AT \S+ DUE TO TIME LIMIT": (
        f"reached its time limit; {_AGAIN}, or raise time_percent in the profile"
    ),
    r"CANCELLED AT \S+ DUE TO PREEMPTION": f"had to give way to another job; {_AGAIN}",
    r"CANCELLED AT \S+ DUE TO NODE FAILURE": f"lost its node; {_AGAIN}",
    r"CANCELLED AT": f"was canceled; {_AGAIN}",
}
"""By what Slurm writes into the output of a job; the first that is found counts."""


def failures(logs: Iterable[str | Path]) -> list[str]:
    """What happened to the jobs that failed on Slurm; nothing for a run without Slurm.

    Args:
        logs: Of Snakemake; one that cannot be read is left out.
    """
    failed = _failed(line for log in logs for line in _text(log).splitlines())
    return [f"{' and '.join(names)}: {_reason(output)}" for output, names in failed.items()]


def name_of(log: str) -> str:
    """The rule and the names of a job, by its log: `distil resnet56-resnet20 kd 0`."""
    return f"/{log}".partition("/logs/")[2].removesuffix(".txt").replace("/", " ")


def _failed(lines: Iterable[str]) -> dict[str, list[str]]:
    """The jobs whose last attempt failed: names of their logs, by the path of Slurm's output.

    Snakemake removes the files of a job that failed; if they are there, a later attempt made them.
    """
    last: dict[str, tuple[str, str]] = {}  # by the job's log: its first file, and Slurm's output
    made, output = "", ""
    for line in lines:
        if line.lstrip().startswith("message:"):  # of another error, such as in a log shown here
            output = ""
        elif found := _FILES.match(line):
            made = found[1]
        elif found := _LOGS.match(line):
            paths = found[1].split(", ")  # a group has that of Slurm first, then those of its jobs
            output = next(filter(_OUTPUT.search, paths), output)
            own = [path for path in paths if path.startswith("logs/") and output]
            last |= dict.fromkeys(own, (made, output))
    failed: dict[str, list[str]] = {}
    for path, (file, output) in last.items():
        if not Path(file).exists():
            failed.setdefault(output, []).append(name_of(path))
    return failed


def _reason(output: str) -> str:
    number = _OUTPUT.search(output)
    assert number is not None, output
    text = _text(output)
    if not text:
        return f"Slurm job {number[1]} has no output; it may have been canceled before it began"
    for pattern, reason in _REASONS.items():
        if re.search(pattern, text):
            return f"Slurm job {number[1]} {reason}"
    return f"Slurm job {number[1]} failed; its log, and {output}, say why"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
