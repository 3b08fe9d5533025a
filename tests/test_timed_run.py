"""A study on a machine that is lent for minutes at a time: run in pieces, packed and unpacked."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _commands import REPOSITORY, write_study

pytestmark = pytest.mark.slow


def timed_run(command: str, study: Path, *options: str) -> str:
    """The output of a command of the tool."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools/timed_run.py", command, study, *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_study_goes_on_elsewhere_after_its_time_is_over(tmp_path):
    here = write_study(tmp_path / "here", methods={"labels": {}}, seeds=[0]).parent
    there = write_study(tmp_path / "there", methods={"labels": {}}, seeds=[0]).parent
    all_jobs = timed_run("missing", here).splitlines()
    assert {"prepare digits", "distil pair labels 0", "evaluate pair labels 0"} <= set(all_jobs)
    assert all_jobs[-1] == "evaluate_latency pair"  # alone, so it must not hold up others

    assert "jobs are left" in timed_run("run", here, "--minutes", "0", "--at-once", "2")
    assert timed_run("missing", here).splitlines() == all_jobs
    finished = timed_run("run", here, "--at-once", "2")
    assert "FAILED" not in finished
    assert finished.strip().endswith("0 jobs are left")
    assert timed_run("missing", here) == ""

    timed_run("pack", here, "--into", str(tmp_path / "parts"))
    timed_run("unpack", there, "--from", str(tmp_path / "parts"))
    assert timed_run("missing", there).splitlines() == ["prepare digits"]  # not packed: quick
    student = "results/distil/pair/labels/0/history.parquet"
    assert (there / student).read_bytes() == (here / student).read_bytes()
    assert "FAILED" not in timed_run("run", there, "--at-once", "2")
    assert timed_run("missing", there) == ""


def test_some_students_run_first_and_a_stopped_run_stops_its_jobs(tmp_path):
    study = write_study(
        tmp_path,
        methods={"labels": {}, "sp": {}},
        train={"epochs": 1, "teacher_check": "warn"},
        distil={"epochs": 5000},
    ).parent
    command = ["tools/timed_run.py", "run", str(study), "--only", "sp 1", "--at-once", "2"]
    running = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    log = study / "logs/distil-pair-sp-1.txt"
    while "epoch 1 of" not in (log.read_text() if log.exists() else ""):
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGTERM)  # as `timeout` does
    said, _ = running.communicate(timeout=60)
    assert [line.partition(" ")[2] for line in said.splitlines() if "distil" in line] == [
        "started: distil pair sp 1"
    ]
    assert "jobs are left" in said
    assert "stopped by SIGTERM" in log.read_text()


def test_what_does_not_fit_into_the_parts_is_named(tmp_path):
    study = write_study(tmp_path, methods={"kd": {}}, seeds=[0]).parent
    (study / "results/train/digits/big").mkdir(parents=True)
    (study / "results/train/digits/big/teacher.safetensors").write_bytes(bytes(3 * 2**20))
    said = timed_run("pack", study, "--into", str(tmp_path / "parts"), "--mib", "2")
    assert "no room: results/train/digits/big/teacher.safetensors" in said
