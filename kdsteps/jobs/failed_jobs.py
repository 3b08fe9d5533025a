"""The jobs of a run that failed, as Snakemake's log has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LOGS = re.compile(r"\s+log: (.*) \(check log file")
_FILES = re.compile(r"\s+output: ([^,]+)")
_SLURM = re.compile(r"/slurm_logs/.*?(\d+(?:_\d+)?)\.log$")
_SIGNAL = re.compile(r".* died with <Signals\.(\w+)")
_STATUS = re.compile(r".* returned non-zero exit status (\d+)\.$")


@dataclass(frozen=True)
class FailedJob:
    """A job whose last attempt failed.

    Attributes:
        log: The job's own log.
        how: How its process ended on this machine: a signal such as SIGKILL, or a status; "" if
            that is not known.
        slurm: Where Slurm wrote the output of its submission; "" for a job that ran elsewhere.
    """

    log: str
    how: str
    slurm: str

    @property
    def name(self) -> str:
        """The rule and the names of the job."""
        return name_of(self.log)


def name_of(log: str) -> str:
    """The rule and the names of a job, by its log: `distil resnet56-resnet20 kd 0`."""
    return f"/{log}".partition("/logs/")[2].removesuffix(".txt").replace("/", " ")


def number_of(slurm: str) -> str:
    """The number of the Slurm job that wrote an output."""
    found = _SLURM.search(slurm)
    assert found is not None, slurm
    return found[1]


def failed_jobs(logs: Iterable[str | Path]) -> list[FailedJob]:
    """The jobs of a run whose last attempt failed.

    Snakemake removes the files of a job that failed; if they are there, a later attempt made them.

    Args:
        logs: Of Snakemake; one that cannot be read is left out.
    """
    last: dict[str, tuple[str, FailedJob]] = {}  # with its first file, by the job's log
    made = how = slurm = ""
    for line in (line for log in logs for line in text_of(log).splitlines()):
        if line.lstrip().startswith("message:"):  # of another error, such as in a log shown here
            slurm = ""
        elif found := _FILES.match(line):
            made = found[1]
        elif found := _SIGNAL.match(line) or _STATUS.match(line):
            how = found[1]
        elif found := _LOGS.match(line):
            paths = found[1].split(", ")  # a group has that of Slurm first, then those of its jobs
            slurm = next(filter(_SLURM.search, paths), slurm)
            for path in paths:
                if path.startswith("logs/"):
                    known = last[path][1].slurm if path in last else ""
                    last[path] = made, FailedJob(path, how, slurm or known)
            how = ""
    return [job for file, job in last.values() if not Path(file).exists()]


def text_of(path: str | Path) -> str:
    """The content of a log; empty if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
