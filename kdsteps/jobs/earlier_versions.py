"""What earlier versions wrote differently: settings in other terms, files in another form.

Only `kdsteps stale` and `kdsteps accept` use this: what a job is made with is never translated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdsteps.jobs.settings import INPUTS

Section = Mapping[str, Any]

NO_LONGER_RECORDED: dict[str, Callable[[Section], bool]] = {
    # Since 9ae8822 a job's settings have only what its own recipe reads.
    "milestones": lambda recorded: recorded.get("schedule") != "steps",
    "decay": lambda recorded: recorded.get("schedule") != "steps",
    "momentum": lambda recorded: recorded.get("optimizer") != "sgd",
    "nesterov": lambda recorded: recorded.get("optimizer") != "sgd",
    # Latency is measured by a separate job.
    "latency_runs": lambda recorded: True,
}
"""Keys that an earlier version recorded, and where they decided nothing."""


def as_today(recorded: Any, wanted: Any) -> Any:
    """Recorded settings in today's terms; they equal `wanted` if they mean the same.

    Args:
        recorded: The settings, or a section of them, as an earlier version wrote them.
        wanted: The same as today's version writes them.
    """
    if not (isinstance(recorded, dict) and isinstance(wanted, dict)):
        return recorded
    found = {
        key: as_today(value, wanted.get(key))
        for key, value in recorded.items()
        if key in wanted or not _decided_nothing(key, recorded)
    }
    for key, value in wanted.items():  # options that came later and are not set, and digests
        if key not in recorded and (value is None or key in INPUTS):
            found[key] = value
    if _same_milestones(recorded, wanted):
        found["milestones"] = wanted["milestones"]
    if _same_warm_up(recorded, wanted):
        options = dict(found["options"])
        del options["warmup_epochs"]
        found["options"] = options | {"warmup": wanted["options"]["warmup"]}
    return found


def is_outdated(rule: str, files: Iterable[str]) -> bool:
    """Whether a result is in a form that today's code does not read.

    Plans of 9ae8822 named the shapes of features differently.
    """
    return rule == "build" and any("student_features" not in Path(f).read_text() for f in files)


def _decided_nothing(key: str, recorded: Section) -> bool:
    return key in NO_LONGER_RECORDED and NO_LONGER_RECORDED[key](recorded)


def _same_milestones(recorded: Section, wanted: Section) -> bool:
    """Whether milestones in epochs (9ae8822) are those in fractions of the run (since then)."""
    before, now = recorded.get("milestones"), wanted.get("milestones")
    if not before or not now or recorded.get("epochs") != wanted.get("epochs"):
        return False
    if recorded.get("schedule") == wanted.get("schedule") != "steps":
        return True
    return len(before) == len(now) and all(
        _same_time(epochs, at, wanted["epochs"]) for epochs, at in zip(before, now, strict=True)
    )


def _same_warm_up(recorded: Section, wanted: Section) -> bool:
    """Whether a method's warm-up in epochs (9ae8822) is that in a fraction of the run."""
    before, now = recorded.get("options"), wanted.get("options")
    if not isinstance(before, dict) or not isinstance(now, dict) or "distil" not in wanted:
        return False
    if "warmup_epochs" not in before or "warmup" not in now:
        return False
    return _same_time(before["warmup_epochs"], now["warmup"], wanted["distil"]["epochs"])


def _same_time(epochs: float, at: float, run: int) -> bool:
    """Whether a number of epochs is the time `at`, a fraction of the run or a number of epochs."""
    return abs(epochs - (at * run if at < 1 else at)) < 1e-6
