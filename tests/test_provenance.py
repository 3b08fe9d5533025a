"""What results were made from: damage and foreign files are noticed, records follow from it."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from _study import TINY

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.cli.running import run_call
from kdsteps.cli.verify import verify
from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.provenance import (
    check_input,
    input_digests,
    provenance_file,
    provenance_of_job,
    read_provenance,
)
from kdsteps.jobs.restoring import restore_records
from kdsteps.jobs.snakemake_records import read_record
from kdsteps.jobs.writable import let_jobs_write
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

TEACHER = Path("results/train/digits/big/teacher.safetensors")
STUDENT = Path("results/distil/pair/kd/0/student.safetensors")
MEASURES = Path("results/evaluate/students/pair/kd/0/measures.json")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study whose files are small stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_TRUST_RESULTS", raising=False)
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    study = load_study()
    nodes = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
    for rule, names in nodes:
        for path in graph.outputs(rule, names).values():
            write_json(path, {"path": path})
    for rule, names in nodes:
        write(study, rule, names)
    assert restore_records(study) == []
    return study


def write(study: Study, rule: str, names: graph.Names, **changes: Any) -> None:
    node, outputs = graph.node(study, rule, names), graph.outputs(rule, names)
    code = code_identity.code(study, rule, names)
    read = input_digests(rule, node.inputs)
    made = provenance_of_job(rule, node.text, code, read, outputs, 1, 2)
    replace(made, **changes).write(outputs)


KD = {"pair": "pair", "method": "kd", "seed": "0"}


def test_what_a_reader_found_damaged_is_moved_aside_when_the_next_run_begins(study: Study):
    content = bytearray(STUDENT.read_bytes())
    content[5] ^= 1
    STUDENT.write_bytes(content)
    assert restore_records(study) == [], "of large files, planning compares the size alone"
    for _ in range(2):  # two jobs of one run
        with pytest.raises(KdstepsError, match="was damaged or changed"):
            check_input(STUDENT)
    (said,) = restore_records(study)
    assert said.startswith(f"{STUDENT}: was damaged or changed; its job will run again")
    assert not STUDENT.exists()


def test_every_flipped_bit_and_every_cut_is_noticed_by_a_reader(study: Study):
    content, random_ = STUDENT.read_bytes(), random.Random(0)
    for _ in range(50):
        damaged = bytearray(content)
        damaged[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        STUDENT.write_bytes(damaged)
        with pytest.raises(KdstepsError, match=r"student\.safetensors: was damaged or changed"):
            check_input(STUDENT)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        STUDENT.write_bytes(content[:size])
        with pytest.raises(KdstepsError, match="snakemake makes the file again"):
            check_input(STUDENT)
    STUDENT.write_bytes(content)
    check_input(STUDENT)
    assert restore_records(study) == []  # it is whole again, which deletes the mark
    assert not list(STUDENT.parent.glob("*.damaged"))


def test_a_result_of_other_settings_is_refused_by_its_readers(study: Study):
    node = graph.node(study, "evaluate", KD)
    (expected,) = code_identity.identities(study, node)["model"]
    check_input(STUDENT, expected)
    settings = json.loads(graph.settings_text(study, "distil", KD))
    settings["options"]["temperature"] = 2.0
    write(study, "distil", KD, settings=json.dumps(settings, sort_keys=True))
    with pytest.raises(KdstepsError, match="made with other settings or code"):
        check_input(STUDENT, expected)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": "x"}', None])
def test_a_damaged_provenance_is_as_good_as_none(study: Study, damage: bytes | None):
    file = provenance_file(graph.outputs("distil", KD))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"4.0", b"5.0") if damage is None else damage)
    assert read_provenance(file) is None


def records(study: Study) -> list[Any]:
    return [read_record(path) for stage in graph.STAGES for path in graph.all_outputs(study, stage)]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"[]", b'{"params": null}'])
def test_lost_and_damaged_records_are_rebuilt(study: Study, content: bytes | None):
    before = records(study)
    for record in sorted(Path(".snakemake/metadata").iterdir())[::2]:
        record.unlink()
        if content is not None:
            record.write_bytes(content)
    assert restore_records(study) == []
    assert records(study) == before


def test_a_record_that_says_more_than_the_result_is_corrected(study: Study):
    """As if a job of a killed run had written its file after the next run's job."""
    settings = json.loads(graph.settings_text(study, "distil", KD))
    settings["options"]["temperature"] = 2.0
    write(study, "distil", KD, settings=json.dumps(settings, sort_keys=True))
    restore_records(study)
    record = read_record(str(STUDENT))
    assert record is not None
    assert '"temperature": 2.0' in " ".join(record["params"])


def test_an_input_that_is_not_what_a_result_was_made_from_makes_snakemake_run_the_job(
    study: Study,
):
    digest = TEACHER.with_name("digest.json")
    write_json(digest, {"another": "teacher"})
    write(study, "train", {"dataset": "digits", "teacher": "big"})
    restore_records(study)
    record = read_record(str(STUDENT))
    assert record is not None
    assert str(digest) not in record["input"]
    untouched = read_record(str(STUDENT).replace("kd", "labels"))
    node = graph.node(study, "distil", {**KD, "method": "labels"})
    assert untouched is not None
    assert untouched["input"] == sorted(node.read)


def test_records_of_other_results_are_replaced_by_those_of_the_results(study: Study):
    """As after `git checkout` and `dvc checkout`, where only the inputs differ."""
    record = Path(".snakemake/metadata", _record_name(str(MEASURES)))
    before = record.read_bytes()
    model = STUDENT.with_name("digest.json")
    content = model.read_bytes()
    write_json(model, {"another": "student"})
    write(study, "distil", KD)
    write(study, "evaluate", KD)
    restore_records(study)
    assert record.read_bytes() != before
    model.write_bytes(content)
    write(study, "distil", KD)
    write(study, "evaluate", KD)
    restore_records(study)
    assert json.loads(record.read_bytes()) == json.loads(before)


def test_a_record_is_completed_when_a_missing_input_is_back(study: Study):
    before = records(study)
    content = MEASURES.read_bytes()
    MEASURES.unlink()
    restore_records(study)
    MEASURES.write_bytes(content)
    restore_records(study)
    assert records(study) == before


def test_files_of_the_report_that_git_changed_stay_and_the_report_runs_again(study: Study):
    file = Path("results/report/metrics.json")
    content = file.read_bytes()
    file.write_text('{"of": "another commit"}')
    (said,) = restore_records(study)
    assert str(file) in said
    assert file.exists()
    record = read_record("results/report/index.html")
    assert record is not None and record["params"] == []
    file.write_bytes(content)
    assert restore_records(study) == []
    record = read_record("results/report/index.html")
    assert record is not None and len(record["params"]) == 2


def test_a_truncated_file_is_moved_aside_before_anything_runs(study: Study):
    MEASURES.write_bytes(MEASURES.read_bytes()[:-1])
    (said,) = restore_records(study)
    assert str(MEASURES) in said
    assert not MEASURES.exists()


def test_a_result_of_unknown_origin_is_made_again_unless_the_user_vouches_for_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    provenance_file(graph.outputs("distil", KD)).unlink()
    for path in graph.outputs("distil", KD).values():
        Path(".snakemake/metadata", _record_name(path)).unlink()
    (said,) = restore_records(study)
    assert str(STUDENT) in said
    assert read_record(str(STUDENT))["params"] == []  # type: ignore[index]
    monkeypatch.setenv("KDSTEPS_TRUST_RESULTS", "1")
    assert restore_records(study) == []
    assert len(read_record(str(STUDENT))["params"]) == 2  # type: ignore[index]


def _record_name(path: str) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(path.encode()).decode()


def test_a_result_is_refused_if_a_file_that_its_job_reads_is_changed_meanwhile(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    before = STUDENT.read_bytes()

    def run(job: Any) -> None:  # while `dvc checkout` runs, for instance
        job.outputs["model"].write_text("made from the earlier teacher")
        write_json(job.inputs["teacher_digest"], {"of": "another teacher"})

    stage = SimpleNamespace(run=run)
    monkeypatch.setattr("kdsteps.cli.running.import_module", lambda name: stage)
    call = call_of(study, "distil", KD)
    call = replace(call, code=None, outputs={"model": STUDENT})
    with pytest.raises(KdstepsError, match=r"big/digest.json: was changed while a job read it"):
        run_call(call)
    assert STUDENT.read_bytes() == before


def test_a_clock_that_is_set_back_does_not_shorten_a_job(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    def run(job: Any) -> None:
        job.outputs["model"].write_text("a student")
        monkeypatch.setattr(time, "time", lambda: 0.0)

    stage = SimpleNamespace(run=run)
    monkeypatch.setattr("kdsteps.cli.running.import_module", lambda name: stage)
    call = call_of(study, "distil", KD)
    run_call(replace(call, code=None, outputs={"model": STUDENT}))
    known = read_provenance(provenance_file({"model": STUDENT}))
    assert known is not None
    assert known.started > 0
    assert known.ended >= known.started


def test_dvc_records_only_files_that_their_jobs_wrote_for_this_study(study: Study):
    assert verify(study, "distil") == 3
    write(study, "distil", KD, code="0123456789abcdef")
    with pytest.raises(KdstepsError, match=r"student.safetensors: was made by different code"):
        verify(study, "distil")
    settings = json.loads(graph.settings_text(study, "distil", KD))
    settings["options"]["temperature"] = 2.0
    write(study, "distil", KD, settings=json.dumps(settings, sort_keys=True))
    wrong = r"student.safetensors: was made with options.temperature: 2.0, but params.yaml has"
    with pytest.raises(KdstepsError, match=wrong):
        verify(study, "distil")
    STUDENT.unlink()
    with pytest.raises(KdstepsError, match=r"student.safetensors: not found; run snakemake"):
        verify(study, "distil")


def test_whoever_may_only_read_a_study_may_check_it(study: Study, monkeypatch, capsys):
    shutil.rmtree("results/tune", ignore_errors=True)  # without jobs
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert main(["verify", "tune", "distil"]) == 0
    assert capsys.readouterr().out.startswith("tune: 0 jobs match params.yaml\n")


def test_nor_does_it_record_files_that_were_made_from_those_of_another_job(study: Study):
    other = KD | {"method": "labels"}
    made = [graph.outputs("evaluate", names) for names in (KD, other)]
    for here, there in zip(
        *([*files.values(), provenance_file(files)] for files in made), strict=True
    ):
        for source, target in ((here, "aside"), (there, here), ("aside", there)):
            Path(source).rename(target)
    wrong = r"kd/0/measures.json: was made from other files .*distil/pair/\w+/0/digest.json"
    with pytest.raises(KdstepsError, match=wrong):
        verify(study, "evaluate")


def test_nor_files_of_which_an_input_was_made_again(study: Study):
    files = graph.outputs("distil", KD)
    write_json(Path(files["digest"]), {"of": "another student"})
    write(study, "distil", KD)
    assert verify(study, "distil") == 3
    with pytest.raises(KdstepsError, match=r"kd/0/measures.json: was made from other files"):
        verify(study, "evaluate")


def test_files_of_another_user_are_replaced_only_where_jobs_will_write_new_ones(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    log = Path("logs/distil/pair/kd/0.txt")
    log.parent.mkdir(parents=True)
    log.write_text("of the earlier attempt")
    forbid = {path.absolute() for path in (log, *Path("results").rglob("*.*"))}
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() not in forbid)
    write(study, "distil", KD, code="0123456789abcdef")
    write(study, "report", {}, code="0123456789abcdef")
    page = Path(graph.outputs("report", {})["page"])
    monkeypatch.setattr("kdsteps.jobs.writable.replace_by_copy", replaced := Mock())
    let_jobs_write(study)
    found = {call.args[0] for call in replaced.call_args_list}
    assert {STUDENT, log, page, MEASURES} <= found, "what reads a stale result is stale as well"
    assert not {path for path in found if "labels" in path.parts}


def test_results_that_cannot_be_written_are_refused_if_jobs_will_run(
    study: Study, monkeypatch: pytest.MonkeyPatch
):
    place = STUDENT.parent.absolute()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != place)
    let_jobs_write(study)
    write(study, "distil", KD, code="0123456789abcdef")
    said = f"^{STUDENT}: cannot be written; make the folder {place} writable$"
    with pytest.raises(KdstepsError, match=said):
        let_jobs_write(study)
