"""The command `kdsteps`: one subcommand per stage, and some to inspect and manage results."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kdsteps.cli.commands import COMMANDS, add_commands
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.atomic import DISK_FULL
from kdsteps.places import installed_version

_interrupted = False

SUMMARY = "Distill a large network into a small one, stage by stage, as params.yaml describes."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a mistake that the user can fix ends in one sentence and status 2.

    Any other error is a bug in kdsteps and keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser(next(iter(arguments), None)).parse_args(arguments)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `kdsteps.__main__`
        signal.signal(signal.SIGINT, _interrupt)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        given.run(given)
        sys.stdout.flush()
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
    except (Exception, KeyboardInterrupt) as error:
        # torch, for one, swallows an interrupt while it imports numpy, which then fails later
        if _interrupted or isinstance(error, KeyboardInterrupt):
            print(f"kdsteps {given.command}: stopped", file=sys.stderr)
            return 130
        if not isinstance(error, ModuleNotFoundError) or not _is_imported_by_kdsteps(error):
            raise
        print(
            f"kdsteps {given.command}: {error.name} is not installed; run `pip install kdsteps`",
            file=sys.stderr,
        )
        return 2
    return 0


def _is_imported_by_kdsteps(error: ModuleNotFoundError) -> bool:
    """Whether kdsteps itself imports what is missing, and not the user's code or a library."""
    *_, importer = traceback.extract_tb(error.__traceback__)
    ours = Path(importer.filename).is_relative_to(Path(__file__).parent.parent)
    return ours and not (error.name or "kdsteps").startswith("kdsteps")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


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

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        """As in the base class, but a command refuses what it does not know itself.

        The message then names the command and its help.
        """
        found, unknown = super().parse_known_args(*given, **options)
        if unknown:
            first = str(unknown[0])
            kind = "there is no option" if first.startswith("-") else "unexpected argument"
            self.error(f"{kind} {first}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument command: invalid choice: '(.*?)' ", message):
            hint = nearest(unknown[1], COMMANDS)
            self.exit(2, f"{self.prog}: there is no command {unknown[1]!r}{hint}\n")
        message = re.sub("^the following arguments are required: ", "missing: ", message)
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of the command that the first argument names, or of all commands."""
    parser = _Parser(prog="kdsteps", description=SUMMARY)
    parser.add_argument("--version", action="version", version=f"kdsteps {installed_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    try:
        add_commands(commands, named)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kdsteps"):
            raise
        parser.exit(
            2,
            f"kdsteps: {error.name} is not installed, and every command but `predict` needs "
            "it; run `pip install kdsteps`\n",
        )
    return parser
