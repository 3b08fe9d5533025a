"""`kdsteps verify --make`, which DVC runs: results are made only where they do not match."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from _commands import DATA, command, write_study

MAKE = f"touch made && {shlex.quote(sys.executable)} -m kdsteps prepare {shlex.join(DATA)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_study(tmp_path, methods={"labels": {}})
    return tmp_path


def test_results_that_match_are_not_made_again(folder: Path):
    assert command(folder, "prepare", *DATA).returncode == 0
    done = command(folder, "verify", "prepare", "--make", MAKE)
    assert (done.returncode, done.stdout) == (0, "prepare: 1 job matches params.yaml\n")
    assert not (folder / "made").exists()


def test_what_is_missing_or_of_other_values_is_made_and_checked(folder: Path):
    for change in ("missing", "incomplete", "of other values"):
        if change == "incomplete":
            (folder / "results/prepare/digits/images.npy").unlink()
        if change == "of other values":
            write_study(folder, methods={"labels": {}}, prepare={"seed": 1})
        done = command(folder, "verify", "prepare", "--make", MAKE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("prepare: 1 job matches params.yaml\n")
        (folder / "made").unlink()


def test_a_command_that_fails_ends_with_its_status_and_what_it_made_is_checked(folder: Path):
    done = command(folder, "verify", "prepare", "--make", "exit 7")
    assert (done.returncode, done.stdout) == (7, "")
    done = command(folder, "verify", "prepare", "--make", "true")
    assert done.returncode == 2
    assert "images.npy: not found; run snakemake first" in done.stderr


def test_a_study_with_a_mistake_makes_nothing(folder: Path):
    write_study(folder, seeds=[-1])
    done = command(folder, "verify", "prepare", "--make", MAKE)
    assert done.returncode == 2
    assert "params.yaml: seeds[0] is -1" in done.stderr
    assert not (folder / "made").exists()


def test_options_of_the_command_may_be_quoted(folder: Path):
    made = "printf '%s\\n' --config 'a=b c' > made; exit 3"
    assert command(folder, "verify", "prepare", "--make", made).returncode == 3
    assert (folder / "made").read_text() == "--config\na=b c\n"
