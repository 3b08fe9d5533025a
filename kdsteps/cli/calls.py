"""One job as a command describes it: by its names in params.yaml, or by its files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.live import RULES as LOGGED
from kdsteps.jobs.outputs import ORDERING, flat
from kdsteps.jobs.settings import SETTINGS, JobSettings, ReportSettings
from kdsteps.jobs.storage import with_stored_files
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.loggers import LoggerSettings
from kdsteps.study.loggers import from_text as loggers_from
from kdsteps.study.resolving import parse
from kdsteps.study.study import Study

NAMES = {
    "dataset": "a name under `datasets`",
    "teacher": "a name under `models`",
    "views": "for the teacher's logits: how images are augmented, such as crop4_flip_batch64",
    "pair": "a name under `pairs`",
    "method": "a name under `methods`",
    "trial": "the number of a trial, from 1",
    "seed": "one of `seeds`; of a trial, one of `tune.seeds`",
    "student": "`best`, or METHOD/SEED",
}
"""The names of jobs as options of commands, with their help."""
PROBES = {"evaluate": "evaluate_probe", "evaluate_teacher": "evaluate_probe_teacher"}
"""What is measured of a network instead of its predictions, if there are no labels."""


@dataclass(frozen=True)
class Call:
    """A job as the command line describes it.

    Attributes:
        read: The files it reads, by name of an input.
        hints: Options that change no result.
        expected: As `code_identity.identities` returns it: by name of an input, what
            `provenance.identity` is in the study for the job that wrote it, "" where that is not
            known; by root of the user's code, its digest.
        root: The folder in which its files have the paths that they have in the study's folder;
            None: they are in that folder.
        loggers: Where metrics go while the job runs.
    """

    rule: str
    settings: JobSettings
    read: dict[str, list[Path]]
    outputs: dict[str, Path]
    code: str | None
    hints: dict[str, Any]
    expected: dict[str, list[str]]
    root: Path | None = None
    loggers: tuple[LoggerSettings, ...] = ()

    @property
    def inputs(self) -> dict[str, Path]:
        """The inputs that are one file each."""
        return {name: paths[0] for name, paths in self.read.items() if name not in graph.LISTS}

    @property
    def lists(self) -> dict[str, list[Path]]:
        """The inputs that are lists of files."""
        return {name: paths for name, paths in self.read.items() if name in graph.LISTS}


def call_by_name(given: argparse.Namespace) -> Call:
    """The job of a study that `--params` and the names on the command line describe.

    Raises:
        KdstepsError: The study has no such job, or a name is missing.
    """
    study = load_study(given.params)
    rule = given.command
    names = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    if rule == "evaluate" and "pair" not in names:
        rule = "evaluate_teacher"
    if rule == "evaluate" and set(names) == {"pair"}:
        rule = "evaluate_latency"
    if rule == "train" and set(names) == {"pair"}:
        rule = "train_audit"
    if rule == "cache" and "views" in names:
        rule = "cache_outputs"
    if rule == "tune" and set(names) == {"pair", "method"}:
        rule = "tune_choose"
    if not graph.jobs(study, rule):  # its images have no labels
        rule = PROBES.get(rule, rule)
    wanted = graph.names_of(rule)
    missing = [f"--{name}" for name in wanted if name not in names]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise KdstepsError(f"{' and '.join(missing)} {verb} missing; say which job to run")
    for name in names:
        if name not in wanted:
            right = " and ".join(f"--{name}" for name in wanted) or "none"
            raise KdstepsError(f"--{name}: not an option of this job; it takes {right}")
    graph.check_names(study, rule, names)
    call = call_of(study, rule, names)
    only_there = ORDERING & graph.node(study, rule, names).covered
    for name in ({"ticket", "tickets"} | only_there) & call.read.keys():
        if not all(path.is_file() for path in call.read[name]):
            del call.read[name]  # a job started by hand works without cached logits and checks
    return call


def call_by_file(given: argparse.Namespace) -> Call:
    """The job that `--settings` and the files on the command line describe.

    Raises:
        KdstepsError: An option cannot be read.
    """
    inputs = _paths(given.inputs, "--inputs")
    outputs = {name: paths[0] for name, paths in _paths(given.outputs, "--outputs").items()}
    rules = graph.rules_of(given.command)
    rule = next((r for r in rules if outputs.keys() <= graph.OUTPUTS[r].keys()), given.command)
    try:
        settings = parse(SETTINGS[rule], json.loads(given.settings), "--settings")
    except json.JSONDecodeError as error:
        raise KdstepsError(f"--settings: is not JSON ({error}); quote it for the shell") from error
    expected = _named(given.expect, "--expect")
    if isinstance(settings, ReportSettings) and not inputs:
        study = _reported(settings)
        node = graph.node(study, "report", {})
        node = node if given.root is None else with_stored_files(node)
        inputs, expected = _inputs(node, given.root), code_identity.identities(study, node)
    loggers = _loggers(getattr(given, "loggers", None))
    return Call(rule, settings, inputs, outputs, given.code, {}, expected, given.root, loggers)


def call_of(study: Study, rule: str, names: graph.Names) -> Call:
    """A job of a study, as Snakemake calls it."""
    node = graph.node(study, rule, names)
    if isinstance(node.settings, ReportSettings):
        study = _reported(node.settings)
        node = graph.node(study, rule, names)
    return Call(
        rule=rule,
        settings=node.settings,
        read=_inputs(node),
        outputs={name: Path(path) for name, path in graph.outputs(rule, names).items()},
        code=code_identity.code(study, rule, names),
        hints=node.hints,
        expected=code_identity.identities(study, node),
        loggers=study.loggers if rule in LOGGED else (),
    )


def _reported(settings: ReportSettings) -> Study:
    """The study of a report. Its keys are sorted, as in `--settings`: their order decides ties."""
    return parse_study(json.loads(json.dumps(settings.study, sort_keys=True)))


def _loggers(text: str | None) -> tuple[LoggerSettings, ...]:
    try:
        return loggers_from(text) if text else ()
    except ValueError as error:
        raise KdstepsError("--loggers: is not the JSON that snakemake passes to a job") from error


def _inputs(node: graph.JobNode, root: Path | None = None) -> dict[str, list[Path]]:
    """The files a job reads below a folder, each name with a list."""
    return {
        name: [Path(root or "", path) for path in flat(given)]
        for name, given in node.inputs.items()
    }


def _paths(given: Sequence[str], option: str) -> dict[str, list[Path]]:
    """The paths of NAME=PATH arguments, by name."""
    return {name: [Path(each) for each in found] for name, found in _named(given, option).items()}


def _named(given: Sequence[str], option: str) -> dict[str, list[str]]:
    """The values of NAME=VALUE arguments, by name."""
    found: dict[str, list[str]] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not equals:
            raise KdstepsError(f"{option}: {argument!r} should read NAME=PATH")
        found.setdefault(name, []).append(value)
    return found
