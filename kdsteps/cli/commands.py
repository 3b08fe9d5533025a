"""All commands of `kdsteps`; the dependencies of a study have to be installed."""

from __future__ import annotations

from typing import Any

from kdsteps.cli import check, init, job_cache, options, status, upgrade
from kdsteps.cli.layers import show_layers
from kdsteps.cli.resolve import FOLDER, resolve
from kdsteps.cli.schema import show_schema
from kdsteps.cli.stages import add_stage
from kdsteps.cli.verify import check_stages
from kdsteps.cli.whole_numbers import count
from kdsteps.jobs import graph

COMMANDS = (
    *("init", "check", "status", *graph.STAGES, "stale", "accept", "lock", "jobcache"),
    *("layers", "options", "verify", "resolve", "schema", "predict"),
)


def add_commands(commands: Any) -> None:
    """Add every command but `predict`, which needs less and is added before these."""
    init.add_commands(commands)
    check.add_command(commands)
    status.add_command(commands)
    for stage in graph.STAGES:
        add_stage(commands, stage)
    upgrade.add_commands(commands)
    job_cache.add_command(commands)
    layers = commands.add_parser(
        "layers",
        help="list the layers at which a network can be cut",
        description="Build a network and list the layers at which it can be cut, with the shape "
        "of each. These names can be used in params.yaml.",
    )
    layers.add_argument(
        "model",
        help="a name under `models` in params.yaml, FAMILY:NAME such as timm:resnet18, or your own "
        "./file.py:Name",
    )
    layers.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    layers.add_argument(
        "--image",
        metavar="C,H,W",
        help="image shape (default: that of the study's images, or 3,32,32 where it is not known)",
    )
    layers.add_argument(
        "--classes", type=count, default=10, metavar="K", help="number of classes (%(default)s)"
    )
    layers.set_defaults(run=show_layers)
    options.add_command(commands)
    verify = commands.add_parser(
        "verify",
        help="check that the results of stages match params.yaml (run by `dvc repro`)",
        description="Check that the results of stages are complete, undamaged and made with the "
        "settings of params.yaml. `dvc repro` runs this before it records results.",
    )
    verify.add_argument(
        "stages", nargs="+", choices=graph.STAGES, metavar="stage", help="such as train"
    )
    verify.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    verify.set_defaults(run=check_stages)
    described = commands.add_parser(
        "resolve",
        help="write the settings of every job to files (run by `dvc repro`)",
        description="Write the settings of every job, with all defaults, to one file per stage. "
        "`dvc repro` compares these files to find the stages that are stale.",
    )
    described.add_argument(
        "folder", nargs="?", default=FOLDER, help="the folder to write to (%(default)s)"
    )
    described.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    described.set_defaults(run=resolve)
    schema = commands.add_parser(
        "schema",
        help="print the JSON schema of params.yaml, for editors",
        description="Print the JSON schema of params.yaml: every key, and the options of every "
        "method, model family and kind of data, with types, defaults and descriptions.",
    )
    schema.set_defaults(run=show_schema)
