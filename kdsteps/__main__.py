"""The command `kdsteps`: one verb a stage, and a few to look around."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdsteps import fingerprint, grid, parts
from kdsteps.errors import KdstepsError
from kdsteps.memory import remembered
from kdsteps.settings import load_study, model_entry

SUMMARY = "Distil a large network into a small one, stage by stage, as params.yaml describes it."
Asked = tuple[str, dict[str, Any], dict[str, Any], dict[str, str], str | None]
"""A job: its rule, settings, inputs and outputs by name, and the digest of its code."""
NAMES = ("dataset", "teacher", "pair", "method", "seed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a mistake that the user can mend is one sentence and status 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        given.run(given)
    except KdstepsError as error:
        print(f"kdsteps {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kdsteps {given.command}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kdsteps", description=SUMMARY)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for stage in grid.STAGES:
        _add_stage(commands, stage)
    layers = commands.add_parser("layers", help="list the layers of a network: where it can be cut")
    layers.add_argument("model", help="a name under `models` of params.yaml, or FAMILY:NAME")
    layers.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    layers.add_argument("--image", default="3,32,32", metavar="C,H,W", help="shape (%(default)s)")
    layers.add_argument("--classes", type=int, default=10, metavar="K", help="(%(default)s)")
    layers.set_defaults(run=_layers)
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
        by_name.add_argument(f"--{name}", help=argparse.SUPPRESS if name not in _names(stage) else None)
    by_file = parser.add_argument_group("by file, as Snakemake calls it")
    by_file.add_argument("--settings", metavar="JSON", help="exactly what the job reads")
    by_file.add_argument("--inputs", nargs="*", metavar="NAME=PATH", default=[])
    by_file.add_argument("--outputs", nargs="*", metavar="NAME=PATH", default=[])
    by_file.add_argument("--code", metavar="DIGEST", help="of the code behind; without it nothing is remembered")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores (all)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, if there are any (%(default)s)")
    parser.add_argument(
        "--checkpoint-minutes", type=float, help="between two saves to resume from (params.yaml)"
    )
    parser.set_defaults(run=_stage)


def _names(stage: str) -> set[str]:
    """The names that tell a stage's jobs apart."""
    rules = [rule for rule in grid.OUTPUTS if grid.stage_of(rule) == stage]
    paths = [path for rule in rules for path in grid.OUTPUTS[rule].values()]
    return {name for name in NAMES if any(f"{{{name}}}" in path for path in paths)}


def _stage(given: argparse.Namespace) -> None:
    from kdsteps.stages._job import Job

    rule, settings, inputs, outputs, code = _by_file(given) if given.settings else _by_name(given)
    job = Job(
        settings=settings,
        inputs=inputs,
        outputs={name: Path(path) for name, path in outputs.items()},
        threads=max(1, min(given.threads, os.cpu_count() or 1)),
        gpus=given.gpus,
        checkpoint_minutes=given.checkpoint_minutes or 10.0,
    )
    _check_inputs(job.inputs)
    with remembered(grid.stage_of(rule), settings, code, job.inputs, job.outputs) as known:
        if not known:
            import_module(f"kdsteps.stages.{grid.stage_of(rule)}").run(job)


def _by_file(given: argparse.Namespace) -> Asked:
    try:
        settings = json.loads(given.settings)
    except ValueError as error:
        raise KdstepsError(f"--settings: is not JSON ({error})") from error
    inputs = _paths(given.inputs, "--inputs")
    if given.command == "report" and not inputs:
        from kdsteps.settings import parse_study

        inputs = grid.inputs(parse_study(settings["study"]), "report", {})
    return given.command, settings, inputs, _paths(given.outputs, "--outputs"), given.code


def _by_name(given: argparse.Namespace) -> Asked:
    study = load_study(given.params)
    rule = given.command
    names = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    if rule == "evaluate" and "pair" not in names:
        rule = "evaluate_teacher"
    wanted = [name for name in NAMES if f"{{{name}}}" in "".join(grid.OUTPUTS[rule].values())]
    missing = [f"--{name}" for name in wanted if name not in names]
    if missing:
        raise KdstepsError(f"{' and '.join(missing)} missing; say which {rule} job is meant")
    names = {name: names[name] for name in wanted}
    grid.check_names(study, rule, names)
    settings = json.loads(grid.settings_text(study, rule, names))
    code = fingerprint.code(study, rule, names)
    return rule, settings, grid.inputs(study, rule, names), grid.outputs(rule, names), code


def _layers(given: argparse.Namespace) -> None:
    """Print the layers of a network: of a model in params.yaml, or of FAMILY:NAME."""
    from kdsteps.models import build_model
    from kdsteps.models._listing import list_layers, render

    family, colon, name = given.model.partition(":")
    if colon:
        entry: dict[str, Any] = {"family": family, "options": {"name": name} if name else {}}
    else:
        study = load_study(given.params)
        if family not in study.models:
            raise KdstepsError(f"{family!r} is not under models{parts.nearest(family, study.models)}")
        entry = dict(zip(("family", "options"), model_entry(study.models[family]), strict=True))
    channels, height, width = _image_shape(given.image)
    chain = build_model(
        entry["family"],
        num_classes=given.classes,
        in_channels=channels,
        image_size=height,
        **entry["options"],
    )
    print(render(chain, list_layers(chain, (channels, height, width))))


def _image_shape(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdigit() for number in numbers):
        raise KdstepsError(f"--image: {text!r} should read C,H,W, such as 3,32,32")
    channels, height, width = map(int, numbers)
    return channels, height, width


def _paths(given: Sequence[str], option: str) -> dict[str, Any]:
    """NAME=PATH arguments by name; a name that comes again makes a list."""
    found: dict[str, Any] = {}
    for argument in given:
        name, equals, path = argument.partition("=")
        if not equals:
            raise KdstepsError(f"{option}: {argument!r} should read NAME=PATH")
        there = found.get(name)
        found[name] = path if there is None else [*(there if isinstance(there, list) else [there]), path]
    return found


def _check_inputs(inputs: dict[str, Any]) -> None:
    for name, paths in inputs.items():
        for path in paths if isinstance(paths, list) else [paths]:
            if not Path(path).exists():
                raise KdstepsError(
                    f"{path}: is not there, and is read as {name!r}; run the stage that writes it, "
                    "or the whole study with snakemake"
                )


def _docstring(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""


if __name__ == "__main__":
    sys.exit(main())
