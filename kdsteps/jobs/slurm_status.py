"""How often a run looks at its jobs on Slurm."""

from __future__ import annotations

import sys
from typing import Any

LONGEST = 45.0  # seconds between two looks, so that a canceled job is noticed within a minute


def look_often(longest: float = LONGEST) -> None:
    """Let Snakemake's plugin for Slurm ask for the state of all jobs at least this often.

    While no job finishes, it waits ten seconds longer each time, up to three minutes, and has no
    option for that. One question is one call of `squeue`, however many jobs there are.
    """
    plugin = sys.modules.get("snakemake_executor_plugin_slurm")
    executor: Any = getattr(plugin, "Executor", None)
    seconds = getattr(executor, "next_seconds_between_status_checks", None)
    if not isinstance(seconds, property) or seconds.fget is None or seconds.fset is None:
        return  # another version of the plugin
    set_seconds = seconds.fset

    def set_at_most(self: Any, value: float) -> None:
        set_seconds(self, min(value, longest))

    executor.next_seconds_between_status_checks = property(seconds.fget, set_at_most)
