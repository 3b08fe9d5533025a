"""The commands `stale` and `accept`: what a new version or new settings make stale."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kdsteps.cli.calls import NAMES, call_of
from kdsteps.cli.running import run_call
from kdsteps.errors import KdstepsError, nearest
from kdsteps.jobs import graph
from kdsteps.jobs.restoring import restore_records
from kdsteps.jobs.upgrades import Status, accept, statuses
from kdsteps.jobs.version_lock import LOCK, code_changed, update_lock
from kdsteps.jobs.words import plural
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

_HELP = {
    "dataset": "only jobs of this data set (all)",
    "views": "only cached logits of these views (all)",
    "trial": "only trials with this number (all)",
    "student": "only exports of this student, such as kd/0 (all)",
}


def add_commands(commands: Any) -> None:
    """Add `stale` and `accept` to the commands of `kdsteps`."""
    stale = commands.add_parser(
        "stale",
        help="list the results that are stale, and why",
        description="List the results that would be recomputed, and why. Changes nothing.",
    )
    stale.set_defaults(run=show_stale)
    stale.add_argument("--jobs", action="store_true", help="list every stale job")
    taking = commands.add_parser(
        "accept",
        help="accept existing results although the code that made them has changed",
        description="Accept existing results as up to date where only the code changed. They are "
        "listed in results/accepted.json and in the report. Where settings or inputs changed, the "
        "job is rerun.",
    )
    taking.set_defaults(run=accept_results)
    for parser in (stale, taking):
        parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
        parser.add_argument(
            "--stage", action="append", default=[], help="only this stage; may be repeated (all)"
        )
        for name in NAMES:
            usual = f"only jobs of this {name} (all)"
            parser.add_argument(f"--{name}", help=_HELP.get(name, usual))


def show_stale(given: argparse.Namespace) -> None:
    """Print stale results by stage and reason."""
    study = load_study(given.params)
    _check_options(study, given)
    found = [each for each in statuses(study, thorough=True) if _chosen(given, each)]
    stale = [status for status in found if status.stale]
    if given.jobs:
        for status in stale:
            print(f"{_label(status)}: {_why(status)}")
    else:
        _print_groups(stale)
    print(f"{len(found) - len(stale)} of {len(found)} results are up to date.")
    if code_changed():
        print(
            f"{LOCK} is of other code than the installed kdsteps: run `kdsteps lock` before `dvc "
            "repro`, which does not see it otherwise; snakemake does so itself."
        )
    count = sum(status.reason == "code" and status.rule != "report" for status in stale)
    if count:
        print(
            f"`kdsteps accept` accepts {count} of the others, where only code changed; snakemake "
            "recomputes the rest."
        )


def accept_results(given: argparse.Namespace) -> None:
    """Accept results where only code changed; rewrite the report if all else is up to date."""
    study = load_study(given.params)
    _check_options(study, given)
    done = accept(study, lambda status: _chosen(given, status), lambda status: _make(study, status))
    for status in done.refused:
        print(f"not accepted: {_label(status)}: {status.why}")
    if done.refused and not done.taken:
        raise KdstepsError(
            f"nothing is accepted: {plural(len(done.refused), 'result')} changed or missing for "
            "reasons other than code; run snakemake"
        )
    counts = Counter(status.rule for status in done.taken)
    said = ", ".join(f"{count} {rule}" for rule, count in counts.items())
    for status in done.lacking:
        print(f"adding a file that an earlier version did not write: {_label(status)}")
        _make(study, status)
    print(f"accepted as is: {said or 'nothing, since no result is stale because of code alone'}")
    _write_report(given)
    for finding in update_lock():
        print(finding)


def _make(study: Study, status: Status) -> None:
    """Run one job here, on results as they are, and update Snakemake's records."""
    call = call_of(study, status.rule, status.names)
    code = {root: known for root, known in call.expected.items() if root not in call.read}
    run_call(replace(call, expected=code))
    restore_records(study)


def _write_report(given: argparse.Namespace) -> None:
    """Rewrite the report if nothing else is stale, so that it lists what was accepted."""
    study = load_study(given.params)
    found = statuses(study)
    (report,) = [status for status in found if status.rule == "report"]
    others = [status for status in found if status.rule != "report"]
    if (given.stage and "report" not in given.stage) or any(status.stale for status in others):
        return
    if report.reason not in ("current", "missing", "unknown"):
        print("rewriting the report")
        _make(study, report)


def _check_options(study: Study, given: argparse.Namespace) -> None:
    """Raise KdstepsError for stages and names that the study does not have."""
    known = {"stage": list(graph.STAGES)} | {
        name: sorted({job[name] for job in _all_names(study) if name in job}) for name in NAMES
    }
    for name, choices in known.items():
        value = getattr(given, name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each not in choices:
                hint = nearest(each, choices)
                raise KdstepsError(f"--{name}: this study has no job for {each!r}{hint}")


def _all_names(study: Study) -> list[graph.Names]:
    return [names for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]


def _chosen(given: argparse.Namespace, status: Status) -> bool:
    """Whether the options of a command select a job."""
    if given.stage and graph.stage_of(status.rule) not in given.stage:
        return False
    wanted = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    return wanted.items() <= status.names.items()


def _label(status: Status) -> str:
    return " ".join([status.rule, *status.names.values()])


def _why(status: Status) -> str:
    return status.why or f"follows {', '.join(status.follows)}"


def _print_groups(stale: Iterable[Status]) -> None:
    groups = Counter((status.rule, _why(status)) for status in stale)
    width = max((len(rule) for rule, _ in groups), default=0)
    for (rule, why), count in groups.items():
        print(f"{rule:{width}}  {count:5}  {why}")
