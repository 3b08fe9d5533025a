"""How often Snakemake's plugin for Slurm looks at jobs, with a stand-in for the plugin."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from kdsteps.jobs.slurm_status import look_regularly

PLUGIN = "snakemake_executor_plugin_slurm"


class Remote:
    """As in Snakemake: the seconds until the next look are a property of the base class."""

    seconds = 10.0

    @property
    def next_seconds_between_status_checks(self) -> float:
        return self.seconds

    @next_seconds_between_status_checks.setter
    def next_seconds_between_status_checks(self, value: float) -> None:
        self.seconds = value


def test_the_wait_grows_no_longer_than_the_first_one(monkeypatch: pytest.MonkeyPatch):
    class Executor(Remote):
        workflow = SimpleNamespace(
            executor_settings=SimpleNamespace(init_seconds_before_status_checks=20)
        )

    plugin = ModuleType(PLUGIN)
    plugin.Executor = Executor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PLUGIN, plugin)
    look_regularly()
    executor = Executor()
    for wanted, expected in ((180, 20), (5, 5)):
        executor.next_seconds_between_status_checks = wanted
        assert executor.next_seconds_between_status_checks == expected


@pytest.mark.parametrize("plugin", [None, ModuleType(PLUGIN)])
def test_without_the_plugin_nothing_happens(monkeypatch: pytest.MonkeyPatch, plugin: object):
    monkeypatch.setitem(sys.modules, PLUGIN, plugin)
    look_regularly()
