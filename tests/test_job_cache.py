"""The job cache: the same job is done once, another job is never taken for it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdsteps.jobs.cache import job_cache, remembered


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)
    (tmp_path / "data").write_text("images")
    (tmp_path / "teacher").write_text("weights")
    return tmp_path


def ask(text: str = "student", **changed: Any) -> str | None:
    """The output of a job, made as `text` unless it was remembered; None where it was not made."""
    job: dict[str, Any] = {
        "stage": "distil",
        "settings": {"learning_rate": 0.05, "weight_decay": 0.01},
        "code": "c0de",
        "inputs": {"data": "data", "teacher": "teacher"},
        "outputs": {"model": Path("results/model"), "history": Path("results/history")},
    }
    job |= changed
    shutil.rmtree("results", ignore_errors=True)
    with remembered(**job) as known:
        if not known:
            for path in job["outputs"].values():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    return Path("results/model").read_text()


def test_the_same_job_gives_the_first_result_again():
    assert ask("first") == "first"
    assert ask("second") == "first"


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"learning_rate": 0.01, "weight_decay": 0.05}},
        {"code": "0the"},
        {"stage": "train"},
        {"inputs": {"data": "data"}},
        {"inputs": {"data": "teacher", "teacher": "data"}},
        {"inputs": {"data": ["data", "data"], "teacher": "teacher"}},
    ],
)
def test_another_job_is_not_taken_for_it(changed: dict[str, Any]):
    ask("first")
    assert ask("second", **changed) == "second"


def test_inputs_count_by_content_and_not_by_name_or_age(folder: Path):
    ask("first")
    shutil.copyfile("teacher", "moved")
    assert ask("second", inputs={"data": "data", "teacher": "moved"}) == "first"
    (folder / "teacher").write_text("other weights")
    assert ask("third") == "third"


def test_a_checkpoint_that_the_settings_name_counts_by_content(folder: Path):
    options = {"depth": 8, "checkpoint": "teacher"}
    job = {
        "stage": "train",
        "settings": {"model": {"options": options}},
        "inputs": {"data": "data"},
    }
    assert ask("first", **job) == "first"
    assert ask("second", **job) == "first"
    (folder / "teacher").write_text("other weights")
    assert ask("third", **job) == "third"


@pytest.mark.parametrize("changed", [{"code": None}, {"stage": "prepare"}, {"stage": "cache"}])
def test_jobs_of_unknown_code_or_with_large_files_are_not_remembered(changed: dict[str, Any]):
    ask("first", **changed)
    assert ask("second", **changed) == "second"


def test_results_are_copies_so_that_either_side_may_be_deleted_or_changed(folder: Path):
    ask("first")
    Path("results/model").write_text("spoilt")
    assert ask("second") == "first"
    shutil.rmtree(folder / ".jobcache")
    assert Path("results/model").read_text() == "first"
    assert ask("third") == "third"


def test_a_job_that_fails_leaves_nothing_to_remember():
    job = {"stage": "distil", "settings": {}, "code": "c0de", "inputs": {}}
    outputs = {"model": Path("model")}
    with suppress(RuntimeError), remembered(**job, outputs=outputs):
        Path("model").write_text("half")
        raise RuntimeError
    with remembered(**job, outputs=outputs) as known:
        assert not known
        Path("model").write_text("whole")


def test_a_result_that_is_not_whole_is_made_again(folder: Path):
    ask("first")
    next((folder / ".jobcache").rglob("history")).unlink()
    assert ask("second") == "second"


def test_a_cache_that_cannot_be_written_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    (folder / ".jobcache").write_text("a file where the folder should be")
    assert ask("first") == "first"
    assert "not remembered" in caplog.text


def test_an_experiment_in_a_temporary_clone_shares_the_cache_of_its_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert job_cache() == Path(".jobcache")
    inner = folder / ".dvc/tmp/exps/tmpabc"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert job_cache() == folder / ".jobcache"
    monkeypatch.setenv("KDSTEPS_JOB_CACHE", "elsewhere")
    assert job_cache() == Path("elsewhere")
