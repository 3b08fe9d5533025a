"""The command `kdsteps`: what it asks for, what it tells, and how it ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _commands import DATA, STUDY, TEACHER, command, files_in, write_study

from kdsteps.cli.main import COMMANDS, main
from kdsteps.jobs import graph
from kdsteps.study.study import parse_study

Said = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the command runs: a folder with a study and nothing made yet."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)
    yield tmp_path
    logging.captureWarnings(False)  # as it was before `main`


@pytest.fixture
def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must end with 2, whether by us or by argparse; gives its sentence."""

    def run(*arguments: str) -> str:
        before = files_in(folder)
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        assert (status, said.out, said.err.count("\n")) == (2, "", 1)
        assert files_in(folder) == before
        return said.err.removesuffix("\n")

    return run


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that `prepare` is given, which then writes empty files instead of working."""
    seen: list[Any] = []

    def run(job: Any) -> None:
        seen.append(job)
        for path in job.outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr("kdsteps.stages.prepare.run", run)
    return seen


def settings() -> str:
    return graph.settings_text(parse_study(STUDY), "prepare", {"dataset": "digits"})


# mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill"], "kdsteps: there is no command 'distill'; did you mean 'distil'?"),
        ([], "kdsteps: missing: command; `kdsteps --help` tells what there is"),
        (["prepare", "--frob"], "kdsteps: there is no option --frob; `kdsteps --help` tells what"),
        (["train"], "kdsteps train: --dataset and --teacher are missing; say which job is meant"),
        (
            ["distil", "--pair", "pair", "--method", "kd"],
            "kdsteps distil: --seed is missing; say which job is meant",
        ),
        (
            ["distil", "--pair", "pairr", "--method", "kd", "--seed", "0"],
            "kdsteps distil: --pair: 'pairr' is not in this study; did you mean 'pair'?",
        ),
        (
            ["distil", "--pair", "pair", "--method", "kdd", "--seed", "0"],
            "kdsteps distil: --method: 'kdd' is not in this study; did you mean 'kd'?",
        ),
        (
            ["train", *TEACHER, "--pair", "pair"],
            "kdsteps train: --pair: does not belong there; --dataset and --teacher would tell",
        ),
        (
            ["prepare", *DATA, "--threads", "many"],
            "kdsteps prepare: --threads: is 'many', where a whole number would be right; ",
        ),
        (
            ["train", *TEACHER, "--gpus", "-1"],
            "kdsteps train: --gpus: is '-1', where a whole number would be right; ",
        ),
        (
            ["prepare", "--settings", "{"],
            "kdsteps prepare: --settings: is not JSON (",
        ),
        (
            ["prepare", "--settings", "[1]"],
            "kdsteps prepare: --settings: is [1]; one `{...}` would be right",
        ),
        (
            ["prepare", "--settings", "{}"],
            "kdsteps prepare: --settings: 'prepare' is missing; `--help` tells what the stage",
        ),
        (
            ["prepare", "--settings", settings()],
            "kdsteps prepare: --outputs: 'images' is missing; `--help` tells what the stage",
        ),
        (
            ["prepare", "--settings", settings(), "--outputs", "images"],
            "kdsteps prepare: --outputs: 'images' should read NAME=PATH",
        ),
        (
            ["train", "--settings", "{}", "--inputs", "images=nowhere.npy"],
            "kdsteps train: nowhere.npy: there is no such file, and it is read as 'images'; run",
        ),
        (
            ["prepare", *DATA, "--params", "nowhere.yaml"],
            "kdsteps prepare: nowhere.yaml: is not there; run kdsteps where params.yaml lies",
        ),
        (
            ["train", *TEACHER],
            "kdsteps train: results/prepare/digits/images.npy: there is no such file",
        ),
        (
            ["layers", "bigg"],
            "kdsteps layers: params.yaml: 'bigg' is not under models; did you mean 'big'?",
        ),
        (
            ["layers", "vgh:"],
            "kdsteps layers: vgh:.family: there is no model family 'vgh'; did you mean 'vgg'?",
        ),
        (
            ["layers", "cifar_resnet:x"],
            "kdsteps layers: cifar_resnet:x: name is an unknown key; there are depth, widths",
        ),
        (
            ["layers", "big", "--image", "3,32"],
            "kdsteps layers: --image: '3,32' should read C,H,W, such as 3,32,32",
        ),
        (
            ["layers", "big", "--image", "3,0,32"],
            "kdsteps layers: --image: '3,0,32' has a 0; each number should be above 0",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(refusal, arguments, sentence):
    assert refusal(*arguments).startswith(sentence)


# what a job is given


def test_a_job_by_name_is_the_job_by_file(folder, jobs):
    assert main(["prepare", *DATA, "--threads", "1", "--gpus", "0"]) == 0
    outputs = graph.outputs("prepare", {"dataset": "digits"})
    named = [f"{name}={path}" for name, path in outputs.items()]
    arguments = ["--settings", settings(), "--outputs", *named, "--threads", "1", "--gpus", "0"]
    assert main(["prepare", *arguments]) == 0
    by_name, by_file = jobs
    assert by_name == by_file


def test_a_name_that_comes_again_gives_a_list(jobs):
    Path("a").touch()
    Path("b").touch()
    given = ["--inputs", "x=a", "x=b", "y=a", "--outputs", "images=c"]
    assert main(["prepare", "--settings", "{}", *given]) == 0
    assert jobs[0].inputs == {"x": ["a", "b"], "y": "a"}


def test_no_job_gets_more_threads_than_there_are_cores(jobs):
    assert main(["prepare", *DATA, "--threads", "4096"]) == 0
    assert jobs[0].threads <= (os.cpu_count() or 1)


# how it ends


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_anywhere_is_a_sentence(refusal, monkeypatch, code):
    def full(job: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("kdsteps.stages.prepare.run", full)
    assert refusal("prepare", *DATA) == (
        "kdsteps prepare: the disk is full; free some space and run again, finished results are "
        "kept"
    )


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    def broken(job: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("kdsteps.stages.prepare.run", broken)
    with pytest.raises(OSError, match="Input/output error"):
        main(["prepare", *DATA])


def test_an_interrupt_ends_without_traceback(monkeypatch, capsys):
    def interrupted(job: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdsteps.stages.prepare.run", interrupted)
    assert main(["prepare", *DATA]) == 130
    assert capsys.readouterr().err == "kdsteps prepare: stopped\n"


# what it tells


@pytest.mark.parametrize("stage", graph.STAGES)
def test_the_help_of_a_stage_tells_its_files(capsys, stage):
    with pytest.raises(SystemExit) as ended:
        main([stage, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    rules = [rule for rule in graph.OUTPUTS if graph.stage_of(rule) == stage]
    for name in (name for rule in rules for name in graph.OUTPUTS[rule]):
        assert name in text


def test_the_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in COMMANDS)


def test_help_comes_without_torch(folder):
    (folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[1])])}
    done = command(folder, "distil", "--help", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "student.safetensors" in done.stdout


def test_layers_are_listed_with_shapes_and_costs(capsys):
    assert main(["layers", "big", "--image", "1,8,8"]) == 0
    text = capsys.readouterr().out
    assert "layer3.0" in text
    assert "2 x 2 x 2" in text  # 2 channels; the 8 x 8 pixels halved twice


def test_a_reader_that_stops_early_is_no_error():
    root = Path(__file__).parents[1]
    program = [sys.executable, "-m", "kdsteps", "schema"]
    with subprocess.Popen(program, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.stdout is not None and it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == b""
        assert it.wait(timeout=60) == 0


def test_a_dataset_is_prepared_and_recorded(folder):
    assert main(["prepare", *DATA]) == 0
    summary = json.loads((folder / "results/prepare/digits/summary.json").read_text())
    assert sum(summary["images"].values()) == 1797
    assert not list(folder.rglob("*.part"))


def test_results_made_before_are_taken_from_the_job_cache(folder, monkeypatch):
    assert main(["prepare", *DATA]) == 0
    assert main(["train", *TEACHER]) == 0
    first = files_in(folder / "results")
    shutil.rmtree(folder / "results/train")
    monkeypatch.setattr("kdsteps.stages.train.run", lambda job: pytest.fail("it trained again"))
    assert main(["train", *TEACHER]) == 0
    assert files_in(folder / "results") == first
