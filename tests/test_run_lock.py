"""One run at a time in a folder, and jobs that end with their run."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import TINY

from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.errors import KdstepsError
from kdsteps.jobs import run_lock
from kdsteps.jobs.job import Job
from kdsteps.jobs.run_lock import LOCK, RUN, begin_run, during_job, end_run
from kdsteps.jobs.starting import start_run
from kdsteps.stages.tune import _result_of_training
from kdsteps.study.loading import load_study

RUNS = "from kdsteps.jobs.run_lock import begin_run; begin_run()"
JOB = """
import sys, time
from pathlib import Path
from kdsteps.jobs.run_lock import during_job
with during_job(Path(sys.argv[1])) as check:
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
    check()
    print("done", flush=True)
"""
JOB_OF_RUN = """
import subprocess, sys
job = subprocess.Popen([sys.executable, "-c", sys.argv[1], "target", "60"], stdout=subprocess.PIPE)
job.stdout.readline()
print(job.pid, flush=True)
"""
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
# Python 3.14 forgets a SIGINT that arrives as `input()` begins.
WAIT = """
import select, sys
print(flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN, raising=False)
    monkeypatch.setattr(logging, "raiseExceptions", True)  # `begin_run` changes it
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0)
    monkeypatch.setattr(run_lock, "PATIENCE_WITH_JOBS", 0.2)
    start_run.cache_clear()
    yield tmp_path
    end_run()


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs some code and then waits; its first line has been read.

    SIGINT ends it, also where these tests run in the background of a shell, which ignores it.
    """
    command = [sys.executable, "-c", f"{HEED}\n{code}\n{WAIT}", *arguments]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as started:
        try:
            yield started
        finally:
            started.kill()


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_a_second_run_names_the_process_of_the_first():
    with process(RUNS) as run:
        first_line(run)
        with pytest.raises(KdstepsError, match=f"process {run.pid} since .*wait until it ends"):
            begin_run()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_killed_is_no_obstacle_and_its_snakemake_locks_are_removed(how: int):
    with process(RUNS) as run:
        first_line(run)
        lock = LOCK.with_name("locks") / "0.input.lock"
        lock.parent.mkdir()
        lock.touch()
        run.send_signal(how)
        run.wait()
    begin_run()
    assert not lock.exists()


def test_a_job_by_hand_does_not_begin_during_a_run():
    with process(RUNS) as run:
        first_line(run)
        with pytest.raises(KdstepsError, match=f"process {run.pid}"), during_job(Path("a")):
            pass


def test_jobs_by_hand_run_side_by_side_but_each_only_once():
    with process(JOB, "a", "60") as other:
        first_line(other)
        with during_job(Path("b")) as check:
            check()
        with pytest.raises(KdstepsError, match="another process is making"), during_job(Path("a")):
            pass
        with pytest.raises(KdstepsError, match=f"started by hand.*process {other.pid}"):
            begin_run()


def test_a_job_stops_when_its_run_is_killed_and_the_next_run_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(run_lock, "PATIENCE_WITH_JOBS", 20.0)
    with process(f"{RUNS}\n{JOB_OF_RUN}", JOB) as run:
        job = int(first_line(run))
        assert lives(job)
        run.kill()
        run.wait()
        time.sleep(1.5)  # it looks every second
        begin_run()
        assert not lives(job)


def test_a_job_whose_run_is_over_puts_nothing_in_place(monkeypatch: pytest.MonkeyPatch):
    with process(RUNS) as run:
        first_line(run)
        monkeypatch.setenv(RUN, run_lock._holder(os.open(LOCK, os.O_RDONLY))["run"])
        with during_job(Path("a")) as check:
            check()
            run.kill()
            run.wait()
            with pytest.raises(KdstepsError, match="has ended; its result is discarded"):
                check()


def test_a_job_of_an_earlier_run_notices_the_next_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(RUN, "earlier")
    with process(RUNS) as run:
        first_line(run)
        with during_job(Path("a")) as check, pytest.raises(KdstepsError, match="discarded"):
            check()


def test_a_job_on_a_machine_that_does_not_see_the_lock_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(RUN, "elsewhere")
    with during_job(Path("a")) as check:
        check()
    with process(RUNS) as run:  # a lock that another machine holds looks free from here
        first_line(run)
        holder = run_lock._holder(os.open(LOCK, os.O_RDONLY))
    monkeypatch.setenv(RUN, holder["run"])
    monkeypatch.setattr(run_lock, "gethostname", lambda: "another")
    with during_job(Path("a")) as check:
        check()


def test_a_run_removes_temporary_files_of_processes_that_are_gone():
    """Also those beside files that no job writes, such as the provenance of a job's files."""
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    drafts = [Path(f"results/a/.b.provenance.json.{n}.part") for n in (gone.pid, os.getpid())]
    drafts[0].parent.mkdir(parents=True)
    for draft in drafts:
        draft.touch()
    start_run("params.yaml")
    assert [draft.exists() for draft in drafts] == [False, True]


@pytest.mark.parametrize("link", [False, True])
def test_results_that_are_no_folder_are_refused_in_a_sentence(link: bool):
    if link:
        Path("results").symlink_to("/nowhere/results")
    else:
        Path("results").write_text("mine")
    what = "a link to '/nowhere/results', where there is no folder" if link else "a file"
    with pytest.raises(KdstepsError, match=f"^results: is {what}; "):
        start_run("params.yaml")


@pytest.mark.parametrize(
    "name", ["student.safetensors", "student.provenance.json", "model_card.md", "a file as folder"]
)
def test_what_has_the_name_of_a_result_and_is_no_file_is_refused_before_the_first_job(name: str):
    Path("params.yaml").write_text(yaml.safe_dump(TINY | {"export": {"formats": ["safetensors"]}}))
    stage = "export/pair/best" if name == "model_card.md" else "distil/pair/kd/0"
    path = Path("results", stage, name)
    if name == "a file as folder":
        path.parents[1].mkdir(parents=True)
        path.parent.touch()
        said = f"a file has the name of its folder {path.parent}; move it away"
    else:
        path.mkdir(parents=True)
        said = f"^{path}: a folder has this name; move it away"
    with pytest.raises(KdstepsError, match=said):
        start_run("params.yaml")


@pytest.mark.parametrize("name", ["logs", "results"])
@pytest.mark.parametrize("link", [True, False])
def test_what_is_in_the_place_of_a_folder_is_refused_before_the_first_job(name: str, link: bool):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    if link:
        Path(name).symlink_to("nowhere")
    else:
        Path(name).touch()
    said = "a link to 'nowhere', where there is no folder" if link else "a file; move it away"
    with pytest.raises(KdstepsError, match=f"^{name}: is {said}"):
        start_run("params.yaml")


def test_logs_that_cannot_be_written_are_refused_before_the_first_job(monkeypatch):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    place = Path("logs/distil").absolute()
    place.mkdir(parents=True)
    monkeypatch.setattr("kdsteps.files.atomic.os.access", lambda path, *_: path != place)
    said = f"^logs/distil/pair/feature_only/0.txt: cannot be written; make the folder {place} "
    with pytest.raises(KdstepsError, match=said):
        start_run("params.yaml")


def test_the_student_of_a_trial_that_was_killed_is_removed_when_a_run_begins():
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    left: list[Path] = []

    def train(job: Any) -> None:  # is killed, and the next run begins
        start_run("params.yaml")
        left.extend(path for path in job.outputs.values() if path.parent.exists())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _result_of_training(Job(None, {}, {}), train)
    assert not left


def test_a_pipe_with_the_name_of_a_result_is_refused_and_not_read():
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    path = Path("results/distil/pair/kd/0/history.parquet")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(KdstepsError, match=f"^{path}: is not a regular file; move it away"):
        start_run("params.yaml")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Path], None]:
    """Takes the permission to write to one path."""

    def forbid(place: str | Path) -> None:
        path, allowed = Path(place).absolute(), os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda where, mode: Path(where).absolute() != path and allowed(where, mode),
        )

    return forbid


@pytest.mark.parametrize("place", [".kdsteps", ".kdsteps/outputs", ".kdsteps/resume"])
def test_a_file_with_the_name_of_a_folder_of_the_cache_is_refused(place: str):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("mine")
    with pytest.raises(KdstepsError, match=f"^{place}: is not a folder; move it away"):
        start_run("params.yaml")


@pytest.mark.parametrize("place", [".kdsteps", ".kdsteps/outputs", ".kdsteps/resume"])
def test_a_folder_of_the_cache_that_cannot_be_written_is_refused(place, forbidden):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    Path(place).mkdir(parents=True)
    forbidden(place)
    said = f"{place}: cannot be written; make the folder {Path(place).absolute()} writable, "
    with pytest.raises(KdstepsError, match=f"^{re.escape(said)}"):
        start_run("params.yaml")
    call = call_of(load_study(), "prepare", {"dataset": "digits"})
    with pytest.raises(KdstepsError, match=f"^{re.escape(said)}"):
        run_call(call)


def test_a_lock_of_the_cache_that_cannot_be_written_is_refused(forbidden):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    lock = Path(".kdsteps/outputs/1a.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    forbidden(lock)
    with pytest.raises(KdstepsError, match=f"^{lock}: cannot be written; make it writable"):
        start_run("params.yaml")


@pytest.mark.parametrize("name", ["outputs/1a.npy", "outputs/1a.lock", "resume/distil.pt"])
def test_a_folder_with_the_name_of_a_file_of_the_cache_is_refused_by_a_job(name: str):
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    Path(".kdsteps", name).mkdir(parents=True)
    call = call_of(load_study(), "prepare", {"dataset": "digits"})
    with pytest.raises(KdstepsError, match=f"^.kdsteps/{name}: a folder has this name; move it"):
        run_call(call)


def test_a_run_in_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdsteps.files.atomic.os.access", lambda *_: False)
    said = f"{LOCK}: cannot be written; make the folder {tmp_path} writable"
    with pytest.raises(KdstepsError, match=f"^{re.escape(said)}$"):
        begin_run()


def test_a_lock_that_cannot_be_opened_is_refused_and_not_left_out(forbidden):
    LOCK.parent.mkdir()
    LOCK.touch()
    forbidden(LOCK)
    with pytest.raises(KdstepsError, match=f"^{LOCK}: cannot be written; make it writable$"):
        begin_run()


def test_whoever_may_write_to_the_folder_may_write_to_its_lock():
    LOCK.parent.mkdir()
    for mode in (0o775, 0o755):
        LOCK.parent.chmod(mode)
        with during_job(Path("results/a")):
            assert LOCK.stat().st_mode & 0o777 == mode & 0o666
