"""Mistakes in params.yaml: refused in one sentence with status 2 within seconds, or valid.

Each is tried by `kdsteps resolve` in this process, which reads the study and describes every job.
A tenth of them is also tried by a real `snakemake --dry-run`, which has to agree.
"""

from __future__ import annotations

import contextlib
import io
import random
import signal
import time
from pathlib import Path
from typing import Any

from damage import inside
from mutations import mutations
from outcomes import Failed, Outcomes
from studies import PARAMS, Folder, last_line

from kdsteps.cli.main import main

SECONDS = 10  # a refusal takes at most, on a busy machine


def bad_params(
    reference: Folder, workplace: Path, outcomes: Outcomes, rng: random.Random, count: int
) -> None:
    """Try `count` files."""
    study = reference.copy(workplace / "params")
    found: dict[int, list[tuple[str, bytes]]] = {0: [], 2: []}
    for name, content in mutations(PARAMS, rng, count):
        with outcomes.trial("params.yaml: kdsteps resolve", name), inside(study.path):
            Path("params.yaml").write_bytes(content)
            status = _resolve()
            found[status].append((name, content))
    sample = [(status, *each) for status, tried in found.items() for each in tried]
    for status, name, content in rng.sample(sample, min(len(sample), max(1, count // 10))):
        with outcomes.trial("params.yaml: snakemake -n", name):
            (study.path / "params.yaml").write_bytes(content)
            _dry_run(study, status)


def _resolve() -> int:
    """The exit status of `kdsteps resolve`: 0 or 2."""
    printed, started = io.StringIO(), time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(6 * SECONDS)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            status = main(["resolve", "scratch"])
    finally:
        signal.alarm(0)
    said = printed.getvalue()
    if status not in (0, 2):
        raise Failed(f"status {status}: {last_line(said)}")
    if status == 2 and (said.count("\n") != 1 or len(said) > 1000):
        raise Failed(f"this is not one sentence: {said[:1200]!r}")
    if status == 2 and (took := time.monotonic() - started) > SECONDS:
        raise Failed(f"refused after {took:.0f} s")
    return status


def _too_long(*_: Any) -> None:
    raise Failed(f"takes longer than {6 * SECONDS} s")


def _dry_run(study: Folder, status: int) -> None:
    found, said = study.attempt(["snakemake", "--dry-run", "--cores", "2"])
    if "Traceback" in said or found != status:
        raise Failed(f"resolve ends with {status}, snakemake with {found}: {last_line(said)[:500]}")
