"""Why jobs that a run submitted to Slurm failed: one sentence each, when the run ends.

Snakemake's log says which jobs failed, and Slurm's records say why. Slurm reports a job that used
too much memory in different ways, depending on how memory is watched, so its use is compared too.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_FENCE = "=" * 80  # around the logs that Snakemake shows within its own
_LOGS = re.compile(r"\s+log: (.*) \(check log file")
_JOB = re.compile(r"\s+jobid: (\d+)$")
_FINISHED = re.compile(r"Finished jobid: (\d+) ")
_SLURM_LOG = re.compile(r"/slurm_logs/.*?(\d+(?:_\d+)?)\.log$")
_FIELDS = "JobID,State,ExitCode,Timelimit,ReqMem,MaxRSS"
_UNITS = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_ALMOST = 0.9  # of the requested memory: the last value that Slurm saw before it killed the job


def failures(log: str | Path) -> list[str]:
    """What happened to the jobs that failed on Slurm.

    Args:
        log: Of Snakemake; the result is empty for a run without Slurm.
    """
    failed = _failed(Path(log).read_text(errors="replace").splitlines())
    records = _records(failed.keys()) if failed else {}
    return [
        f"{' and '.join(names)}: Slurm job {number} {_reason(records.get(number))}"
        for number, names in failed.items()
    ]


def _failed(lines: Iterable[str]) -> dict[str, list[str]]:
    """The jobs whose last attempt failed: by Slurm's number, the names of their logs."""
    last: dict[str, tuple[str, str]] = {}  # by Snakemake's number
    job, number, quoted = "", "", False
    for line in lines:
        if line == _FENCE:
            quoted = not quoted
        elif quoted:
            continue
        elif found := _FINISHED.match(line):
            last.pop(found[1], None)
        elif line.lstrip().startswith("message:"):
            number = ""
        elif found := _JOB.match(line):
            job = found[1]
        elif found := _LOGS.match(line):
            for path in found[1].split(", "):
                if slurm := _SLURM_LOG.search(path):
                    number = slurm[1]
            for path in found[1].split(", "):
                if number and path.startswith("logs/"):
                    name = path.removeprefix("logs/").removesuffix(".txt")
                    last[job] = number, name.replace("/", " ")
    failed: dict[str, list[str]] = {}
    for number, name in last.values():
        failed.setdefault(number, []).append(name)
    return failed


class _Record(NamedTuple):
    """What Slurm recorded of a job; memory in MiB, 0 where it is not known."""

    state: str
    exit_code: str
    time_limit: str
    requested: float = 0.0
    used: float = 0.0


def _reason(record: _Record | None) -> str:
    if record is None:
        return "failed, and Slurm has no record of it; its log may say why"
    state = record.state
    if state == "OUT_OF_MEMORY" or record.used > _ALMOST * record.requested > 0:
        used = f" used {record.used:.0f} MiB and" if record.used else ""
        asked = f"{used} requested {record.requested:.0f} MiB" if record.requested else ""
        return f"ran out of memory:{asked or ' see its log'}; raise memory_percent in the profile"
    if state == "TIMEOUT":
        return (
            f"reached its time limit of {record.time_limit}; run again, and training continues "
            "where it was stopped; raise time_percent in the profile"
        )
    if state.startswith("CANCELLED"):
        return "was cancelled; run again, and training continues where it was stopped"
    if state in ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "DEADLINE"):
        return f"ended with {state}; run again, and training continues where it was stopped"
    return f"ended with exit status {record.exit_code.partition(':')[0]}; its log says why"


def _records(numbers: Iterable[str]) -> dict[str, _Record]:
    """Slurm's records by its numbers of jobs, from the accounting or from the controller."""
    command = ["sacct", "--noheader", "--parsable2", f"--format={_FIELDS}", "--jobs"]
    found = _accounted(_output([*command, ",".join(numbers)]))
    for number in numbers:
        if number not in found:
            text = _output(["scontrol", "--oneliner", "show", "job", number])
            fields = dict(re.findall(r"(\w+)=(\S*)", text))
            if "JobState" in fields:
                found[number] = _Record(
                    *(fields["JobState"], fields.get("ExitCode", ""), fields.get("TimeLimit", ""))
                )
    return found


def _accounted(text: str) -> dict[str, _Record]:
    """The rows of sacct: one for a job, followed by one for each of its steps."""
    found: dict[str, _Record] = {}
    for line in text.splitlines():
        name, state, exit_code, limit, requested, used = line.split("|")
        number, _, step = name.partition(".")
        if not step:
            found[number] = _Record(state, exit_code, limit, _mebibytes(requested))
        elif number in found:
            record = found[number]
            most = max(record.used, _mebibytes(used))
            out = "OUT_OF_MEMORY" in (state, record.state)
            found[number] = record._replace(
                state="OUT_OF_MEMORY" if out else record.state, used=most
            )
    return found


def _mebibytes(text: str) -> float:
    """Of a number with a unit, such as `1064512K`, `4G` or the older `1000Mn`."""
    found = re.match(r"([\d.]+)([KMGT])", text)
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
