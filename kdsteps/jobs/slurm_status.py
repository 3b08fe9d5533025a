"""How often a run looks at its jobs on Slurm."""

from __future__ import annotations

import sys
from typing import Any


def look_regularly() -> None:
    """Let Snakemake's plugin for Slurm look at jobs as often as its option says from the start.

    Without this, it waits ten seconds longer each time while no job finishes, up to three minutes,
    and a canceled job is noticed late. The option is `slurm-init-seconds-before-status-checks`; a
    look is one call of `squeue`, however many jobs there are.
    """
    plugin = sys.modules.get("snakemake_executor_plugin_slurm")
    executor: Any = getattr(plugin, "Executor", None)
    seconds = getattr(executor, "next_seconds_between_status_checks", None)
    if not isinstance(seconds, property) or seconds.fget is None or seconds.fset is None:
        return  # no Slurm, or another version of the plugin
    set_seconds = seconds.fset

    def set_at_most(self: Any, value: float) -> None:
        settings = self.workflow.executor_settings
        set_seconds(self, min(value, settings.init_seconds_before_status_checks))

    executor.next_seconds_between_status_checks = property(seconds.fget, set_at_most)
