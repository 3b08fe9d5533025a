"""Guards around a results folder: records, dead locks, and what a file says it was made with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _study import TINY

from kdsteps.cli.verify import verify
from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs import graph, snakemake_records
from kdsteps.study.study import parse_study


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_TRUST_RESULTS", raising=False)
    return tmp_path


def put(path: str, text: str = "x") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_folder_without_results_needs_no_records(folder: Path):
    snakemake_records.check_records()


def test_results_without_records_are_refused_with_the_way_out(folder: Path):
    put("results/train/teacher.safetensors")
    with pytest.raises(KdstepsError, match=r"results/train/teacher\.safetensors.*dvc checkout"):
        snakemake_records.check_records()


@pytest.mark.parametrize("place", ["metadata", "incomplete"])
def test_any_record_of_a_run_will_do(folder: Path, place: str):
    put("results/train/teacher.safetensors")
    put(f".snakemake/{place}/cmVzdWx0cw==")
    snakemake_records.check_records()


@pytest.mark.parametrize("file", ["results/report/metrics.json", "results/train/.t.1.part"])
def test_what_git_keeps_and_what_was_never_finished_need_no_records(folder: Path, file: str):
    put(file)
    snakemake_records.check_records()


def test_a_user_may_vouch_for_results(folder: Path, monkeypatch: pytest.MonkeyPatch):
    put("results/train/teacher.safetensors")
    monkeypatch.setenv("KDSTEPS_TRUST_RESULTS", "1")
    snakemake_records.check_records()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_records_that_are_links_into_another_store_become_files_of_their_own(folder: Path, link):
    stored = put("store/object", "record").resolve()
    record = Path(".snakemake/metadata/record")
    record.parent.mkdir(parents=True)
    link(stored, record)
    snakemake_records.check_records()
    record.write_text("rewritten in place")
    assert stored.read_text() == "record"


HOLD = """
import sys
from kdsteps.jobs.snakemake_records import forget_dead_locks
forget_dead_locks()
print("ready", flush=True)
sys.stdin.read()
"""


def test_locks_of_the_dead_are_forgotten_and_those_of_the_living_kept(folder: Path):
    lock = put(".snakemake/locks/0.input.lock")
    path = os.pathsep.join(
        [str(Path(snakemake_records.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes) as living:
        assert living.stdout.readline() == b"ready\n"
        assert not lock.exists(), "nobody lived when it started"
        put(str(lock))
        snakemake_records.forget_dead_locks()
        assert lock.exists()
        living.kill()
    release()
    snakemake_records.forget_dead_locks()
    assert not lock.exists()
    release()


def release() -> None:
    while snakemake_records._alive:
        os.close(snakemake_records._alive.pop())


def test_python_in_a_rule_is_the_one_that_runs_the_workflow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    snakemake_records.use_this_python()
    snakemake_records.use_this_python()
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"


def test_files_are_verified_against_the_settings_of_their_jobs(folder: Path):
    study = parse_study({**TINY, "methods": {"feature_only": {}}})
    names = {"pair": "pair", "method": "feature_only"}
    path = graph.outputs("build", names)["plan"]
    with pytest.raises(KdstepsError, match=re.escape(f"{path}: not found; run snakemake")):
        verify(study, "build")
    settings = json.loads(graph.settings_text(study, "build", names))
    write_json(path, {"settings": settings})
    assert verify(study, "build") == 1
    settings["build"]["projector"] = "three_layer"
    write_json(path, {"settings": settings})
    wrong = 'made with build.projector: "three_layer", but params.yaml has build.projector: "conv"'
    with pytest.raises(KdstepsError, match=re.escape(wrong)):
        verify(study, "build")
