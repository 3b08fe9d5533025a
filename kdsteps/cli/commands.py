"""All commands of `kdsteps`, and the modules that add them, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from itertools import chain
from typing import Any

from kdsteps.jobs.outputs import STAGES

_MODULES = {
    "init": ("init", "lock"),
    "check": ("check",),
    "status": ("status",),
    "stages": STAGES,
    "upgrade": ("stale", "accept"),
    "job_cache": ("jobcache",),
    "layers": ("layers",),
    "options": ("options",),
    "verify": ("verify",),
    "resolve": ("resolve",),
    "schema": ("schema",),
    "predict": ("predict",),
}
COMMANDS = tuple(chain.from_iterable(_MODULES.values()))


def add_commands(commands: Any, named: str | None = None) -> None:
    """Add the command that is named, or all of them if none of these is.

    `predict` needs less than the others, and every job would wait for modules of other commands.

    Args:
        commands: The subparsers of `kdsteps`.
        named: The first argument of the command line, if it has any.
    """
    for module, names in _MODULES.items():
        if named in names or named not in COMMANDS:
            import_module(f"kdsteps.cli.{module}").add_commands(commands)
