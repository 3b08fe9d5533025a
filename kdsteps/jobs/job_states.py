"""Where each job of a study is: done, running, failed, stopped or waiting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

from kdsteps.files.text import last_lines
from kdsteps.jobs import graph
from kdsteps.jobs.progress import Progress, read_progress
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.schedule import wall_seconds
from kdsteps.jobs.upgrades import Status, statuses
from kdsteps.study.study import Study

State = Literal["done", "running", "failed", "stopped", "waiting"]

LOGS = {
    "prepare": "logs/prepare/{dataset}.txt",
    "train": "logs/train/{dataset}/{teacher}.txt",
    "train_check": "logs/train/{dataset}/{teacher}/check.txt",
    "train_audit": "logs/train/audits/{pair}/audit.txt",
    "cache": "logs/cache/{dataset}/{teacher}.txt",
    "cache_outputs": "logs/cache/{dataset}/{teacher}/outputs_{views}.txt",
    "score": "logs/score/{dataset}/{teacher}.txt",
    "build": "logs/build/{pair}/{method}.txt",
    "tune": "logs/tune/{pair}/{method}/{trial}/{seed}.txt",
    "tune_choose": "logs/tune/{pair}/{method}.txt",
    "distil": "logs/distil/{pair}/{method}/{seed}.txt",
    "evaluate": "logs/evaluate/students/{pair}/{method}/{seed}.txt",
    "evaluate_teacher": "logs/evaluate/teachers/{dataset}/{teacher}.txt",
    "evaluate_latency": "logs/evaluate/latency/{pair}.txt",
    "evaluate_probe": "logs/evaluate/probes/students/{pair}/{method}/{seed}.txt",
    "evaluate_probe_teacher": "logs/evaluate/probes/teachers/{dataset}/{teacher}.txt",
    "evaluate_probe_untrained": "logs/evaluate/probes/untrained/{pair}/{seed}.txt",
    "export": "logs/export/{pair}/{student}.txt",
    "report": "logs/report.txt",
}
"""The log of each rule, as in workflow/rules."""
_RESTORED = "restored from "  # in the log of a job whose result the job cache had


@dataclass(frozen=True)
class JobState:
    """One job.

    Attributes:
        seconds: That it took, if it is done and was computed here.
        why: The error of a job that failed, or the last line of its log; also if it was stopped.
        progress: Of a job that has not finished.
    """

    node: graph.JobNode
    state: State
    seconds: float | None = None
    why: str = ""
    progress: Progress | None = None

    @property
    def log(self) -> Path:
        return _log_of(self.node)

    @property
    def name(self) -> str:
        return " ".join([self.node.rule, *self.node.names.values()])


def job_states(study: Study) -> list[JobState]:
    """Every job of a study."""
    return [_state(status) for status in statuses(study)]


def _log_of(node: graph.JobNode) -> Path:
    return Path(LOGS[node.rule].format(**node.names))


def _state(status: Status) -> JobState:
    node, outputs = status.node, status.outputs
    log = _log_of(node)
    progress = read_progress(Path(outputs[0]))
    if progress is not None and progress.running:
        return JobState(node, "running", progress=progress)
    if not status.stale:
        known = status.known
        if known is None or any(line.startswith(_RESTORED) for line in last_lines(log)):
            return JobState(node, "done")
        return JobState(node, "done", known.ended - known.started)
    last = lines[-1] if (lines := last_lines(log)) else ""
    if progress is not None:
        state: State = "failed" if progress.failed else "stopped"
        logged = last if _is_written_since(log, progress.started) else ""  # not by hand
        why = progress.why or logged or "no reason was recorded"
        return JobState(node, state, why=why, progress=progress)
    refused = last.startswith(f"kdsteps {graph.stage_of(node.rule)}: ")
    if refused and not Path(outputs[0]).exists():  # it ended before its work began
        return JobState(node, "failed", why=last)
    return JobState(node, "waiting")


def _is_written_since(log: Path, moment: float) -> bool:
    try:
        return log.stat().st_mtime >= moment
    except OSError:
        return False


@dataclass(frozen=True)
class TimeLeft:
    """The time until all jobs have ended.

    Attributes:
        seconds: As far as it is known.
        unknown: Jobs of a kind of which none has ended.
    """

    seconds: float
    unknown: int


def time_left(study: Study, states: Iterable[JobState], sharing: Sharing, now: float) -> TimeLeft:
    """How long the other jobs take, if they take as long as those of their kind that are done.

    Args:
        sharing: Of the cores and GPUs of the run.
        now: In seconds since 1970.
    """
    listed = list(states)
    known = _means(listed)
    left = [each for each in listed if each.state != "done"]
    seconds = [_seconds(each, known, now) for each in left]
    total = wall_seconds(
        study,
        [each.node for each in left],
        [each or 0.0 for each in seconds],
        sharing,
        [each.state == "running" for each in left],
    )
    return TimeLeft(total, sum(each is None for each in seconds))


def _kinds(node: graph.JobNode) -> list[tuple[str, ...]]:
    """What a job is alike with others, the closest first."""
    method = node.names.get("method", "")
    return [(node.rule, node.names.get("pair", ""), method), (node.rule, method), (node.rule,)]


def _means(states: Iterable[JobState]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], list[float]] = {}
    for each in states:
        for kind in _kinds(each.node) if each.seconds is not None else ():
            found.setdefault(kind, []).append(each.seconds or 0.0)
    return {kind: mean(seconds) for kind, seconds in found.items()}


def _seconds(each: JobState, known: Mapping[tuple[str, ...], float], now: float) -> float | None:
    """The time that a job still needs; None if it is not known."""
    progress = each.progress
    if progress is not None and (left := progress.seconds_left) is not None:
        return left
    whole = next((known[kind] for kind in _kinds(each.node) if kind in known), None)
    if whole is None or progress is None or each.state != "running":
        return whole
    return max(0.0, whole - (now - progress.started))
