"""A full disk below `.snakemake` is one sentence, before a run and during it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _disks import small_disk

from kdsteps.errors import KdstepsError
from kdsteps.jobs import snakemake_space
from kdsteps.jobs.snakemake_space import check_space

SENTENCE = ".snakemake: the disk is full; free some space and run again (finished results are safe)"
FILL = "dd if=/dev/zero of=.snakemake/fill bs=4096 2>/dev/null || true"
WORKFLOW = f"""
import subprocess
from kdsteps.jobs.snakemake_space import check_space

check_space()
if config:
    subprocess.run("{FILL}", shell=True)

rule result:
    output: "result.txt"
    shell: "touch result.txt; {FILL}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A workflow whose `.snakemake` is on a disk of 4 MiB."""
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    with small_disk(tmp_path / ".snakemake", "4m"):
        yield tmp_path


def test_a_run_does_not_begin_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(".snakemake").mkdir()
    monkeypatch.setattr(logging, "raiseExceptions", True)  # restored afterwards
    monkeypatch.setattr(snakemake_space, "SPACE", 1 << 60)
    with pytest.raises(KdstepsError, match=r"\.snakemake: the disk is full .*free some space"):
        check_space()
    monkeypatch.setattr(snakemake_space, "SPACE", 0)
    check_space()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while planning", "during a job"])
def test_a_disk_that_fills_up_during_a_run_is_one_sentence(folder: Path, moment: str):
    config = ["--config", "fill=1"] if moment == "while planning" else []
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *config]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 1
    assert SENTENCE in ran.stderr
    assert "Traceback" not in ran.stderr
