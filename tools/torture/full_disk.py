"""A full disk below each of the five places that runs write to, on a small file system in memory.

A run of a study whose last jobs have to run again ends with one sentence, and running again with
space heals the study.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outcomes import Failed, Outcomes
from studies import RUN, Folder, heal, last_line, problems

PLACES = (".snakemake", "tmp", "results", ".jobcache", ".kdsteps")
_AGAIN = ("results/distil/pair/kd", "results/evaluate/students/pair/kd", "results/report")
_MIB = 64  # of the file system


def full_disk(
    reference: Folder, workplace: Path, outcomes: Outcomes, rng: random.Random, count: int
) -> None:
    """Try up to `count` places."""
    for place in PLACES[:count]:
        study = reference.copy(workplace / f"disk-{place}")
        (study.path / place).mkdir(exist_ok=True)
        for path in (*_AGAIN, ".jobcache", ".kdsteps/outputs"):
            shutil.rmtree(study.path / path, ignore_errors=True)
        (study.path / ".jobcache").mkdir()
        if place == ".kdsteps":
            for name in ("parts.json", "code.json"):
                (study.path / ".kdsteps" / name).unlink()
        try:
            with _small(study.path / place) as fill:
                _trial(study, reference, place, fill, outcomes, rng)
        except PermissionError as error:
            outcomes.skip("full disk", str(error))
            return


def _trial(
    study: Folder, reference: Folder, place: str, fill: Path, outcomes: Outcomes, rng: random.Random
) -> None:
    environment = {"TMPDIR": str(study.path / "tmp")} if place == "tmp" else {}
    _fill(fill)
    with outcomes.trial("full disk", place):
        status, said = study.attempt(list(RUN), **environment)
        fill.unlink()
        if "Traceback" in said:
            raise Failed(f"traceback: {last_line(said)}")
        if status == 0 and place not in (".jobcache", ".kdsteps", "tmp"):
            raise Failed("the run succeeds")
        if status and not ("is full" in said or "no space" in said.lower()):
            raise Failed(f"nothing says that the disk is full: {last_line(said)}")
        if wrong := heal(study)[0] or problems(study, reference):
            raise Failed("; ".join(wrong))


@contextmanager
def _small(folder: Path) -> Iterator[Path]:
    """Put a folder on a small file system; yields where a file may fill it."""
    aside = folder.with_name(f"{folder.name}-aside")
    os.rename(folder, aside)
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_MIB}m", "torture", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"a file system cannot be mounted ({last_line(done.stderr)})")
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        yield folder / "fill"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    """Write zeros until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
    except OSError:
        pass
