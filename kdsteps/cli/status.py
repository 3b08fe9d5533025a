"""The command `status`: what a study has done, is doing and has left, from any terminal."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdsteps.cli.stages import jobs_per_gpu
from kdsteps.cli.whole_numbers import count, positive
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.standing import BEHIND, METRIC, Run, Standing, standing
from kdsteps.jobs import graph
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.job_states import JobState, TimeLeft, job_states, time_left
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.run_lock import current_run
from kdsteps.jobs.words import duration, plural
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

_DEFAULT_CORES = 4  # as in profiles/default
_EVERY = 2.0  # seconds between two looks with --watch
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 12  # of a drawn curve
_STYLES = {"ahead": "green", BEHIND: "yellow", "diverging": "bold red"}


def add_commands(commands: Any) -> None:
    """Add `status` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "status",
        help="show jobs done, running and failed, the time left, and how each method is doing",
        description="Show what a study has done so far: jobs done, running and failed, the time "
        "left, and the validation accuracy of each method against the first of `report."
        "references` (by default `labels`, or `kd` in a study without it) at the same epoch. Works "
        "while snakemake runs and after it ended. Changes nothing.",
    )
    parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    of_run = "as of the run that uses this folder, else"
    parser.add_argument(
        "--cores", type=positive, metavar="N", help=f"cores of the run ({of_run} {_DEFAULT_CORES})"
    )
    parser.add_argument(
        "--gpus",
        type=count,
        metavar="N",
        help=f"GPUs of the run, as in `--resources gpu=N` ({of_run} 1 if there is one)",
    )
    parser.add_argument(
        "--jobs-per-gpu", type=jobs_per_gpu, metavar="N", help=f"jobs that share a GPU ({of_run} 1)"
    )
    parser.add_argument("--watch", action="store_true", help="refresh until all jobs are done")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, with every job and every student"
    )
    parser.set_defaults(run=show_status)


@dataclass(frozen=True)
class Group:
    """The students of a pair and method, by seed, and how they do."""

    pair: str
    method: str
    runs: Mapping[int, Run]
    found: Standing


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment; `baseline` is the entry of `methods` that others are compared with."""

    run: dict[str, Any] | None
    states: list[JobState]
    left: TimeLeft
    groups: list[Group]
    baseline: str | None

    @property
    def over(self) -> bool:
        return all(each.state == "done" for each in self.states)


def show_status(given: argparse.Namespace) -> None:
    """Print the status once, or refresh it until all jobs are done."""
    study = load_study(given.params)
    resources = {name: getattr(given, name) for name in ("cores", "gpus", "jobs_per_gpu")}
    found = look(study, **resources)
    if given.json:
        json.dump(_as_json(found), sys.stdout, indent=1)
        print()
        return
    if given.watch and _can_refresh() and not found.over:
        with suppress(KeyboardInterrupt):  # the way to end it; the study goes on
            _watch(study, resources, found)
        found = look(study, **resources)
    print("\n".join(lines(found)))


def _can_refresh() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def look(study: Study, **resources: int | None) -> Snapshot:
    """The state of a study now.

    Args:
        resources: `cores`, `gpus` and `jobs_per_gpu` of its run; None: as the run that uses this
            folder has them, else as a plain `snakemake` has them.
    """
    states, run = job_states(study), current_run()
    left = time_left(study, states, _sharing(resources, run or {}), time.time())
    baseline = next(iter(study.references.values()), None)
    return Snapshot(run, states, left, list(_groups(states, baseline)), baseline)


def _sharing(given: Mapping[str, int | None], run: Mapping[str, Any]) -> Sharing:
    found = {"cores": _DEFAULT_CORES, "gpus": min(1, gpus_there()), "jobs_per_gpu": 1}
    for source in (run, given):
        found |= {
            each.name: value
            for each in fields(Sharing)
            if isinstance(value := source.get(each.name), int)
        }
    return Sharing(**found)


def lines(found: Snapshot, height: int | None = None) -> list[str]:
    """The status as text.

    Args:
        height: Of the screen; jobs and students that do not fit are counted instead of listed.
    """
    head, jobs, students = list(_summary(found)), list(_jobs(found)), list(_students(found))
    title = ["", _title(found.baseline)] if students else []
    if height is not None:
        height -= len(head) + len(title)
        jobs = _shortened(jobs, height - len(students), "jobs that run or failed")
        students = _shortened(students, height - len(jobs), "rows")
    return [*head, *jobs, *title, *students]


def _title(baseline: str | None) -> str:
    against = f", and the difference from `{baseline}` at the same epoch" if baseline else ""
    return f"validation accuracy{against}"


def _shortened(rows: list[str], count: int, what: str) -> list[str]:
    """At most `count` rows, but at least the one that counts those that are not shown."""
    if len(rows) <= count:
        return rows
    shown = max(0, count - 1)
    return [*rows[:shown], f"...       and {len(rows) - shown} more {what}"]


def _summary(found: Snapshot) -> Iterator[str]:
    counts = Counter(each.state for each in found.states)
    listed = [f"{counts[state]} {state}" for state in ("running", "failed", "stopped", "waiting")]
    others = ", ".join(text for text in listed if not text.startswith("0 "))
    yield f"jobs      {counts['done']} of {len(found.states)} done" + (others and f", {others}")
    if found.over:
        yield f"report    {graph.outputs('report', {})['page']}"
    else:
        yield f"time left {_time(found.left, found.run)}"


def _jobs(found: Snapshot) -> Iterator[str]:
    for each in found.states:
        if each.state in ("failed", "stopped"):
            yield f"{each.state:9} {each.name}: {each.why} ({each.log})"
    for each in found.states:
        if each.state == "running":
            yield f"running   {each.name}{_epochs(each)}"


def _students(found: Snapshot) -> Iterator[str]:
    width = max((len(f"{group.pair} {group.method}") for group in found.groups), default=0)
    for group in found.groups:
        yield f"{f'{group.pair} {group.method}':{width}}  {_of_group(group)}"


def _time(left: TimeLeft, run: Mapping[str, Any] | None) -> str:
    running = "; no run is using this folder" if run is None else ""
    if not left.unknown:
        return f"about {duration(left.seconds)}{running}"
    if not left.seconds:
        return f"not known yet: `kdsteps check` makes a forecast{running}"
    return (
        f"at least {duration(left.seconds)}: for {plural(left.unknown, 'job')}, "
        f"nothing is known before the first one of the same kind has ended{running}"
    )


def _epochs(each: JobState) -> str:
    progress = each.progress
    if progress is None or not progress.epochs:
        return ""
    left = progress.seconds_left
    rest = f", {duration(left)} left" if left is not None else ""
    return f"  epoch {progress.epoch} of {progress.epochs}{rest}"


def _of_group(group: Group) -> str:
    found = group.found
    accuracy = "     -" if found.accuracy is None else f"{100 * found.accuracy:5.1f}%"
    gap = "      " if found.difference is None else f"{100 * found.difference:+6.1f}"
    seeds = plural(len(group.runs), "seed")
    curve = _curve(group.runs)
    return f"epoch {found.epoch:4}  {seeds:8} {curve:{_WIDTH}}  {accuracy} {gap}  {found.word}"


def _curve(runs: Mapping[int, Run]) -> str:
    """The mean validation accuracy by epoch, drawn with bars from its lowest to its highest."""
    by_epoch: dict[int, list[float]] = {}
    for run in runs.values():
        for epoch, values in run.items():
            if math.isfinite(value := values.get(METRIC, math.nan)):
                by_epoch.setdefault(epoch, []).append(value)
    means = [sum(values) / len(values) for _, values in sorted(by_epoch.items())]
    if not means:
        return ""
    count = min(_WIDTH, len(means))
    chosen = [means[round(at * (len(means) - 1) / max(1, count - 1))] for at in range(count)]
    low, high = min(chosen), max(chosen)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (v - low) / (high - low or 1))] for v in chosen)


def _groups(states: list[JobState], baseline: str | None) -> Iterator[Group]:
    """The students that have begun, by pair and method, against those of the baseline."""
    runs: dict[tuple[str, str], dict[int, Run]] = {}
    for each in states:
        if each.node.rule == "distil" and (run := _run(each)):
            names = each.node.names
            runs.setdefault((names["pair"], names["method"]), {})[int(names["seed"])] = run
    for (pair, method), own in runs.items():
        others = None if method == baseline else runs.get((pair, str(baseline)), {})
        found = standing(own, others, there_is_one=baseline is not None)
        yield Group(pair, method, own, found)


def _run(each: JobState) -> Run:
    """The epochs of a student so far: from its results, or from what it writes while it trains.

    Empty if its results are stale: these are of other settings, code or inputs.
    """
    if each.progress is not None:
        return each.progress.history
    if each.state != "done":
        return {}
    path = Path(graph.outputs("distil", each.node.names)["history"])
    try:
        return _history(path, path.stat().st_mtime_ns)
    except (OSError, KdstepsError):  # not there, or damaged
        return {}


@lru_cache(maxsize=4096)
def _history(path: Path, _when: int) -> Run:
    from kdsteps.files.columns import HISTORY
    from kdsteps.files.tables import read_table

    run: dict[int, dict[str, float]] = {}
    for row in read_table(path, HISTORY).to_pylist():
        value = row["value"]
        run.setdefault(row["epoch"], {})[row["name"]] = math.nan if value is None else value
    return run


def _watch(study: Study, resources: Mapping[str, int | None], found: Snapshot) -> None:
    """Show the status on the terminal's second screen until all jobs are done.

    Args:
        found: The status now.
    """
    from rich.console import Console
    from rich.console import Group as Rows
    from rich.live import Live
    from rich.text import Text

    def drawn(found: Snapshot) -> Rows:
        rows = lines(found, console.height)
        shown = [Text(row, no_wrap=True, overflow="ellipsis") for row in rows]
        for text in shown:
            for words, style in _STYLES.items():
                text.highlight_words([words], style)
            if text.plain.startswith("failed"):
                text.stylize("red")
        return Rows(*shown)

    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False)
    try:  # not `with`, which would leave this screen on if Ctrl-C came while it is being opened
        live.start()
        while not found.over:
            live.update(drawn(found), refresh=True)
            time.sleep(_EVERY)
            found = look(study, **resources)
    finally:
        live.stop()


def _as_json(found: Snapshot) -> dict[str, Any]:
    return {
        "run": found.run,
        "time_left": asdict(found.left),
        "jobs": [
            {
                "rule": each.node.rule,
                **each.node.names,
                "state": each.state,
                "seconds": each.seconds,
                "log": str(each.log),
                "why": each.why,
                "epoch": each.progress.epoch if each.progress else None,
                "epochs": each.progress.epochs if each.progress else None,
            }
            for each in found.states
        ],
        "students": [
            {
                "pair": group.pair,
                "method": group.method,
                **asdict(group.found),
                "validation_accuracy": {
                    seed: {
                        epoch: values.get("validation_accuracy") for epoch, values in run.items()
                    }
                    for seed, run in group.runs.items()
                },
            }
            for group in found.groups
        ],
    }
