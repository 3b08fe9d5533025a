"""The command `kdsteps`: one subcommand per stage, and some to inspect and manage results."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from kdsteps.cli import check, init, job_cache, status, upgrade
from kdsteps.cli.layers import show_layers
from kdsteps.cli.resolve import FOLDER, resolve
from kdsteps.cli.schema import show_schema
from kdsteps.cli.stages import add_stage, count
from kdsteps.cli.verify import check_stages
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.atomic import DISK_FULL
from kdsteps.jobs import graph
from kdsteps.places import installed_version

SUMMARY = "Distill a large network into a small one, stage by stage, as params.yaml describes."
COMMANDS = (
    *("init", "check", "status", *graph.STAGES, "stale", "accept", "lock", "jobcache"),
    *("layers", "verify", "resolve", "schema"),
)


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
    """Reports what is wrong with a command line in one sentence, without the usage.

    Attributes:
        more_help: Makes the last part of the help when it is wanted.
    """

    more_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.more_help is not None:
            self.epilog = self.more_help()
        return super().format_help()

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
    parser.add_argument("--version", action="version", version=f"kdsteps {installed_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    init.add_commands(commands)
    check.add_command(commands)
    status.add_command(commands)
    for stage in graph.STAGES:
        add_stage(commands, stage)
    upgrade.add_commands(commands)
    job_cache.add_command(commands)
    layers = commands.add_parser("layers", help="list the layers at which a network can be cut")
    layers.add_argument("model", help="a name under `models` in params.yaml, or FAMILY:NAME")
    layers.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    layers.add_argument(
        "--image", default="3,32,32", metavar="C,H,W", help="image shape (%(default)s)"
    )
    layers.add_argument(
        "--classes", type=count, default=10, metavar="K", help="number of classes (%(default)s)"
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
    described.add_argument("folder", nargs="?", default=FOLDER, help="where to write (%(default)s)")
    described.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    described.set_defaults(run=resolve)
    schema = commands.add_parser("schema", help="print the JSON schema of params.yaml, for editors")
    schema.set_defaults(run=show_schema)
    return parser


if __name__ == "__main__":
    sys.exit(main())
