"""Live metrics: each logger for real, and loggers that fail in every way without harming a job."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _commands import DATA, REPOSITORY, run_of, write_study
from _disks import small_disk

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import read_table
from kdsteps.jobs import code_identity, graph, live
from kdsteps.jobs.live import job_name, logged_live
from kdsteps.jobs.progress import EPOCHS, reported
from kdsteps.loggers._process import Curve
from kdsteps.loggers.base import Epoch, Logger, Training
from kdsteps.study import loggers as loggers_section
from kdsteps.study.loading import load_study
from kdsteps.study.loggers import LoggerSettings, as_text, from_text
from kdsteps.study.yaml_text import read_yaml

SHIPPED = ("dvclive", "mlflow", "tensorboard")
KD = Path("results/distil/pair/kd/0/student.safetensors")
LABELS = Path("results/distil/pair/labels/0/student.safetensors")

ODD = '''
import os, signal, time
from pathlib import Path


class Odd:
    """Does what `how` says when it gets its second epoch."""

    def __init__(self, training, *, how: str = "well") -> None:
        self.how = how
        Path(how).write_text(f"{os.getpid()}")
        if how == "not made":
            raise OSError("no place for me")

    def log(self, epoch) -> None:
        print("noise of a library", flush=True)
        if epoch.number < 2:
            return
        if self.how == "raises":
            raise RuntimeError("lost the server\\nand more lines")
        if self.how == "hangs":
            time.sleep(600)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exits":
            raise SystemExit(3)

    def close(self) -> None:
        pass
'''


def logger(name: str, reference: str = "", **options: Any) -> LoggerSettings:
    return LoggerSettings(name=name, logger=reference or name, options=options)


def odd(how: str) -> LoggerSettings:
    return logger("mine", "./mine.py:Odd", how=how)


def epoch_of(number: int, epochs: int, **values: float) -> None:
    """What the training loop logs after an epoch."""
    history = SimpleNamespace(
        epoch=[number] * len(values), name=list(values), value=list(values.values())
    )
    EPOCHS.debug("%d of %d", number, epochs, extra={"history": history})


@contextmanager
def followed(target: Path, loggers: list[LoggerSettings]) -> Iterator[None]:
    """A job with loggers, which end after everything else as they do in `run_call`."""
    with ExitStack() as at_the_end, reported(target):
        at_the_end.enter_context(logged_live(target, loggers))
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of a study, in which a test runs, with a logger in mine.py."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(ODD)
    return tmp_path


# In params.yaml


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder in which parts are described only once."""
    folder: Path = tmp_path_factory.mktemp("study")
    (folder / "mine.py").write_text(ODD)
    return folder


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"tensorbord": {}}, r"loggers\.tensorbord: .*did you mean 'tensorboard'"),
        ({"mlflow": {"urk": "http://x"}}, r"loggers\.mlflow\.urk .*did you mean 'uri'"),
        ({"mine": {"logger": "./mine.py:Od"}}, r"loggers\.mine\.logger: .*did you mean 'Odd'"),
        (["tensorboard"], r"loggers is \[\"tensorboard\"\]; it should be .*entries"),
    ],
)
def test_a_mistake_is_refused_with_what_would_be_right(section, sentence, study, monkeypatch):
    monkeypatch.chdir(study)
    with pytest.raises(KdstepsError, match=sentence):
        load_study(write_study(study, loggers=section))


def test_a_logger_that_is_not_installed_is_refused_with_the_extra_to_install(study, monkeypatch):
    monkeypatch.chdir(study)
    monkeypatch.setattr(loggers_section, "find_spec", lambda _: None)
    for name in SHIPPED:
        with pytest.raises(KdstepsError, match=rf"loggers\.{name}: .*kdsteps\[{name}\]"):
            load_study(write_study(study, loggers={name: {}}))


def test_a_logger_changes_the_identity_of_no_job(study, monkeypatch):
    monkeypatch.chdir(study)
    methods = {"labels": {}, "kd": {"tune": {"temperature": [1.0, 2.0]}}}
    plain = load_study(write_study(study, methods=methods))
    mine = {"mine": {"logger": "./mine.py:Odd", "how": "raises"}}
    logged = load_study(write_study(study, methods=methods, loggers=mine))
    assert logged.loggers == (odd("raises"),)
    assert plain.described == logged.described
    for rule in graph.OUTPUTS:
        for names in graph.jobs(plain, rule):
            for of_job in (graph.settings_text, graph.inputs, code_identity.code):
                assert of_job(plain, rule, names) == of_job(logged, rule, names), rule


def test_loggers_reach_a_job_as_text():
    given = (odd("well"), logger("tensorboard", folder="a 'b' {c}"))
    assert from_text(as_text(given)) == given


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (KD, "distil/pair/kd/0"),
        (Path("/away/results/tune/pair/kd/2/100/trial.json"), "tune/pair/kd/2/100"),
        (Path("results/train/digits/big/teacher.safetensors"), "train/digits/big"),
        (Path("../elsewhere/student.safetensors"), "elsewhere"),
    ],
)
def test_the_name_of_a_job_is_a_path_of_its_own(target, name):
    assert job_name(target) == name


# Each logger, for two jobs side by side, one of which is interrupted


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Iterator[Path]:
    """A folder with what all loggers wrote: of kd, epochs 1 to 3, then again from 3 on, to 4.

    A job of labels, which dvclive does not log, runs beside the first attempt. The folder has git
    and DVC, and the loggers see the environment of `dvc exp run`.
    """
    for name in SHIPPED:
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder: Path = tmp_path_factory.mktemp("written")
    loggers = [logger(name) for name in SHIPPED]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(live, "GRACE", 100.0)  # a busy machine
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Path(".dvc").mkdir()
        Path(".dvc/config").touch()
        Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        Path(".gitignore").write_bytes((REPOSITORY / ".gitignore").read_bytes())
        git(folder, "init", "--quiet")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "x")
        patch.setenv("DVC_ROOT", str(folder))
        patch.setenv("DVC_EXP_BASELINE_REV", git(folder, "rev-parse", "HEAD").strip())
        with (
            suppress(KeyboardInterrupt),
            followed(LABELS, loggers[1:]),
            followed(KD, loggers),
        ):
            for number in (1, 2, 3):
                epoch_of(number, 4, kd=1 / number, validation_accuracy=number / 10)
            raise KeyboardInterrupt
        with followed(KD, loggers):
            epoch_of(3, 4, kd=0.5, validation_accuracy=0.5)
            epoch_of(4, 4, kd=float("nan"), validation_accuracy=0.6)
        yield folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y.invalid", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


ACCURACIES = [(1, 0.1), (2, 0.2), (3, 0.5), (4, 0.6)]


@pytest.mark.slow
def test_tensorboard_has_each_epoch_once(written):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curve(job: str, name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(written / "logs/live/tensorboard" / job)).Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    found = curve("distil/pair/kd/0", "validation_accuracy")
    assert found == [(step, pytest.approx(value)) for step, value in ACCURACIES]
    assert [step for step, _ in curve("distil/pair/kd/0", "kd")] == [1, 2, 3, 4]
    assert [step for step, _ in curve("distil/pair/labels/0", "kd")] == [1, 2, 3]


@pytest.mark.slow
def test_dvclive_has_each_epoch_once(written):
    def rows(job: str, name: str) -> list[str]:
        file = written / "logs/live/dvclive" / job / "plots/metrics" / f"{name}.tsv"
        return file.read_text().splitlines()

    accuracies = [f"{step}\t{value}" for step, value in ACCURACIES]
    assert rows("distil/pair/kd/0", "validation_accuracy") == [
        "step\tvalidation_accuracy",
        *accuracies,
    ]


@pytest.mark.slow
def test_dvclive_leaves_git_dvc_and_experiments_alone(written):
    assert not list(written.rglob("dvc.yaml"))
    assert git(written, "status", "--porcelain") == ""
    assert git(written, "rev-list", "--all", "--count").strip() == "1"


@pytest.mark.slow
def test_dvclive_writes_in_a_repository_without_a_commit(tmp_path, monkeypatch):
    pytest.importorskip("dvclive", reason="dvclive is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(live, "GRACE", 100.0)
    git(tmp_path, "init", "--quiet")
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    with followed(KD, [logger("dvclive")]):
        epoch_of(1, 1, kd=0.5, validation_accuracy=0.25)
    table = tmp_path / "logs/live/dvclive/distil/pair/kd/0/plots/metrics/validation_accuracy.tsv"
    assert table.read_text().splitlines() == ["step\tvalidation_accuracy", "1\t0.25"]


@pytest.mark.slow
def test_mlflow_has_one_run_per_job_with_each_epoch_once(written, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(written / "logs/live/mlflow").as_uri())
    experiments = [e for e in client.search_experiments() if e.name != "Default"]
    assert [experiment.name for experiment in experiments] == [written.name]
    runs = client.search_runs([experiments[0].experiment_id])
    found = {run.info.run_name: run.info for run in runs}
    assert found.keys() == {"distil/pair/kd/0", "distil/pair/labels/0"}
    assert found["distil/pair/labels/0"].status == "KILLED"
    assert found["distil/pair/kd/0"].status == "FINISHED"
    history = client.get_metric_history(found["distil/pair/kd/0"].run_id, "validation_accuracy")
    # epoch 3 was logged by the first attempt, and MLflow cannot replace it
    assert sorted((m.step, m.value) for m in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.6)]


# Failures


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("not made", "OSError: no place for me"),
        ("raises", "RuntimeError: lost the server"),
        ("hangs", "not written within 1 s"),
        ("killed", f"ended with status -{signal.SIGKILL}"),
        ("exits", "SystemExit: 3"),
    ],
)
def test_a_logger_that_fails_costs_one_line(how, problem, folder, capfd, caplog, monkeypatch):
    monkeypatch.setattr(live, "GRACE", 1.0)
    begun = time.monotonic()
    with followed(KD, [odd(how)]):
        for number in (1, 2, 3):
            epoch_of(number, 3, total=1.0)
        wait_for(lambda: Path(how).exists())
    assert time.monotonic() - begun < 60
    said = [*capfd.readouterr().err.splitlines(), *caplog.messages]
    (line,) = [line for line in said if "loggers" in line]
    assert line.startswith("loggers: mine: ")
    assert problem in line
    assert not any("noise" in line for line in said)
    assert not is_alive(int(Path(how).read_text()))


@pytest.mark.slow
def test_a_full_disk_costs_one_line_per_logger(folder, capfd, monkeypatch):
    for name in SHIPPED:
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setattr(live, "GRACE", 100.0)
    with small_disk(folder / "disk", "1m") as disk:
        uri = (disk / "mlflow").as_uri()
        some = [logger(name, folder=str(disk)) for name in ("dvclive", "tensorboard")]
        with followed(KD, [*some, logger("mlflow", uri=uri)]):
            epoch_of(1, 3, total=1.0)
            wait_for(lambda: len([f for f in disk.rglob("*") if f.name.startswith("total")]) == 2)
            wait_for(lambda: bool(list(disk.rglob("events.*"))))
            time.sleep(0.5)
            fill(disk)
            for number in (2, 3):
                epoch_of(number, 3, **{f"term{term}": 1.0 for term in range(2000)})
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert sorted(re.match(r"loggers: (\w+): ", line)[1] for line in lines) == list(SHIPPED)
    assert all("No space left" in line for line in lines)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


@pytest.mark.slow
def test_a_server_that_is_gone_or_silent_costs_one_line(folder, capfd, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setattr(live, "GRACE", 4.0)
    Path(".kdsteps").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nothing listens
        servers = {"silent": silent, "gone": unused}
        loggers = [
            logger(name, "mlflow", uri=f"http://127.0.0.1:{server.getsockname()[1]}")
            for name, server in servers.items()
        ]
        begun = time.monotonic()
        with followed(KD, loggers):
            epoch_of(1, 1, total=1.0)
        assert time.monotonic() - begun < 4 + 20
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert sorted(line.split(": ")[1] for line in lines) == ["gone", "silent"]


def test_a_logger_that_raised_gets_all_epochs_when_it_is_tried_again():
    made: list[Flaky] = []

    class Flaky(Logger):
        def __init__(self, training: Training) -> None:
            super().__init__(training)
            self.seen: list[int] = []
            self.closed = False
            made.append(self)

        def log(self, epoch: Epoch) -> None:
            if len(made) == 1 and epoch.number == 2:
                raise OSError("for a moment")
            self.seen.append(epoch.number)

        def close(self) -> None:
            self.closed = True

    curve = Curve(Flaky, "job")
    curve.add({"epoch": n, "epochs": 9, "values": {}, "time": 100.0 + n} for n in (1, 2))
    with pytest.raises(OSError, match="for a moment"):
        curve.log()
    curve.close()
    curve.add([{"epoch": 3, "epochs": 9, "values": {}, "time": 103.0}])
    curve.log()
    assert [(each.seen, each.closed) for each in made] == [([1], True), ([1, 2, 3], False)]
    assert made[1].training == made[0].training == Training("job", 101.0, 9)


def test_epochs_of_an_earlier_attempt_wait_for_the_first_one_of_this():
    seen: list[int] = []

    class Seen(Logger):
        def log(self, epoch: Epoch) -> None:
            seen.append(epoch.number)

    earlier = [{"epoch": n, "epochs": 9, "values": {}, "time": 0.0} for n in (1, 2, 3, 4)]
    curve = Curve(Seen, "job")
    curve.add([*earlier, {"started": 1.0}])
    curve.log()
    assert not seen  # where this attempt goes on is not known yet
    curve.add([{"epoch": 3, "epochs": 9, "values": {}, "time": 2.0}])
    curve.log()
    assert seen == [1, 2, 3]


def test_a_logger_ends_with_a_job_that_is_killed(folder):
    program = (
        "import sys, time; sys.path[:0] = {path!r}\n"
        "from test_loggers import *\n"
        "with followed(KD, [odd('well')]):\n"
        "    epoch_of(1, 2, total=1.0)\n"
        "    time.sleep(600)\n"
    ).format(path=[str(REPOSITORY / "tests"), str(REPOSITORY)])
    job = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: Path("well").is_file() and Path("well").read_text() != "")
        process = int(Path("well").read_text())
        assert is_alive(process)
    finally:
        job.kill()
        job.wait()
    wait_for(lambda: not is_alive(process))


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# The page


def test_the_page_names_what_there_is_and_its_logger_works(folder):
    page = (REPOSITORY / "docs/live-metrics.md").read_text()
    blocks = re.findall(r"^```(yaml|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (_, shipped), (_, own), (_, code) = blocks
    assert set(read_yaml(shipped)["loggers"]) == set(SHIPPED)
    Path("lines.py").write_text(code)
    (entry,) = load_study(write_study(folder, **read_yaml(own))).loggers
    with followed(KD, [entry]):
        for number in (1, 2):
            epoch_of(number, 2, total=float(number))
    lines = Path("logs/live/lines/distil/pair/kd/0.jsonl").read_text().splitlines()
    assert lines == ['{"epoch": 2, "total": 2.0}']


# A real training


@pytest.mark.slow
def test_results_are_the_same_bytes_with_loggers_that_work_or_are_killed(folder, caplog):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def student(**sections: Any) -> bytes:
        write_study(folder, distil={"epochs": 3, "batch_size": 256}, **sections)
        shutil.rmtree(".jobcache", ignore_errors=True)
        shutil.rmtree("results/distil", ignore_errors=True)
        assert main(["distil", *run_of("labels")]) == 0
        return LABELS.read_bytes()

    write_study(folder)
    assert main(["prepare", *DATA]) == 0
    plain = student()
    outside = {path for path in Path().rglob("*") if "results" in path.parts}
    mine = {"logger": "./mine.py:Odd", "how": "killed"}
    assert student(loggers={"tensorboard": None, "mine": mine}) == plain
    assert {path for path in Path().rglob("*") if "results" in path.parts} == outside
    events = EventAccumulator("logs/live/tensorboard/distil/pair/labels/0").Reload()
    rows = read_table(LABELS.with_name("history.parquet"), HISTORY).to_pylist()
    for row in rows:
        found = {event.step: event.value for event in events.Scalars(row["name"])}
        assert found[row["epoch"]] == pytest.approx(row["value"], rel=1e-6)
    assert len({row["epoch"] for row in rows}) == 3
    (line,) = [line for line in caplog.messages if "loggers" in line]
    assert f"mine: its process ended with status -{signal.SIGKILL}" in line
