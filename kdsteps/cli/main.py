"""The command `kdsteps`: one subcommand per stage, and some to inspect and manage results."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from kdsteps.cli import job_cache, upgrade
from kdsteps.cli.layers import show_layers
from kdsteps.cli.resolve import resolve
from kdsteps.cli.schema import show_schema
from kdsteps.cli.verify import check_stages
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.atomic import DISK_FULL, all_or_none, check_places
from kdsteps.files.digests import write_digests
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.job import Files, Job
from kdsteps.jobs.resources import cores_there
from kdsteps.jobs.settings import SETTINGS, JobSettings, ReportSettings
from kdsteps.study.study import load_study, parse, parse_study

SUMMARY = "Distill a large network into a small one, stage by stage, as params.yaml describes."
COMMANDS = (*graph.STAGES, "stale", "accept", "jobcache", "layers", "verify", "resolve", "schema")
NAMES = ("dataset", "teacher", "views", "pair", "method", "seed")
HINTS = ("keep", "passes", "budget_mib", "checkpoint_seconds")  # options that change no result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a mistake that the user can fix ends in one sentence and status 2.

    Any other error is a bug in kdsteps and keeps its traceback.
    """
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        given.run(given)
    except KdstepsError as error:
        print(f"kdsteps {given.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(
            f"kdsteps {given.command}: the disk is full; free some space and run again (finished "
            "results are safe)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"kdsteps {given.command}: stopped", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command line in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument command: invalid choice: '(.*?)' ", message):
            hint = nearest(unknown[1], COMMANDS)
            self.exit(2, f"{self.prog}: there is no command {unknown[1]!r}{hint}\n")
        message = re.sub("^the following arguments are required: ", "missing: ", message)
        message = re.sub("^unrecognized arguments: ", "there is no option ", message)
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kdsteps", description=SUMMARY)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for stage in graph.STAGES:
        _add_stage(commands, stage)
    upgrade.add_commands(commands)
    job_cache.add_command(commands)
    layers = commands.add_parser("layers", help="list the layers at which a network can be cut")
    layers.add_argument("model", help="a name under `models` in params.yaml, or FAMILY:NAME")
    layers.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    layers.add_argument(
        "--image", default="3,32,32", metavar="C,H,W", help="image shape (%(default)s)"
    )
    layers.add_argument(
        "--classes", type=_count, default=10, metavar="K", help="number of classes (%(default)s)"
    )
    layers.set_defaults(run=show_layers)
    verify = commands.add_parser(
        "verify", help="check that the results of stages match params.yaml (run by `dvc repro`)"
    )
    verify.add_argument(
        "stages", nargs="+", choices=graph.STAGES, metavar="stage", help="such as train"
    )
    verify.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    verify.set_defaults(run=check_stages)
    described = commands.add_parser(
        "resolve", help="write the settings of every job to files (run by `dvc repro`)"
    )
    described.add_argument(
        "folder", nargs="?", default="results/settings", help="where to write (%(default)s)"
    )
    described.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    described.set_defaults(run=resolve)
    schema = commands.add_parser("schema", help="print the JSON schema of params.yaml, for editors")
    schema.set_defaults(run=show_schema)
    return parser


def _add_stage(commands: Any, stage: str) -> None:
    """Add a stage's command; its help is the docstring of its module, read without importing it."""
    text = _docstring(f"kdsteps.stages.{stage}")
    parser = commands.add_parser(
        stage,
        help=text.splitlines()[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_name = parser.add_argument_group("by name, with settings and files from params.yaml")
    by_name.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    for name in NAMES:
        by_name.add_argument(
            f"--{name}", help=argparse.SUPPRESS if name not in _names(stage) else None
        )
    by_file = parser.add_argument_group("by file, as Snakemake calls it")
    by_file.add_argument("--settings", metavar="JSON", help="the settings that the job depends on")
    by_file.add_argument(
        "--inputs", nargs="*", metavar="NAME=PATH", default=[], help="files to read"
    )
    by_file.add_argument(
        "--outputs", nargs="*", metavar="NAME=PATH", default=[], help="files to write"
    )
    by_file.add_argument(
        "--code", metavar="DIGEST", help="digest of the job's code; without it, no job cache"
    )
    parser.add_argument(
        "--threads", type=_count, default=cores_there(), metavar="N", help="CPU cores (all)"
    )
    parser.add_argument(
        "--gpus", type=_count, default=1, metavar="N", help="GPUs, if available (%(default)s)"
    )
    if stage in ("cache", "distil"):
        _add_caching(parser)
    if stage in ("train", "distil"):
        parser.add_argument(
            "--checkpoint-seconds",
            type=_count,
            metavar="S",
            help="seconds between two saves of the training state (params.yaml)",
        )
    parser.set_defaults(run=_stage)


def _add_caching(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is cached of a teacher; they do not change results."""
    parser.add_argument(
        "--keep",
        choices=("auto", "always", "never"),
        help="whether to cache the teacher's logits for training; auto: if that saves time",
    )
    parser.add_argument(
        "--passes",
        type=_count,
        metavar="N",
        help="passes over the training images that would use the cache, in all runs together",
    )
    parser.add_argument(
        "--budget-mib",
        type=_count,
        metavar="MIB",
        help="largest size of a cache file (params.yaml)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; it should be a whole number")
    return int(text)


def _names(stage: str) -> set[str]:
    """The names that distinguish a stage's jobs."""
    return {name for rule in graph.rules_of(stage) for name in graph.names_of(rule)}


def _stage(given: argparse.Namespace) -> None:
    call = _by_file(given) if given.settings else _by_name(given)
    inputs = Files(call.inputs, "--inputs")
    _check_inputs(inputs, call.lists)
    final = Files(call.outputs, "--outputs")
    check_places(final.values())
    text = json.dumps(call.settings.as_json(), sort_keys=True)
    read = {**inputs, **call.lists}
    stage = graph.stage_of(call.rule)
    with remembered(call.rule, json.loads(text), call.code, read, final) as known:
        if known:
            return
        with all_or_none(final) as drafts:
            job = Job(
                settings=call.settings,
                inputs=inputs,
                outputs=Files(drafts, "--outputs"),
                final=final,
                lists=call.lists,
                threads=max(1, min(given.threads, cores_there())),
                gpus=given.gpus,
                **call.hints | _given_hints(given),
            )
            import_module(f"kdsteps.stages.{stage}").run(job)
            if "digest" in drafts:
                write_digests(drafts, final)


@dataclass(frozen=True)
class _Call:
    """A job as the command line describes it; `hints` change no result."""

    rule: str
    settings: JobSettings
    inputs: dict[str, Path]
    lists: dict[str, list[Path]]
    outputs: dict[str, Path]
    code: str | None
    hints: dict[str, Any]


def _by_file(given: argparse.Namespace) -> _Call:
    inputs = _paths(given.inputs, "--inputs")
    outputs = {name: paths[0] for name, paths in _paths(given.outputs, "--outputs").items()}
    rules = graph.rules_of(given.command)
    rule = next((r for r in rules if outputs.keys() <= graph.OUTPUTS[r].keys()), given.command)
    try:
        settings = parse(SETTINGS[rule], json.loads(given.settings), "--settings")
    except json.JSONDecodeError as error:
        raise KdstepsError(f"--settings: is not JSON ({error}); quote it for the shell") from error
    if isinstance(settings, ReportSettings) and not inputs:
        inputs = _inputs(graph.node(parse_study(settings.study), "report", {}))
    lists = {name: paths for name, paths in inputs.items() if name in graph.LISTS}
    single = {name: paths[0] for name, paths in inputs.items() if name not in lists}
    return _Call(rule, settings, single, lists, outputs, given.code, {})


def _inputs(node: graph.JobNode) -> dict[str, list[Path]]:
    """The files a job reads, each name with a list."""
    return {
        name: [Path(path) for path in ([given] if isinstance(given, str) else given)]
        for name, given in node.inputs.items()
    }


def _given_hints(given: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(given, name, None) for name in HINTS}
    return {name: value for name, value in found.items() if value is not None}


def _by_name(given: argparse.Namespace) -> _Call:
    study = load_study(given.params)
    rule = given.command
    names = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    if rule == "evaluate" and "pair" not in names:
        rule = "evaluate_teacher"
    if rule == "evaluate" and set(names) == {"pair"}:
        rule = "evaluate_latency"
    if rule == "cache" and "views" in names:
        rule = "cache_outputs"
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
    node = graph.node(study, rule, names)
    inputs = _inputs(node)
    lists = {name: paths for name, paths in inputs.items() if name in graph.LISTS}
    read = {name: paths[0] for name, paths in inputs.items() if name not in lists}
    for name in {"ticket", "check"} & read.keys():
        if not read[name].is_file():
            del read[name]  # a job started by hand works without cached logits and checks
    return _Call(
        rule=rule,
        settings=node.settings,
        inputs=read,
        lists=lists,
        outputs={name: Path(path) for name, path in graph.outputs(rule, names).items()},
        code=code_identity.code(study, rule, names),
        hints=node.hints,
    )


def _paths(given: Sequence[str], option: str) -> dict[str, list[Path]]:
    """The paths of NAME=PATH arguments, by name."""
    found: dict[str, list[Path]] = {}
    for argument in given:
        name, equals, path = argument.partition("=")
        if not equals:
            raise KdstepsError(f"{option}: {argument!r} should read NAME=PATH")
        found.setdefault(name, []).append(Path(path))
    return found


def _check_inputs(inputs: Mapping[str, Path], lists: Mapping[str, list[Path]]) -> None:
    for name, paths in {**{name: [path] for name, path in inputs.items()}, **lists}.items():
        for path in paths:
            if not path.is_file():
                raise KdstepsError(
                    f"{path}: not found (input {name!r}); run the stage that writes it, or the "
                    "whole study with snakemake"
                )


def _docstring(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""


if __name__ == "__main__":
    sys.exit(main())
