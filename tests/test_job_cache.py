"""The job cache: the same job is done once, another job is never taken for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdsteps.cli.main import main
from kdsteps.jobs import cache
from kdsteps.jobs.cache import cached_results, job_cache, remembered, shrink


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)
    (tmp_path / "data").write_text("images")
    (tmp_path / "teacher").write_text("weights")
    return tmp_path


def run_job(text: str = "student", **changed: Any) -> str | None:
    """The output of a job, made as `text` unless it was remembered; None where it was not made."""
    job: dict[str, Any] = {
        "rule": "distil",
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
    assert run_job("first") == "first"
    assert run_job("second") == "first"


def test_prepared_images_are_known_by_their_digest_and_not_read(folder):
    (folder / "digest").write_text("of the images")
    inputs = {"images": "no such file", "images_digest": "digest", "teacher": "teacher"}
    assert run_job("first", inputs=inputs) == "first"
    assert run_job("second", inputs=inputs) == "first"
    (folder / "digest").write_text("of others")
    assert run_job("third", inputs=inputs) == "third"


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"learning_rate": 0.01, "weight_decay": 0.05}},
        {"code": "0the"},
        {"rule": "train"},
        {"inputs": {"data": "data"}},
        {"inputs": {"data": "teacher", "teacher": "data"}},
        {"inputs": {"data": ["data", "data"], "teacher": "teacher"}},
    ],
)
def test_another_job_is_not_taken_for_it(changed: dict[str, Any]):
    run_job("first")
    assert run_job("second", **changed) == "second"


def test_inputs_count_by_content_and_not_by_name_or_age(folder: Path):
    run_job("first")
    shutil.copyfile("teacher", "moved")
    assert run_job("second", inputs={"data": "data", "teacher": "moved"}) == "first"
    (folder / "teacher").write_text("other weights")
    assert run_job("third") == "third"


def test_a_checkpoint_that_the_settings_name_counts_by_content(folder: Path):
    options = {"depth": 8, "checkpoint": "teacher"}
    job = {
        "rule": "train",
        "settings": {"model": {"options": options}},
        "inputs": {"data": "data"},
    }
    assert run_job("first", **job) == "first"
    assert run_job("second", **job) == "first"
    (folder / "teacher").write_text("other weights")
    assert run_job("third", **job) == "third"


@pytest.mark.parametrize(
    "changed",
    [{"code": None}, {"rule": "prepare"}, {"rule": "cache"}, {"rule": "evaluate_latency"}],
)
def test_jobs_of_unknown_code_with_large_files_or_of_this_machine_alone_are_not_cached(
    changed: dict[str, Any],
):
    run_job("first", **changed)
    assert run_job("second", **changed) == "second"


def test_results_are_copies_so_that_either_side_may_be_deleted_or_changed(folder: Path):
    run_job("first")
    Path("results/model").write_text("spoilt")
    assert run_job("second") == "first"
    shutil.rmtree(folder / ".jobcache")
    assert Path("results/model").read_text() == "first"
    assert run_job("third") == "third"


def test_a_job_that_fails_leaves_nothing_to_remember():
    job = {"rule": "distil", "settings": {}, "code": "c0de", "inputs": {}}
    outputs = {"model": Path("model")}
    with suppress(RuntimeError), remembered(**job, outputs=outputs):
        Path("model").write_text("half")
        raise RuntimeError
    with remembered(**job, outputs=outputs) as known:
        assert not known
        Path("model").write_text("whole")


def test_a_result_that_is_not_whole_is_made_again(folder: Path):
    run_job("first")
    next((folder / ".jobcache").rglob("history")).unlink()
    assert run_job("second") == "second"


def test_a_cache_that_cannot_be_written_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    (folder / ".jobcache").write_text("a file where the folder should be")
    assert run_job("first") == "first"
    assert "not cached" in caplog.text


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


def entry(folder: Path) -> Path:
    """The folder of the one result in the cache."""
    (result,) = (folder / ".jobcache").glob("*/*")
    return result


@pytest.mark.parametrize("text", ["", "first but edited", "FIRST"])
def test_a_damaged_or_edited_result_is_dropped_and_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture, text: str
):
    run_job("first")
    (entry(folder) / "model").write_text(text)
    assert run_job("second") == "second"
    assert "damaged (model" in caplog.text
    caplog.clear()
    assert run_job("third") == "second"
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rule": "distil", "files": {}}', None])
def test_an_entry_that_does_not_say_what_it_holds_is_made_again(folder: Path, content: str | None):
    run_job("first")
    contents = entry(folder) / "contents.json"
    contents.unlink() if content is None else contents.write_text(content)
    assert run_job("second") == "second"
    assert run_job("third") == "second"


def test_an_entry_in_the_place_of_another_is_not_taken_for_it(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    run_job("first")
    first = entry(folder)
    run_job("second", code="0the")
    (second,) = [found.folder for found in cached_results() if found.folder.name != first.name]
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert run_job("third") == "third"
    assert "that of another entry" in caplog.text
    assert run_job("fourth") == "third"
    assert run_job("fifth", code="0the") == "second"


def test_an_entry_of_an_earlier_version_which_does_not_have_its_key_is_used(folder: Path):
    run_job("first")
    contents = entry(folder) / "contents.json"
    content = json.loads(contents.read_text())
    assert content.pop("key") == contents.parent.name
    contents.write_text(json.dumps(content))
    assert run_job("second") == "first"


def test_a_damaged_result_leaves_what_is_there_until_the_job_is_done(folder: Path):
    run_job("first")
    (entry(folder) / "history").write_text("damaged")
    outputs = {"model": Path("results/model"), "history": Path("results/history")}
    job = {"rule": "distil", "settings": {"learning_rate": 0.05, "weight_decay": 0.01}}
    inputs = {"data": "data", "teacher": "teacher"}
    Path("results/model").write_text("there")
    with remembered(**job, code="c0de", inputs=inputs, outputs=outputs) as known:
        assert not known
        assert Path("results/model").read_text() == "there"


def test_the_results_that_were_not_used_for_longest_are_deleted_first(folder: Path):
    for number in range(3):
        run_job(f"{number}" * 1000, code=f"c0de{number}")
        newest = max(job_cache().glob("*/*"), key=lambda result: result.stat().st_mtime_ns)
        for file in newest.iterdir():
            os.utime(file, (1000 + number, 1000 + number))
    assert run_job("again", code="c0de0")[0] == "0"  # used now
    removed = shrink(sum(result.size for result in cached_results()) - 1)
    assert len(removed) == 1
    assert run_job("new", code="c0de0")[0] == "0"
    assert run_job("new", code="c0de2")[0] == "2"
    assert run_job("new", code="c0de1") == "new"


def test_nothing_is_deleted_within_the_limit_and_everything_at_0(folder: Path):
    run_job("first")
    assert shrink(10**6) == []
    assert len(shrink(0)) == 1
    assert cached_results() == []
    assert run_job("second") == "second"


def test_what_a_killed_job_left_is_deleted_a_day_later(folder: Path):
    fresh, old = (folder / ".jobcache/ab" / f"{name}.part" for name in ("fresh", "old"))
    fresh.mkdir(parents=True)
    old.mkdir()
    os.utime(old, (time.time() - cache._ABANDONED - 1,) * 2)
    assert cached_results() == []
    shrink(10**6)
    assert fresh.exists() and not old.exists()


def test_the_command_shows_sizes_by_stage_and_keeps_to_a_limit(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    run_job("x" * 4950)
    run_job("x" * 4950, rule="train")
    assert main(["jobcache"]) == 0
    shown = capsys.readouterr().out
    assert "distil" in shown and "train" in shown and "2 results" in shown
    assert main(["jobcache", "--limit", "12 KiB"]) == 0
    assert "deleted 1 result, 9.9 KiB" in capsys.readouterr().out
    assert len(cached_results()) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["jobcache", "--limit", "much"])
    assert "5GiB" in capsys.readouterr().err


def test_results_that_cannot_be_deleted_are_not_counted_as_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_job("x" * 4950)
    monkeypatch.setattr(cache, "_remove", lambda folder: None)  # they belong to another user
    assert main(["jobcache", "--limit", "1 KiB"]) == 2
    shown = capsys.readouterr()
    assert "deleted 0 results, 0 B" in shown.out and "1 result, 9.9 KiB" in shown.out
    assert "has 9.9 KiB, more than --limit" in shown.err and "writable" in shown.err


def test_two_processes_that_make_and_delete_the_same_result_do_not_disturb_each_other(folder: Path):
    program = """
import sys
from pathlib import Path
from kdsteps.jobs.cache import remembered, shrink
for turn in range(60):
    outputs = {"model": Path(sys.argv[1])}
    with remembered("distil", {}, "c0de", {"data": "data"}, outputs) as known:
        if not known:
            outputs["model"].write_text("student" * 1000)
    assert outputs["model"].read_text() == "student" * 1000
    if turn % 5 == 0:
        shrink(0)
"""
    jobs = [
        subprocess.Popen([sys.executable, "-c", program, name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    for job in jobs:
        said = job.communicate()[1]
        assert job.returncode == 0, said
        assert "damaged" not in said
    assert not list(job_cache().glob("*/*.part"))
