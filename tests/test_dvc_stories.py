"""What people who share a study through git and DVC live through, with the real programs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import REPOSITORY, TINY, Study, clean_environment

pytestmark = [pytest.mark.stories, pytest.mark.slow]

PARAMS: dict[str, Any] = TINY | {"methods": {"labels": {"label_smoothing": 0.0}}}
STUDENTS = "results/distil/**/student.safetensors"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A small study that is finished and committed."""
    study = Study.new(tmp_path_factory.mktemp("dvc") / "study", PARAMS)
    study.record()
    study.commit()
    return study


@pytest.fixture
def study(recorded: Study, tmp_path: Path) -> Study:
    return recorded.copy(tmp_path / "study")


def finish_branch(study: Study, name: str, methods: dict[str, Any]) -> dict[str, bytes]:
    """A branch from main with other methods, finished and committed; returns its students."""
    study.git("checkout", "--quiet", "-b", name, "main")
    study.dvc("checkout")
    study.change(methods=methods)
    study.record()
    study.commit()
    return study.bytes_of(STUDENTS)


def test_two_branches_that_each_added_a_method_are_merged_without_training(study: Study):
    ours = finish_branch(study, "ours", {"labels": {}, "kd": {}})
    theirs = finish_branch(study, "theirs", {"labels": {}, "fitnet": {}})
    study.git("checkout", "--quiet", "ours")
    study.dvc("checkout")
    study.attempt(["git", "merge", "theirs"])
    study.git("checkout", "--ours", ".")
    study.change(methods={"labels": {}, "kd": {}, "fitnet": {}})
    study.commit()
    study.executed()
    study.dvc("repro")
    trained = {name for name, log in study.executed().items() if "epoch 1" in log}
    assert trained == set(), "the job cache has the students of both"
    assert study.bytes_of(STUDENTS) == ours | theirs
    assert study.planned() == {}
    assert "up to date" in study.dvc("status")


def test_an_older_commit_brings_its_results_back(study: Study):
    before = study.bytes_of(STUDENTS)
    finish_branch(study, "other", {"labels": {"label_smoothing": 0.1}})
    assert study.bytes_of(STUDENTS) != before
    study.git("checkout", "--quiet", "main")
    assert study.planned() != {}, "git alone does not change results"
    study.dvc("checkout")
    assert study.bytes_of(STUDENTS) == before
    assert study.planned() == {}
    assert "up to date" in study.dvc("status")


def test_a_study_that_is_edited_during_dvc_repro_is_not_recorded_under_its_old_values(
    study: Study,
):
    before = (study.path / "params.yaml").read_text()
    study.change(methods={"labels": {"distil": {"epochs": 400}}})
    with subprocess.Popen(
        ["dvc", "repro"],
        cwd=study.path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        log = study.path / "logs/distil/pair/labels/0.txt"
        while "of 400" not in log.read_text():
            assert run.poll() is None
            time.sleep(0.1)
        study.change(methods={"labels": {"distil": {"epochs": 3}}})
        said = run.communicate()[0]
    assert run.returncode == 255
    assert re.search("params.yaml: was changed.*while `dvc repro` was running", said)
    (study.path / "params.yaml").write_text(before)
    study.dvc("repro")
    assert study.planned() == {}
    assert study.dvc("repro").count("Running stage") == 0


def test_an_interrupted_push_and_pull_are_taken_up_again(study: Study, tmp_path: Path):
    study.dvc("remote", "add", "--default", "shelf", str(tmp_path / "remote"))
    study.commit()
    for seconds in (0.6, 1.0, 1.4):
        kill_after(seconds, ["dvc", "push"], study)
    study.dvc("push")
    if "are in sync" not in study.dvc("status", "--cloud"):  # as docs/reliability.md says
        forget_lists(study)
        study.dvc("push")
    assert "are in sync" in study.dvc("status", "--cloud")
    clone = study.clone(tmp_path / "clone")
    for seconds in (0.6, 1.0, 1.4):
        kill_after(seconds, ["dvc", "pull"], clone)
    said = clone.snakemake("--dry-run")
    if "Nothing to be done" not in said:
        assert "`dvc pull` fetches the others" in said
    # the first has removed what was cut off, and the second fetches it
    if clone.attempt(["dvc", "pull"])[0] and clone.attempt(["dvc", "pull"])[0]:
        forget_lists(clone)
        clone.dvc("pull")
    assert clone.planned() == {}
    assert clone.bytes_of(STUDENTS) == study.bytes_of(STUDENTS)


def forget_lists(study: Study) -> None:
    """Delete DVC's lists of what is to be pushed and pulled, which may have been cut off."""
    (folder,) = re.findall(r"Repo.site_cache_dir: (.*)", study.dvc("doctor"))
    shutil.rmtree(Path(folder) / "index", ignore_errors=True)


def kill_after(seconds: float, command: list[str], study: Study) -> None:
    """Start a command and kill it with all its processes."""
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        command, cwd=study.path, env=clean_environment(), start_new_session=True, **quiet
    ) as run:
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)


def test_every_command_of_the_page_on_experiments_does_what_it_says(tmp_path: Path):
    page = (REPOSITORY / "docs/experiments.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^    ((?:dvc|git) .*)$", page, re.M)]
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    methods = {"kd": {"temperature": 2}}
    study = Study.new(tmp_path / "study", TINY | {"methods": methods, "seeds": [0]})
    study.record()
    study.commit()
    said: dict[str, str] = {}
    for command in commands:
        status, text = study.attempt(command)
        assert status == 0, f"{' '.join(command)}: {text}"
        said[" ".join(command[:3])] = text
        if "--temp" in command:
            assert "temperature: 3" in (study.path / "params.yaml").read_text(), "as it was"
        if command[:3] == ["dvc", "exp", "show"]:
            table = study.dvc(*command[1:], "--csv").splitlines()
            temperatures = [row.rpartition(",")[2] for row in table[1:]]
            found = "folder, main and experiments"
            assert sorted(temperatures) == ["2", "3", "3", "4", "5", "6"], found
            assert len(table[0].split(",")) == 5, "short enough for a terminal"
        if command[:3] == ["dvc", "plots", "diff"]:
            drawn = (study.path / "dvc_plots/index.html").read_text()
            assert "Validation accuracy" in drawn
            assert "warm" in drawn
    assert "methods.kd.temperature" in said["dvc exp diff"]
    values = yaml.safe_load((study.path / "params.yaml").read_text())
    assert values["methods"]["kd"]["temperature"] == 3
    assert study.planned() == {}
    assert not study.git("status", "--porcelain").strip(), "everything is committed or ignored"
    check = f"{code}\nassert settings['methods']['kd']['temperature'] == 3\nassert accuracy <= 1"
    study.run([sys.executable, "-c", check])


def test_another_repository_fetches_the_best_student_by_name(study: Study, tmp_path: Path):
    pipeline = study.path / "dvc.yaml"
    named = re.sub("results/export/[^/]+/best", "results/export/pair/best", pipeline.read_text())
    pipeline.write_text(named)
    study.change(export={})
    study.dvc("repro", "export")
    study.commit()
    study.git("tag", "--annotate", "student@v1.0.0", "--message", "First student")
    (tmp_path / "other").mkdir()
    other = Study(tmp_path / "other")
    other.git("init", "--quiet")
    other.dvc("init", "--quiet")
    other.dvc("artifacts", "get", str(study.path), "student", "--out", "student")
    exported = study.path / "results/export/pair/best"
    for name in ("model.onnx", "export.json"):
        assert (other.path / "student" / name).read_bytes() == (exported / name).read_bytes()
