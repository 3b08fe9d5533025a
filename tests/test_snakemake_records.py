"""Guards around a results folder: records, dead locks, and what a file says it was made with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kdsteps.errors import KdstepsError
from kdsteps.jobs import snakemake_records


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


def test_results_that_say_how_they_were_made_need_no_records(folder: Path):
    put("results/train/teacher.safetensors")
    put("results/train/teacher.provenance.json")
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


def test_records_of_another_user_become_those_of_this_one(folder, monkeypatch):
    record = put(".snakemake/metadata/cmVzdWx0cw==", "record")
    before = record.stat().st_ino
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).stat().st_ino != before)
    snakemake_records.check_records()
    assert record.stat().st_ino != before
    assert record.read_text() == "record"


@pytest.mark.parametrize("length", range(180, 196))
def test_a_record_may_have_a_name_as_long_as_names_can_be(folder, length):
    output = "x" * length
    snakemake_records.write_records([output], "distil", ["{}"], [], {})
    snakemake_records.check_records()
    assert snakemake_records.read_record(output) is not None


def test_python_in_a_rule_is_the_one_that_runs_the_workflow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    snakemake_records.use_this_python()
    snakemake_records.use_this_python()
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
