"""Why jobs that a run started on this machine failed: one sentence each."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from kdsteps.files.atomic import nearest_folder
from kdsteps.files.text import last_lines
from kdsteps.jobs.failed_jobs import FailedJob
from kdsteps.jobs.words import plural

_STOPPED = ("SIGINT", "SIGTERM", "SIGHUP", "130", "143")
_KILLED = ("SIGKILL", "137")
_LINE = 4096  # bytes: a block of a disk, which is what the first line of a log takes


def failures(failed: Iterable[FailedJob]) -> list[str]:
    """What happened to the jobs that failed here, by how they ended and what they said last.

    Jobs that were stopped, as by Ctrl-C, are counted.
    """
    here = [job for job in failed if not job.slurm]
    stopped = [job for job in here if job.how in _STOPPED]
    sentences = [_sentence(job) for job in here if job not in stopped]
    if stopped:
        sentences.append(
            f"{plural(len(stopped), 'job')} stopped; run the same command again, and training "
            "continues where it was stopped"
        )
    return sentences


def _sentence(job: FailedJob) -> str:
    if job.how in _KILLED:
        return (
            f"{job.name} was killed; its log {job.log} has what it did last. Memory may have run "
            "out: start fewer jobs at a time (--cores)"
        )
    said = last_lines(job.log)
    if not said:
        full = shutil.disk_usage(nearest_folder(Path(job.log).parent)).free < _LINE
        why = ", since its disk is full; free some space and run again" if full else ""
        return f"{job.name} failed; its log {job.log} is empty{why}"
    command, colon, sentence = said[-1].partition(": ")
    if colon and command.startswith("kdsteps "):  # a mistake that the user can fix
        return f"{job.name} failed: {sentence}"
    return f"{job.name} failed: {said[-1]} (more in {job.log})"
