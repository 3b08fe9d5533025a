"""The command `kdsteps`: one verb a stage, and a few to look around."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from kdsteps.cli import inspect
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.atomic import DISK_FULL, check_places, together
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.resources import cores_there
from kdsteps.study.settings import load_study, parse_study

SUMMARY = "Distil a large network into a small one, stage by stage, as params.yaml describes it."
Asked = tuple[str, dict[str, Any], dict[str, Any], dict[str, str], str | None, dict[str, Any]]
"""A job: its rule, settings, inputs and outputs by name, the digest of its code, and its hints."""
COMMANDS = (*graph.STAGES, "layers", "schema")
NAMES = ("dataset", "teacher", "views", "pair", "method", "seed")
HINTS = ("keep", "passes", "budget_mib", "checkpoint_seconds")  # what no result rests on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a mistake that the user can mend is one sentence and status 2.

    Anything else that goes wrong is a mistake of ours and keeps its traceback.
    """
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        given.run(given)
    except KdstepsError as error:
        print(f"kdsteps {given.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(
            f"kdsteps {given.command}: the disk is full; free some space and run again, finished "
            "results are kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"kdsteps {given.command}: stopped", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument command: invalid choice: '(.*?)' ", message):
            hint = nearest(unknown[1], COMMANDS)
            self.exit(2, f"{self.prog}: there is no command {unknown[1]!r}{hint}\n")
        message = re.sub("^the following arguments are required: ", "missing: ", message)
        message = re.sub("^unrecognized arguments: ", "there is no option ", message)
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` tells what there is\n")


class _Given(dict[str, Any]):
    """What came with an option, by name; a name that is asked for in vain is told to the user."""

    def __init__(self, content: Mapping[str, Any], option: str) -> None:
        super().__init__(content)
        self._option = option

    def __missing__(self, name: str) -> NoReturn:
        raise KdstepsError(
            f"{self._option}: {name!r} is missing; `--help` tells what the stage reads and writes"
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kdsteps", description=SUMMARY)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for stage in graph.STAGES:
        _add_stage(commands, stage)
    layers = commands.add_parser("layers", help="list the layers of a network: where it can be cut")
    layers.add_argument("model", help="a name under `models` of params.yaml, or FAMILY:NAME")
    layers.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    layers.add_argument("--image", default="3,32,32", metavar="C,H,W", help="shape (%(default)s)")
    layers.add_argument("--classes", type=_count, default=10, metavar="K", help="(%(default)s)")
    layers.set_defaults(run=inspect.show_layers)
    schema = commands.add_parser("schema", help="print the JSON schema of params.yaml, for editors")
    schema.set_defaults(run=inspect.show_schema)
    return parser


def _add_stage(commands: Any, stage: str) -> None:
    """A stage's command; its help is the docstring of its module, which is not imported for it."""
    text = _docstring(f"kdsteps.stages.{stage}")
    parser = commands.add_parser(
        stage,
        help=text.splitlines()[0].rstrip("."),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_name = parser.add_argument_group("by name, with settings and files as params.yaml has them")
    by_name.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    for name in NAMES:
        by_name.add_argument(
            f"--{name}", help=argparse.SUPPRESS if name not in _names(stage) else None
        )
    by_file = parser.add_argument_group("by file, as Snakemake calls it")
    by_file.add_argument("--settings", metavar="JSON", help="exactly what the job reads")
    by_file.add_argument("--inputs", nargs="*", metavar="NAME=PATH", default=[])
    by_file.add_argument("--outputs", nargs="*", metavar="NAME=PATH", default=[])
    by_file.add_argument(
        "--code", metavar="DIGEST", help="of the code behind; without it nothing is remembered"
    )
    parser.add_argument(
        "--threads", type=_count, default=cores_there(), metavar="N", help="cores (all)"
    )
    parser.add_argument(
        "--gpus", type=_count, default=1, metavar="N", help="GPUs, if there are any (%(default)s)"
    )
    if stage in ("cache", "distil"):
        _add_keeping(parser)
    if stage in ("train", "distil"):
        parser.add_argument(
            "--checkpoint-seconds",
            type=_count,
            metavar="S",
            help="between two saves to resume from (params.yaml)",
        )
    parser.set_defaults(run=_stage)


def _add_keeping(parser: argparse.ArgumentParser) -> None:
    """Options that decide what is kept of a teacher; results are the same either way."""
    parser.add_argument(
        "--keep",
        choices=("auto", "always", "never"),
        help="whether the teacher's answers are kept for training; auto: where that pays",
    )
    parser.add_argument(
        "--passes",
        type=_count,
        metavar="N",
        help="over the training images, in all runs together, that would use them",
    )
    parser.add_argument(
        "--budget-mib", type=_count, metavar="MIB", help="that a file may take (params.yaml)"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}, where a whole number would be right")
    return int(text)


def _names(stage: str) -> set[str]:
    """The names that tell a stage's jobs apart."""
    rules = [rule for rule in graph.OUTPUTS if graph.stage_of(rule) == stage]
    paths = [path for rule in rules for path in graph.OUTPUTS[rule].values()]
    return {name for name in NAMES if any(f"{{{name}}}" in path for path in paths)}


def _stage(given: argparse.Namespace) -> None:
    from kdsteps.jobs.job import Job

    asked = _by_file(given) if given.settings else _by_name(given)
    rule, settings, inputs, outputs, code, hints = asked
    job = Job(
        settings=_Given(settings, "--settings"),
        inputs=_Given(inputs, "--inputs"),
        outputs=_Given({name: Path(path) for name, path in outputs.items()}, "--outputs"),
        threads=max(1, min(given.threads, cores_there())),
        gpus=given.gpus,
        **hints | _given_hints(given),
    )
    _check_inputs(job.inputs)
    check_places(job.outputs.values())
    with remembered(graph.stage_of(rule), settings, code, job.inputs, job.outputs) as known:
        if not known:
            stage = import_module(f"kdsteps.stages.{graph.stage_of(rule)}")
            with together(job.outputs.values()):
                stage.run(job)


def _by_file(given: argparse.Namespace) -> Asked:
    try:
        settings = json.loads(given.settings)
    except ValueError as error:
        raise KdstepsError(f"--settings: is not JSON ({error}); give one `{{...}}`") from error
    if not isinstance(settings, dict):
        raise KdstepsError(f"--settings: is {given.settings[:60]}; one `{{...}}` would be right")
    settings = _Given(settings, "--settings")
    inputs = _paths(given.inputs, "--inputs")
    if given.command == "report" and not inputs:
        inputs = graph.inputs(parse_study(settings["study"]), "report", {})
    return given.command, settings, inputs, _paths(given.outputs, "--outputs"), given.code, {}


def _given_hints(given: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(given, name, None) for name in HINTS}
    return {name: value for name, value in found.items() if value is not None}


def _by_name(given: argparse.Namespace) -> Asked:
    study = load_study(given.params)
    rule = given.command
    names = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    if rule == "evaluate" and "pair" not in names:
        rule = "evaluate_teacher"
    if rule == "evaluate" and set(names) == {"pair"}:
        rule = "evaluate_latency"
    if rule == "cache" and "views" in names:
        rule = "cache_outputs"
    wanted = [name for name in NAMES if f"{{{name}}}" in "".join(graph.OUTPUTS[rule].values())]
    missing = [f"--{name}" for name in wanted if name not in names]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise KdstepsError(f"{' and '.join(missing)} {verb} missing; say which job is meant")
    for name in names:
        if name not in wanted:
            told = " and ".join(f"--{name}" for name in wanted) or "nothing"
            raise KdstepsError(f"--{name}: does not belong there; {told} would tell which job")
    graph.check_names(study, rule, names)
    settings = json.loads(graph.settings_text(study, rule, names))
    timed = rule == "evaluate_latency"  # depends on the machine: never taken from the job cache
    code = None if timed else code_identity.code(study, rule, names)
    inputs = graph.inputs(study, rule, names)
    if rule == "distil" and not Path(inputs.get("ticket", ".")).is_file():
        inputs.pop("ticket", None)  # by hand, a run can do without what was kept for it
    return (
        *(rule, settings, inputs, graph.outputs(rule, names), code),
        graph.hints(study, rule, names),
    )


def _paths(given: Sequence[str], option: str) -> dict[str, Any]:
    """NAME=PATH arguments by name; a name that comes again makes a list."""
    found: dict[str, Any] = {}
    for argument in given:
        name, equals, path = argument.partition("=")
        if not equals:
            raise KdstepsError(f"{option}: {argument!r} should read NAME=PATH")
        there = found.get(name)
        found[name] = (
            path if there is None else [*(there if isinstance(there, list) else [there]), path]
        )
    return found


def _check_inputs(inputs: dict[str, Any]) -> None:
    for name, paths in inputs.items():
        for path in paths if isinstance(paths, list) else [paths]:
            if not Path(path).is_file():
                raise KdstepsError(
                    f"{path}: there is no such file, and it is read as {name!r}; run the stage "
                    "that writes it, or the whole study with snakemake"
                )


def _docstring(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""


if __name__ == "__main__":
    sys.exit(main())
