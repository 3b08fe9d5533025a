"""`kdsteps status`: what a study has done so far, whatever state its files are in."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _commands import DATA, REPOSITORY, run_of, write_study
from _training import fit_of, same_bytes, weights

from kdsteps.cli.main import main
from kdsteps.cli.status import Snapshot, lines, look
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.standing import BEHIND, is_diverging, standing
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.job_states import LOGS, JobState, TimeLeft, job_states, time_left
from kdsteps.jobs.progress import (
    EPOCHS,
    FOLDER,
    Progress,
    progress_file,
    read_progress,
    reported,
)
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.run_lock import begin_run, current_run, end_run
from kdsteps.study.loading import load_study

TARGET = Path("results/distil/pair/kd/0/student.safetensors")
LABELS = {"pair": "pair", "method": "labels", "seed": "0"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a study that was never run, in which a test runs."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A study whose images are prepared and whose first student was trained with labels."""
    folder: Path = tmp_path_factory.mktemp("begun")
    write_study(folder, distil={"epochs": 2, "batch_size": 256})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare", *DATA]) == 0
        assert main(["distil", *run_of("labels")]) == 0
    return folder


def epoch_of(number: int, epochs: int, **values: float) -> None:
    """What the training loop logs after an epoch."""
    history = SimpleNamespace(
        epoch=[number] * len(values), name=list(values), value=list(values.values())
    )
    EPOCHS.debug("%d of %d", number, epochs, extra={"history": history})


def status(capsys, *arguments: str) -> str:
    assert main(["status", *arguments]) == 0
    text: str = capsys.readouterr().out
    return text


# What a job writes about itself


def test_a_job_can_be_followed_until_it_succeeds(folder):
    with reported(TARGET):
        epoch_of(1, 3, total=2.0)
        epoch_of(2, 3, total=1.0, validation_accuracy=0.5)
        found = read_progress(TARGET)
        assert found is not None
        assert found.running
        assert (found.epoch, found.epochs) == (2, 3)
        assert found.history[2] == {"total": 1.0, "validation_accuracy": 0.5}
        assert found.seconds_left is not None
    assert read_progress(TARGET) is None
    assert not EPOCHS.handlers


@pytest.mark.parametrize(("error", "failed"), [(ValueError, True), (KeyboardInterrupt, False)])
def test_a_failed_job_is_told_from_a_stopped_one(folder, error: type[BaseException], failed: bool):
    with pytest.raises(error), reported(TARGET):
        raise error
    found = read_progress(TARGET)
    assert found is not None
    assert (found.running, found.failed) == (False, failed)


def test_a_job_that_resumes_continues_its_history(folder):
    with suppress(KeyboardInterrupt), reported(TARGET):
        epoch_of(1, 3, total=3.0)
        epoch_of(2, 3, total=2.0)
        raise KeyboardInterrupt
    with reported(TARGET):
        epoch_of(2, 3, total=1.5)  # it was killed after its last saved state
        found = read_progress(TARGET)
        assert found is not None
        assert found.history == {1: {"total": 3.0}, 2: {"total": 1.5}}


def test_a_clock_that_is_set_back_does_not_shorten_epochs(folder, monkeypatch):
    with reported(TARGET):
        for epoch in (1, 2, 3):
            monkeypatch.setattr(time, "time", lambda now=1e9 - 1000 * epoch: now)
            epoch_of(epoch, 10, total=1.0)
        found = read_progress(TARGET)
    assert found is not None
    assert found.epoch_seconds is not None
    assert found.epoch_seconds >= 0


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\n[1]\n", b'{"epoch": "x", "epochs": 2}\n'])
def test_a_damaged_file_of_a_job_stops_nothing(folder, capsys, text: bytes):
    progress_file(TARGET).parent.mkdir(parents=True)
    progress_file(TARGET).write_bytes(text)
    assert "0 of 24 done" in status(capsys)


def test_where_nothing_can_be_written_a_job_runs_all_the_same(folder):
    FOLDER.parent.mkdir(exist_ok=True)
    FOLDER.write_text("a file where the folder should be")
    with reported(TARGET):
        epoch_of(1, 1, total=1.0)


def test_following_a_training_does_not_change_it(folder):
    alone = fit_of("kd")
    alone.run()
    followed = fit_of("kd")
    with reported(TARGET):
        followed.run()
    assert same_bytes(weights(alone), weights(followed))
    assert alone.history.rows() == followed.history.rows()


# Words


def run(*values: float, **more: float) -> dict[int, dict[str, float]]:
    return {e: {"validation_accuracy": v, "total": 1.0, **more} for e, v in enumerate(values, 1)}


LEVEL = {0: run(0.5, 0.60), 1: run(0.5, 0.64)}  # seeds differ by 0.028


@pytest.mark.parametrize(
    ("runs", "word"),
    [
        ({0: run(0.5, 0.66), 1: run(0.5, 0.70)}, "ahead"),
        ({0: run(0.5, 0.61), 1: run(0.5, 0.64)}, "level"),
        ({0: run(0.5, 0.55), 1: run(0.5, 0.59)}, BEHIND),
        ({0: run(0.5)}, "level"),  # at the epoch that it has reached
        ({0: run(0.5, 0.66), 1: run(0.5, 0.6, kd=math.nan)}, "diverging (seed 1)"),
        ({0: run(0.8, 0.3, 0.3)}, "diverging"),
        ({0: {1: {"total": 1.0}}}, "no validation images"),
    ],
)
def test_a_method_is_compared_at_the_same_epoch(runs: Any, word: str):
    assert standing(runs, LEVEL).word == word


def test_a_difference_is_the_mean_over_seeds():
    found = standing({0: run(0.5, 0.66), 1: run(0.5, 0.70)}, LEVEL)
    assert found.difference == pytest.approx(0.06)
    assert found.spread == pytest.approx(0.04 / math.sqrt(2))


def test_one_seed_is_not_judged():
    assert standing({0: run(0.9)}, {0: run(0.1)}).word == "not judged: one seed"


def test_without_a_baseline_there_is_no_comparison(folder, capsys):
    assert standing({0: run(0.9)}, {}).word == "the baseline has not come this far"
    variants = {"dkd": {}, "mild": {"method": "dkd", "temperature": 2}}
    write_study(folder, methods=variants)
    with reported(Path("results/distil/pair/dkd/0/student.safetensors")):
        epoch_of(1, 2, validation_accuracy=0.3, total=1.0)
        said = status(capsys)
        assert "\nvalidation accuracy\n" in said
        assert re.search(r"pair dkd +epoch +1 .*nothing to compare with", said)
        write_study(folder, methods=variants, report={"references": ["dkd"]})
        said = status(capsys)
        assert "\nvalidation accuracy, and the difference from `dkd` at the same epoch\n" in said
        assert re.search(r"pair dkd +epoch +1 .*the baseline", said)


def test_one_bad_epoch_is_no_divergence():
    assert not is_diverging(run(0.3, 0.1))
    assert not is_diverging(run(0.3, 0.1, 0.4))
    assert not is_diverging({})


# Jobs


def test_a_study_that_was_never_run(folder, capsys):
    said = status(capsys)
    assert "jobs      0 of 24 done, 24 waiting" in said
    assert "not known yet" in said
    assert "no run is using this folder" in said


def test_without_a_study_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "params.yaml: not found" in capsys.readouterr().err


def test_done_running_and_failed_jobs_are_told_apart(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    log = Path("logs/distil/pair/labels/1.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("on the CPU\nValueError: nothing works\n\n")
    other = Path("results/distil/pair/labels/1/student.safetensors")
    with pytest.raises(ValueError, match="nothing"), reported(other):
        raise ValueError("nothing works")
    with reported(TARGET):
        epoch_of(1, 2, validation_accuracy=0.3, total=1.0)
        said = status(capsys)
        found = json.loads(status(capsys, "--json"))
    progress_file(other).unlink()
    assert "2 of 24 done, 1 running, 1 failed" in said
    assert f"failed    distil pair labels 1: ValueError: nothing works ({log})" in said
    assert re.search(r"running   distil pair kd 0 +epoch 1 of 2", said)
    assert re.search(r"pair labels +epoch +2 .*the baseline", said)
    assert re.search(r"pair kd +epoch +1 .*not judged: one seed", said)
    states = {(job["rule"], job.get("method"), job.get("seed")): job for job in found["jobs"]}
    assert states["distil", "labels", "0"]["seconds"] > 0
    assert states["distil", "kd", "0"]["epochs"] == 2
    assert [student["method"] for student in found["students"]] == ["labels", "kd"]


def test_students_of_other_settings_are_not_shown(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    assert "pair labels" in status(capsys)
    before = Path("params.yaml").read_text()
    try:
        write_study(begun, distil={"epochs": 3, "batch_size": 256})
        said = status(capsys)
    finally:
        Path("params.yaml").write_text(before)
    assert "1 of 24 done, 23 waiting" in said
    assert "pair labels" not in said


def test_a_job_that_was_killed_is_stopped_and_not_failed(folder, capsys):
    progress_file(TARGET).parent.mkdir(parents=True)
    progress_file(TARGET).write_text('{"started": 1.0}\n')
    assert "stopped   distil pair kd 0: no reason was recorded" in status(capsys)


def test_a_job_that_failed_by_hand_is_quoted_and_not_its_earlier_log(folder, capsys):
    log = Path("logs/distil/pair/kd/0.txt")
    log.parent.mkdir(parents=True)
    log.write_text("kdsteps distil: stopped\n")
    os.utime(log, (1.0, 1.0))
    with pytest.raises(KdstepsError), reported(TARGET):
        raise KdstepsError("models: big is not a network")
    assert f"failed    distil pair kd 0: models: big is not a network ({log})" in status(capsys)
    with suppress(KeyboardInterrupt), reported(TARGET):
        raise KeyboardInterrupt
    assert "stopped   distil pair kd 0: no reason was recorded" in status(capsys)


def test_a_file_of_a_job_that_cannot_be_removed_stops_nothing(folder, monkeypatch):
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with reported(TARGET):
        monkeypatch.setattr(Path, "unlink", refuse)


def test_a_job_that_ended_before_it_began_has_failed(folder, capsys):
    log = Path("logs/train/digits/big.txt")
    log.parent.mkdir(parents=True)
    log.write_text("kdsteps train: --gpus: there is no driver\n")
    assert f"failed    train digits big: kdsteps train: --gpus: there is no driver ({log})" in (
        status(capsys)
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"digest": 1}'])
def test_a_result_with_a_damaged_provenance_is_not_done(begun, monkeypatch, content: bytes):
    monkeypatch.chdir(begun)
    file = Path("results/distil/pair/labels/0/student.provenance.json")
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        states = {(each.node.rule, *each.node.names.values()): each for each in _states()}
    finally:
        file.write_bytes(before)
    assert states["distil", "pair", "labels", "0"].state == "waiting"


def test_a_damaged_history_leaves_the_other_lines(begun, monkeypatch, capsys):
    monkeypatch.chdir(begun)
    file = Path("results/distil/pair/labels/0/history.parquet")
    before = file.read_bytes()
    try:
        file.write_bytes(before[: len(before) // 2])
        assert "1 of 24 done" in status(capsys)
    finally:
        file.write_bytes(before)


def test_a_run_is_seen_from_another_terminal(folder):
    assert current_run() is None
    begin_run()
    try:
        found = current_run()
    finally:
        end_run()
    assert found is not None
    assert found["process"] > 0
    assert current_run() is None


def test_a_run_is_seen_by_those_who_may_only_read_its_folder(folder, monkeypatch):
    opened = os.open

    def reading(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(path)
        return opened(path, flags, *mode)

    begin_run()
    try:
        monkeypatch.setattr(os, "open", reading)
        assert current_run() is not None
    finally:
        end_run()


def test_what_does_not_fit_on_the_screen_is_counted(folder):
    for names in graph.jobs(load_study(), "distil"):
        file = progress_file(Path(graph.outputs("distil", names)["model"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        epoch = {"epoch": 1, "epochs": 2, "time": 1.0, "values": {"validation_accuracy": 0.5}}
        file.write_text(json.dumps({"started": 1.0}) + "\n" + json.dumps(epoch) + "\n")
    found = look(load_study(), cores=1)
    whole = lines(found)
    assert len(whole) == 2 + 8 + 2 + 4  # counts and time, stopped jobs, title, students
    assert lines(found, height=16) == whole
    assert lines(found, height=12) == [
        *whole[:5],
        "...       and 5 more jobs that run or failed",
        *whole[10:],
    ]
    assert lines(found, height=6) == [
        *whole[:2],
        "...       and 8 more jobs that run or failed",
        *whole[10:12],
        "...       and 4 more rows",
    ]


def test_a_terminal_is_drawn_on_and_left_as_it_was(folder):
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell ignore it
        own = {"TERM": "xterm", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
        # not os.execv: readline has put another size into the environment of this process
        environment = {"PATH": os.environ["PATH"]} | own
        command = [sys.executable, "-m", "kdsteps", "status", "--watch"]
        os.execve(sys.executable, command, environment)
    seen = b""
    try:
        while b"not known yet" not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x03")  # Ctrl-C
        with suppress(OSError):  # the process has closed it
            while more := os.read(terminal, 4096):
                seen += more
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    text = seen.decode()
    drawn, _, after = text.partition(enter)[2].partition(leave)
    screen = drawn.split("\x1b[H")[2]  # the first frame, after the screen was cleared
    rows = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", screen).replace("^C", "").splitlines()
    assert rows[0].startswith("jobs      0 of 24 done")
    assert rows[1].rstrip().endswith("…")
    assert [len(row) for row in rows] == [40] * 10
    assert "no run is using this folder" in after  # whole lines, left for the shell
    assert "\x1b[?25h" in text  # the cursor is shown again


def _states() -> list[JobState]:
    return job_states(load_study())


def test_the_time_left_is_that_of_jobs_of_the_same_kind(folder):
    study = load_study()
    runs = [graph.node(study, "distil", names) for names in graph.jobs(study, "distil")]
    first, *others = [run for run in runs if run.names["method"] == "kd"]
    done = JobState(first, "done", seconds=10.0)
    found = time_left(study, [done, *(JobState(run, "waiting") for run in others)], ONE, now=0.0)
    assert (found.seconds, found.unknown) == (10.0, 0)
    unknown = JobState(graph.node(study, "report", {}), "waiting")
    found = time_left(study, [done, unknown], ONE, now=0.0)
    assert (found.seconds, found.unknown) == (0.0, 1)


def test_a_finished_study_says_where_the_report_is(folder):
    states = [JobState(each.node, "done", seconds=1.0) for each in _states()]
    found = Snapshot(None, states, TimeLeft(0.0, 0), [], None)
    assert lines(found) == ["jobs      24 of 24 done", "report    results/report/index.html"]


@pytest.mark.parametrize(("unknown", "jobs"), [(1, "for 1 job, "), (2, "for 2 jobs, ")])
def test_a_run_whose_lock_is_not_written_yet_is_a_run(folder, unknown, jobs):
    (last,) = lines(Snapshot({}, _states(), TimeLeft(120.0, unknown), [], None))[1:]
    assert last.startswith(f"time left at least 2 min: {jobs}")
    assert "no run" not in last
    assert "no run" in lines(Snapshot(None, _states(), TimeLeft(120.0, unknown), [], None))[1]


ONE = Sharing(cores=1, gpus=0, jobs_per_gpu=1)


@pytest.mark.parametrize(("cores", "seconds"), [(1, 80.0), (2, 40.0), (4, 20.0), (8, 20.0)])
def test_the_time_left_depends_on_the_cores_that_jobs_claim(folder, monkeypatch, cores, seconds):
    """8 students of 10 s on a machine with 4 cores, where each claims one of them."""
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 4)
    study = load_study()
    runs = [graph.node(study, "distil", names) for names in graph.jobs(study, "distil")]
    assert len(runs) == 8
    states = [JobState(run, "waiting") for run in runs]
    states.append(JobState(runs[0], "done", seconds=10.0))  # as of an earlier seed
    assert time_left(study, states, Sharing(cores, 0, 1), now=0.0).seconds == seconds


def test_small_teachers_are_expected_to_train_side_by_side(folder, monkeypatch):
    """Each claims the one core of two that it keeps busy, as in the rules of the workflow."""
    study = load_study()
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 2)
    node = graph.node(study, "train", graph.jobs(study, "train")[0])
    waiting = [replace(node, names=node.names | {"teacher": name}) for name in ("a", "b")]
    states = [JobState(each, "waiting") for each in waiting]
    states.append(JobState(node, "done", seconds=10.0))
    for busy, seconds in ((None, 20.0), (1, 10.0)):
        monkeypatch.setattr("kdsteps.jobs.schedule.busy_cores", lambda *_, busy=busy: busy)
        assert time_left(study, states, Sharing(2, 0, 1), now=0.0).seconds == seconds


def test_a_running_job_keeps_its_cores_in_the_forecast(folder):
    """A training takes precedence over an evaluation, but not over one that runs."""
    study = load_study()
    names = {"pair": "pair", "method": "labels", "seed": "0"}
    evaluation = graph.node(study, "evaluate", names)
    other = graph.node(study, "evaluate", names | {"seed": "1"})
    training = graph.node(study, "train", graph.jobs(study, "train")[0])
    trained = replace(training, names=training.names | {"teacher": "a"})
    states = [
        JobState(other, "done", seconds=6.0),
        JobState(trained, "done", seconds=4.0),
        JobState(training, "waiting"),
        JobState(evaluation, "running", progress=Progress(True, False, started=100.0)),
    ]
    two = Sharing(2, 0, 1)  # the training needs both cores, one of which is free
    assert time_left(study, states, two, now=101.0).seconds == 5.0 + 4.0


def test_the_forecast_counts_with_the_resources_of_the_run(folder, monkeypatch):
    seen: list[Sharing] = []

    def left(_: Any, states: Any, sharing: Sharing, now: float) -> TimeLeft:
        seen.append(sharing)
        return TimeLeft(0.0, 0)

    monkeypatch.setattr("kdsteps.cli.status.time_left", left)
    monkeypatch.setattr("kdsteps.cli.status.gpus_there", lambda: 2)
    study = load_study()
    look(study)
    for of_run in (Sharing(6, 2, 3), Sharing(800, 16, 1, max_threads=8, jobs=100)):
        begin_run(of_run)
        try:
            look(study)
            look(study, cores=3, gpus=0)
        finally:
            end_run()
    assert seen[:3] == [Sharing(4, 1, 1), Sharing(6, 2, 3), Sharing(3, 0, 3)]
    assert seen[3:] == [of_run, replace(of_run, cores=3, gpus=0)]


def test_the_logs_are_those_of_the_workflow():
    text = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    named = re.findall(r'^rule (\w+):.*?log:\n\s+"(.*?)"', text, re.MULTILINE | re.DOTALL)
    assert dict(named) == LOGS


def test_the_results_say_how_long_a_job_took(begun):
    found = read_json(begun / "results/distil/pair/labels/0/student.provenance.json")
    assert found["ended"] > found["started"]
