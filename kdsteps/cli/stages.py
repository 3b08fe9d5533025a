"""The command of every stage and its options; each runs one job."""

from __future__ import annotations

import argparse
import ast
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdsteps.cli.calls import NAMES, call_by_file, call_by_name
from kdsteps.cli.running import run_call
from kdsteps.cli.section_help import section_help
from kdsteps.cli.whole_numbers import count
from kdsteps.jobs import graph
from kdsteps.jobs.gpu_slots import MAX_JOBS_PER_GPU
from kdsteps.jobs.resources import cores_there

HINTS = ("keep", "passes", "budget_mib", "checkpoint_seconds")  # options that change no result


def add_commands(commands: Any) -> None:
    """Add the commands of all stages to those of `kdsteps`."""
    for stage in graph.STAGES:
        _add_stage(commands, stage)


def _add_stage(commands: Any, stage: str) -> None:
    """Add a stage's command; its help is the docstring of its module, read without importing it."""
    text = _docstring(f"kdsteps.stages.{stage}")
    summary = text.splitlines()[0].rstrip(".")
    parser = commands.add_parser(
        stage,
        help=summary[0].lower() + summary[1:],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_name = parser.add_argument_group("by name, with settings and files from params.yaml")
    by_name.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    for name in NAMES:
        shown = NAMES[name] if name in _names(stage) else argparse.SUPPRESS
        by_name.add_argument(f"--{name}", help=shown)
    by_file = parser.add_argument_group("by file, as Snakemake calls it")
    by_file.add_argument("--settings", metavar="JSON", help="the settings that the job depends on")
    by_file.add_argument(
        "--inputs", nargs="*", metavar="NAME=PATH", default=[], help="files to read"
    )
    by_file.add_argument(
        "--outputs", nargs="*", metavar="NAME=PATH", default=[], help="files to write"
    )
    by_file.add_argument(
        "--expect",
        nargs="*",
        metavar="NAME=DIGEST",
        default=[],
        help="digest of the settings and the code of the job that wrote an input, or of your own "
        "code such as ./mine.py:Mine",
    )
    by_file.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the folder of the files, which have the same paths in it as in the study's folder; "
        "images and checkpoints are read from there too (the current folder)",
    )
    by_file.add_argument(
        "--code", metavar="DIGEST", help="digest of the job's code; without it, no job cache"
    )
    parser.add_argument(
        "--threads", type=count, default=cores_there(), metavar="N", help="CPU cores (all)"
    )
    parser.add_argument(
        "--gpus",
        type=count,
        metavar="N",
        help="number of GPUs, 0 for the CPU (if there is a GPU, `gpus` of params.yaml, else 0)",
    )
    parser.add_argument(
        "--jobs-per-gpu",
        type=jobs_per_gpu,
        default=1,
        metavar="N",
        help="jobs that may share a GPU with each other, this one included (%(default)s)",
    )
    if stage in ("cache", "tune", "distil"):
        _add_caching(parser)
    if stage in ("train", "tune", "distil"):
        parser.add_argument(
            "--checkpoint-seconds",
            type=count,
            metavar="S",
            help="seconds between two saves of the training state (params.yaml)",
        )
        by_file.add_argument(
            "--loggers",
            metavar="JSON",
            help="where metrics are logged while the job runs; results do not change",
        )
    parser.more_help = partial(section_help, stage)
    parser.set_defaults(run=_run_given)


def _add_caching(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is cached of a teacher; they do not change results."""
    parser.add_argument(
        "--keep",
        choices=("auto", "always", "never"),
        help="whether to cache the teacher's logits for training; auto: if it saves time",
    )
    parser.add_argument(
        "--passes",
        type=count,
        metavar="N",
        help="passes over the training images that would use the cache, in all runs together",
    )
    parser.add_argument(
        "--budget-mib",
        type=count,
        metavar="MIB",
        help="largest size of a cache file (params.yaml)",
    )


def jobs_per_gpu(text: str) -> int:
    if not 1 <= (given := count(text)) <= MAX_JOBS_PER_GPU:
        raise argparse.ArgumentTypeError(f"is {given}; it should be from 1 to {MAX_JOBS_PER_GPU}")
    return given


def _names(stage: str) -> set[str]:
    """The names that distinguish a stage's jobs."""
    return {name for rule in graph.rules_of(stage) for name in graph.names_of(rule)}


def _run_given(given: argparse.Namespace) -> None:
    call = call_by_file(given) if given.settings else call_by_name(given)
    run_call(call, given.threads, given.gpus, given.jobs_per_gpu, **_given_hints(given))


def _given_hints(given: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(given, name, None) for name in HINTS}
    return {name: value for name, value in found.items() if value is not None}


def _docstring(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
