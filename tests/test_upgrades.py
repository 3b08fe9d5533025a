"""Upgrades: which results are stale and why, and accepting those where only the code changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import urlsafe_b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import REPOSITORY, TINY
from _study import Study as Folder

from kdsteps.cli.main import main
from kdsteps.cli.verify import verify
from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import write_checkpoint
from kdsteps.files.digests import file_digest
from kdsteps.files.tables import write_table
from kdsteps.files.text import write_bytes, write_json, write_text
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.accepted import ACCEPTED, accepted_lines, read_accepted, write_accepted
from kdsteps.jobs.earlier_versions import as_today
from kdsteps.jobs.provenance import (
    Provenance,
    input_digests,
    provenance_file,
    provenance_of_file,
    provenance_of_job,
)
from kdsteps.jobs.snakemake_records import checksum, read_record
from kdsteps.jobs.upgrades import accept, statuses
from kdsteps.jobs.version_lock import LOCK, lock_text
from kdsteps.places import installed_version
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

OLD = "0123456789abcdef"  # a digest of code that is not today's
ROUND_ONE = "9ae8822"


def write_result(path: str, settings: str) -> None:
    """A small file of the right format that carries settings."""
    carried, suffix = json.loads(settings), Path(path).suffix
    if suffix == ".json":
        write_json(path, {"settings": carried, "path": path, "form": "student_features"})
    elif suffix == ".parquet":
        write_table(path, {}, {}, carried, {"path": path})
    elif suffix == ".safetensors":
        write_checkpoint(path, {}, {"settings": carried, "path": path})
    else:
        write_bytes(path, path.encode())


def write_provenance(study: Study, rule: str, names: graph.Names, **changes: Any) -> None:
    """What a job's files were made from: today's settings and other code, unless given."""
    node, outputs = graph.node(study, rule, names), graph.outputs(rule, names)
    read = input_digests(rule, node.inputs)
    made = provenance_of_job(rule, node.text, OLD, read, outputs, 1000, 1001)
    replace(made, **changes).write(outputs)


def known(path: str) -> Provenance:
    """What a file was made from."""
    found = provenance_of_file(Path(path))
    assert found is not None
    return found


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study, as if made by other code."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    study = load_study()
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            for path in graph.outputs(rule, names).values():
                write_result(path, graph.settings_text(study, rule, names))
                os.utime(path, (1000, 1000))
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            write_provenance(study, rule, names)
    return study


def changed_params(**sections: Any) -> Study:
    Path("params.yaml").write_text(yaml.safe_dump(TINY | sections))
    return load_study()


def reasons(study: Study, **options: Any) -> dict[str, str]:
    """Why each job is stale, by its name."""
    return {
        " ".join([each.rule, *each.names.values()]): each.why or f"follows {each.follows}"
        for each in statuses(study)
        if each.stale
    }


def everything(status: Any) -> bool:
    return True


def run_here(status: Any) -> None:
    """Make a job's files, as `kdsteps accept` does by its command."""
    for path in status.outputs:
        write_result(path, status.node.text)
    write_provenance(load_study(), status.rule, status.names, code=status.code)


KD, REPORT = "distil pair kd 0", "report"
HISTORY = "results/distil/pair/kd/0/history.parquet"


def test_a_plan_in_an_earlier_form_is_made_again_and_its_readers_know_the_new_one(study: Study):
    plan = "results/build/pair/feature_only/plan.json"
    settings = graph.settings_text(study, "build", {"pair": "pair", "method": "feature_only"})
    write_json(plan, {"settings": json.loads(settings), "pairs": [{"student_place": {}}]})
    os.utime(plan, (1000, 1000))
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            write_provenance(study, rule, names)
    accept(study, everything, run_here)
    assert "student_features" in Path(plan).read_text()
    reader = known("results/distil/pair/feature_only/0/history.parquet")
    assert reader.inputs[plan] == file_digest(Path(plan))
    assert set(reasons(study)) == {REPORT}


def test_results_of_other_code_are_stale_because_of_it(study: Study):
    assert set(reasons(study).values()) == {"code changed"}


def test_accepted_results_are_up_to_date_and_listed_with_the_code_that_made_them(study: Study):
    done = accept(study, everything, run_here)
    assert done.refused == []
    assert set(reasons(study)) == {REPORT}
    entry = read_accepted()[HISTORY]
    assert entry.made_with == OLD
    assert entry.accepted_for == code_identity.code(
        study, "distil", {"pair": "pair", "method": "kd", "seed": "0"}
    )
    (line,) = accepted_lines(ACCEPTED)
    assert "3 distil" in line and "1 train" in line


def test_what_snakemake_compares_is_todays_after_accepting(study: Study):
    before = known(HISTORY)
    accept(study, everything, run_here)
    after, record = known(HISTORY), read_record(HISTORY)
    assert after.code != OLD and after.settings == before.settings
    assert after.inputs == before.inputs and after.files == before.files
    assert record is not None and record["code"] is None
    assert record["params"] == sorted([repr(after.code), repr(after.settings)])


def test_changed_settings_are_named_and_refused(study: Study):
    study = changed_params(methods={**TINY["methods"], "kd": {"temperature": 2.0}})
    assert (
        "options.temperature: 4.0, but params.yaml has options.temperature: 2.0"
        in reasons(study)[KD]
    )
    done = accept(study, everything, run_here)
    assert [status.names["method"] for status in done.refused] == ["kd"]
    assert known(HISTORY).code == OLD
    assert HISTORY not in read_accepted()


def test_changed_inputs_are_named_and_refused(study: Study):
    digest = "results/train/digits/big/digest.json"
    accept(study, everything, run_here)
    write_json(digest, {"teacher.safetensors": "another"})
    write_provenance(study, "train", {"dataset": "digits", "teacher": "big"})
    found = reasons(study)
    assert found[KD] == f"an input changed: {digest}"
    assert "distil pair labels 0" not in found
    assert {status.rule for status in accept(study, everything, run_here).refused} >= {
        "distil",
        "cache",
    }


def test_a_result_that_was_changed_after_it_was_made_is_refused(study: Study):
    content = bytearray(Path(HISTORY).read_bytes())
    content[100] ^= 1
    Path(HISTORY).write_bytes(content)
    (refused,) = accept(study, everything, run_here).refused
    assert HISTORY in refused.why


def test_missing_interrupted_and_unrecorded_results_are_told_apart(study: Study):
    Path(HISTORY).unlink()
    name = urlsafe_b64encode(b"results/distil/pair/labels/0/history.parquet").decode()
    write_text(Path(".snakemake/incomplete", name), "{}")
    Path("results/build/pair/feature_only/plan.provenance.json").unlink()
    found = reasons(study)
    assert found[KD] == "missing"
    assert "interrupted" in found["distil pair labels 0"]
    assert "no record of how" in found["build pair feature_only"]


def test_what_reads_stale_results_follows_them(study: Study):
    accept(study, everything, run_here)
    study = changed_params(train=TINY["train"] | {"epochs": 2})
    found = reasons(study)
    assert "train.epochs: 1" in found["train digits big"]
    assert found[KD] == "follows ['cache_outputs', 'train']"
    assert "distil pair labels 0" not in found


def test_a_job_that_reads_other_files_than_before_can_be_accepted(study: Study):
    names = {"pair": "pair", "method": "labels", "seed": "0"}
    code = code_identity.code(study, "distil", names)
    write_provenance(study, "distil", names, code=code, inputs={})
    assert reasons(study)["distil pair labels 0"] == "the list of inputs changed"
    accept(study, everything, run_here)
    digest = "results/prepare/digits/digest.json"
    assert known(HISTORY.replace("kd", "labels")).inputs == {digest: file_digest(Path(digest))}


@pytest.mark.parametrize("key", ["teacher", "dataset"])
def test_students_of_another_teacher_or_of_other_images_are_refused(study: Study, key: str):
    first = TINY["pairs"]["pair"]
    studies = {
        "models": TINY["models"] | {"other": TINY["models"]["big"]},
        "datasets": TINY["datasets"] | {"other": {"kind": "digits", "size": 16}},
    }
    study = changed_params(**studies, pairs={"pair": first | {key: "other"}, "before": first})
    assert reasons(study)[KD].startswith("was made from results/")
    done = accept(study, everything, run_here)
    assert ("distil", "kd") in {(each.rule, each.names.get("method")) for each in done.refused}
    assert HISTORY not in read_accepted()


def test_evaluations_of_students_of_one_teacher_and_of_several_differ_in_more_than_code(
    study: Study,
):
    names = {"pair": "pair", "method": "kd", "seed": "0"}
    one = TINY["pairs"]["pair"]
    several = {"dataset": "digits", "teachers": ["big", "other"], "student": "small"}
    models = TINY["models"] | {"other": TINY["models"]["big"]}
    both = {"models": models, "methods": {"labels": {}, "kd": {}}}
    digest = "results/evaluate/teachers/digits/big/digest.json"
    for before, after, why in (
        (one, several, f"was made from {digest}, which it no longer reads"),
        (several, one, f"was made without {digest}, which it now reads"),
    ):
        study = changed_params(**both, pairs={"pair": before})
        write_provenance(
            study, "evaluate", names, code=code_identity.code(study, "evaluate", names)
        )
        study = changed_params(**both, pairs={"pair": after})
        assert reasons(study)["evaluate pair kd 0"] == why
        assert names not in [
            each.names
            for each in accept(study, everything, run_here).taken
            if each.rule == "evaluate"
        ]


def test_a_result_that_was_made_again_is_no_longer_an_accepted_one(study: Study):
    accept(study, everything, run_here)
    assert HISTORY in read_accepted()
    write_table(HISTORY, {}, {}, {"made": "again"}, {})
    assert HISTORY not in read_accepted()


def test_nor_is_one_that_other_code_made_again_to_the_same_bytes(study: Study):
    accept(study, everything, run_here)
    write_provenance(study, "distil", {"pair": "pair", "method": "kd", "seed": "0"})
    assert HISTORY not in read_accepted()
    assert HISTORY.replace("kd", "labels") in read_accepted()


@pytest.mark.parametrize(
    "text", ["null", "{", '{"results": 3}', '{"results": {"a": {}}}', "[" * 10**5]
)
def test_a_damaged_list_is_named_with_what_to_do(study: Study, text: str):
    ACCEPTED.write_text(text)
    with pytest.raises(KdstepsError, match=r"accepted\.json: is not a list .* git or delete it"):
        read_accepted()


def test_a_result_of_todays_code_is_not_accepted_but_made_with_it(study: Study):
    accept(study, everything, run_here)
    entries = read_accepted()
    now = entries[HISTORY].accepted_for
    write_accepted(entries | {HISTORY: replace(entries[HISTORY], made_with=now)})
    assert entries.keys() - read_accepted().keys() == {HISTORY}


def test_accepting_after_two_upgrades_keeps_the_code_that_made_the_result(study: Study):
    accept(study, everything, run_here)
    between = "fedcba9876543210"  # the code of the first upgrade
    entries = read_accepted()
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            write_provenance(study, rule, names, code=between)
    write_accepted({name: replace(each, accepted_for=between) for name, each in entries.items()})
    assert accept(study, everything, run_here).refused == []
    assert read_accepted()[HISTORY].made_with == OLD


def test_a_result_whose_input_is_damaged_is_refused(study: Study):
    plan = Path("results/build/pair/feature_only/plan.json")
    content = bytearray(plan.read_bytes())
    content[content.index(b"path")] ^= 1
    plan.write_bytes(content)
    refused = {
        " ".join([each.rule, *each.names.values()]): each.why
        for each in accept(study, everything, run_here).refused
    }
    assert f"its input {plan} was damaged" in refused["distil pair feature_only 0"]
    assert f"{plan} was damaged" in refused["build pair feature_only"]
    assert KD not in refused


def test_a_damaged_file_that_a_job_need_not_write_is_refused_as_verify_does(study: Study):
    study = changed_params(export={"formats": ["safetensors"]})
    (names,) = graph.jobs(study, "export")
    node, outputs = graph.node(study, "export", names), graph.outputs("export", names)
    write_result(outputs["record"], node.text)
    card = Path(outputs["record"]).with_name("model_card.md")
    card.write_text("a card")
    files = {**outputs, "card": str(card)}
    code = code_identity.code(study, "export", names)
    read = input_digests("export", node.inputs)
    made = provenance_of_job("export", node.text, code, read, files, 1000, 1001)
    card.write_text("a cart")
    made.write(outputs)
    with pytest.raises(KdstepsError, match=f"{card}: was damaged or changed after its job"):
        verify(study, "export")
    replace(made, code=OLD).write(outputs)
    (refused,) = accept(study, lambda status: status.rule == "export", run_here).refused
    assert refused.why == f"{card} was damaged or changed after its job wrote it"


def test_what_stale_says_of_damaged_results_is_what_accept_does(
    study: Study, capsys: pytest.CaptureFixture[str]
):
    only = ["--stage", "distil", "--method", "kd"]
    assert main(["stale", *only]) == 0
    assert "`kdsteps accept` accepts 1 of the others" in capsys.readouterr().out
    content = bytearray(Path(HISTORY).read_bytes())
    content[len(content) // 2] ^= 1
    Path(HISTORY).write_bytes(content)
    assert main(["stale", *only]) == 0
    shown = capsys.readouterr().out
    assert f"{HISTORY} was damaged or changed after its job wrote it" in shown
    assert "kdsteps accept" not in shown
    assert main(["accept", *only]) == 2
    assert "nothing is accepted: 1 result changed or missing" in capsys.readouterr().err


def test_accepting_updates_the_lock_that_dvc_reads(study: Study, capsys: pytest.CaptureFixture):
    version = installed_version()
    LOCK.write_text(f'version: "{version}"\ncode: "of other code"\n')
    assert main(["stale"]) == 0
    assert "run `kdsteps lock` before `dvc repro`" in capsys.readouterr().out
    assert main(["accept", "--stage", "train"]) == 0
    assert LOCK.read_text() == lock_text()
    assert "kdsteps.lock: updated" in capsys.readouterr().out
    LOCK.write_text('version: "0.0.1"\ncode: "of another version"\n')
    assert main(["accept", "--stage", "cache"]) == 0
    assert "0.0.1" in LOCK.read_text()


def test_nothing_is_accepted_while_snakemake_runs(study: Study):
    hold = "from kdsteps.jobs.run_lock import begin_run; begin_run(); print(1, flush=True); input()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as run:
        assert run.stdout is not None and run.stdout.readline()
        with pytest.raises(KdstepsError, match=f"another run.*process {run.pid}"):
            accept(study, everything, run_here)
        run.kill()


def test_dvc_records_accepted_results_and_refuses_them_after_a_change(study: Study):
    accept(study, everything, run_here)
    assert verify(study, "distil") == 3
    student = HISTORY.replace("history.parquet", "student.safetensors")
    write_checkpoint(student, {}, {"settings": {"method": "another"}})
    with pytest.raises(KdstepsError, match=r"student.safetensors: was damaged or changed"):
        verify(study, "distil")


def test_dvc_takes_accepted_files_whose_settings_are_in_words_of_their_time(study: Study):
    """As if 9ae8822 had recorded a value that no job reads."""
    for rule in ("evaluate_teacher", "evaluate"):
        for names in graph.jobs(study, rule):
            today = json.loads(graph.settings_text(study, rule, names))
            older = json.dumps({"evaluate": today["evaluate"] | {"latency_runs": 5}})
            write_provenance(study, rule, names, settings=older)
    with pytest.raises(KdstepsError, match="latency_runs"):
        verify(study, "evaluate")
    accept(study, everything, run_here)
    assert verify(study, "evaluate") == 5
    changed = changed_params(evaluate={"batch_size": 3})
    with pytest.raises(KdstepsError, match="batch_size: 3"):
        verify(changed, "evaluate")


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        (["--stage", "train"], {"train", "train_check"}),
        (["--stage", "evaluate"], {"evaluate", "evaluate_teacher", "evaluate_latency"}),
        (["--method", "kd"], {"distil", "evaluate"}),
        (["--pair", "pair", "--method", "feature_only"], {"build", "distil", "evaluate"}),
        (
            ["--dataset", "digits", "--teacher", "big"],
            {"train", "train_check", "cache", "cache_outputs", "score", "evaluate_teacher"},
        ),
    ],
)
def test_the_options_of_accept_choose_jobs(study: Study, options: list[str], rules: set[str]):
    assert main(["accept", *options]) == 0
    assert {entry.rule for entry in read_accepted().values()} == rules


def test_names_that_the_study_does_not_have_are_refused(
    study: Study, capsys: pytest.CaptureFixture[str]
):
    assert main(["accept", "--method", "kdd"]) == 2
    assert (
        "--method: this study has no job for 'kdd'; did you mean 'kd'?" in capsys.readouterr().err
    )
    assert main(["stale", "--stage", "trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_stale_counts_by_stage_and_reason(study: Study, capsys: pytest.CaptureFixture[str]):
    changed_params(methods={**TINY["methods"], "kd": {"temperature": 2.0}})
    assert main(["stale"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"distil +2  code changed", shown)
    assert re.search(r"distil +1  settings changed: made with options.temperature: 4.0", shown)
    assert "kdsteps accept" in shown
    assert main(["stale", "--jobs", "--stage", "distil"]) == 0
    assert "distil pair kd 0: settings changed" in capsys.readouterr().out


def test_trials_are_chosen_by_number(study: Study, capsys: pytest.CaptureFixture[str]):
    tuned = {"kd": {"tune": {"temperature": [2.0, 8.0]}}}
    changed_params(methods=tuned, tune={"seeds": [100]})
    assert main(["stale", "--jobs", "--method", "kd", "--trial", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tune pair kd 1 100: missing",
        "0 of 1 results are up to date.",
    ]
    assert main(["stale", "--trial", "5"]) == 2
    assert "--trial: this study has no job for '5'" in capsys.readouterr().err


def test_accepting_where_settings_alone_changed_is_an_error(
    study: Study, capsys: pytest.CaptureFixture[str]
):
    changed_params(methods={**TINY["methods"], "kd": {"temperature": 2.0}})
    assert main(["accept", "--method", "kd", "--stage", "distil"]) == 2
    shown = capsys.readouterr()
    assert "options.temperature: 4.0" in shown.out
    assert "run snakemake" in shown.err


def test_a_file_of_digests_that_an_earlier_version_did_not_write_is_added(study: Study):
    digest = Path("results/train/digits/big/digest.json")
    before = digest.read_bytes()
    digest.unlink()
    assert set(reasons(study).values()) == {"code changed"}
    accept(study, everything, run_here)
    assert set(reasons(study)) == {REPORT}
    assert json.loads(digest.read_bytes()).keys() == {"teacher.safetensors", "history.parquet"}
    assert digest.read_bytes() != before
    assert digest.stat().st_mtime == 1000
    assert known(str(digest)).files["digest.json"] == file_digest(digest)


# Results of versions that wrote no provenance


def only_records(study: Study, code: str = OLD) -> None:
    """As if Snakemake's records were all that says how the results were made."""
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            node, outputs = graph.node(study, rule, names), graph.outputs(rule, names)
            provenance_file(outputs).unlink()
            for path in outputs.values():
                content = {
                    "params": sorted([repr(node.text), repr(code)]),
                    "input": sorted(node.read),
                    "input_checksums": {each: checksum(each) for each in node.read},
                    "record_format_version": 6,
                }
                name = urlsafe_b64encode(path.encode()).decode()
                write_text(Path(".snakemake/metadata", name), json.dumps(content))


def test_records_of_an_earlier_version_are_adopted(study: Study):
    was = known(HISTORY)
    only_records(study)
    assert set(reasons(study).values()) == {"code changed"}
    assert replace(known(HISTORY), started=0, ended=0) == replace(was, started=0, ended=0)


def test_a_record_that_is_about_another_file_is_not_adopted(study: Study):
    only_records(study)
    write_result(HISTORY, json.dumps({"options": {"temperature": 9}}))
    assert "no record of how it was made" in reasons(study)[KD]


def test_an_input_that_changed_after_its_record_is_noticed(study: Study):
    only_records(study)
    digest = "results/train/digits/big/digest.json"
    write_json(digest, {"settings": {}})
    assert reasons(study)[KD] == f"an input changed: {digest}"


# Settings that an earlier version wrote

STEPS = {"schedule": "steps", "epochs": 240, "optimizer": "sgd", "momentum": 0.9}


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        (STEPS | {"milestones": [150, 180, 210]}, STEPS | {"milestones": [0.625, 0.75, 0.875]}),
        (STEPS | {"milestones": [150, 180]}, STEPS | {"milestones": [0.625, 180.0]}),
        ({"schedule": "cosine", "milestones": [150], "decay": 0.1}, {"schedule": "cosine"}),
        ({"optimizer": "adamw", "momentum": 0.9, "nesterov": False}, {"optimizer": "adamw"}),
        (
            {"schedule": "cosine", "epochs": 3, "milestones": [150, 180, 210]},
            {"schedule": "cosine", "epochs": 3, "milestones": [0.625, 0.75, 0.875]},
        ),
        ({"batch_size": 4, "latency_runs": 100}, {"batch_size": 4}),
    ],
)
def test_settings_that_mean_the_same_are_taken_for_the_same(
    recorded: dict[str, Any], wanted: dict[str, Any]
):
    assert as_today({"distil": recorded, "seed": 0}, {"distil": wanted, "seed": 0}) == {
        "distil": wanted,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        (STEPS | {"milestones": [150, 180, 210]}, STEPS | {"milestones": [0.5, 0.75, 0.875]}),
        (STEPS | {"milestones": [150, 180, 210]}, STEPS | {"milestones": [0.625, 0.75]}),
        (
            STEPS | {"milestones": [150], "epochs": 200},
            STEPS | {"milestones": [0.625], "epochs": 240},
        ),
        (STEPS | {"decay": 0.1}, STEPS),
        (STEPS | {"nesterov": True}, STEPS),
        (STEPS, STEPS | {"flip": False}),
        (STEPS, STEPS | {"momentum": 0.8}),
    ],
)
def test_settings_that_mean_something_else_stay_different(
    recorded: dict[str, Any], wanted: dict[str, Any]
):
    assert as_today({"distil": recorded}, {"distil": wanted}) != {"distil": wanted}


@pytest.mark.parametrize(
    ("epochs", "warmup", "same"), [(20, 1 / 12, True), (1, 1, True), (20, 0.1, False)]
)
def test_a_warm_up_in_epochs_is_compared_with_one_in_fractions(
    epochs: int, warmup: float, same: bool
):
    distil = {"epochs": 240}
    recorded = {"distil": distil, "options": {"alpha": 1.0, "warmup_epochs": epochs}}
    wanted = {"distil": distil, "options": {"alpha": 1.0, "warmup": warmup}}
    assert (as_today(recorded, wanted) == wanted) == same


# With the real tools

KD_JOBS = {"distil": 1, "evaluate": 1, "evaluate_latency": 1, "report": 1}
UNTRAINED = {"train": TINY["train"] | {"teacher_check": "warn"}}  # one epoch does not teach much


def edit(folder: Path, module: str, old: str, new: str) -> None:
    file = folder / "kdsteps" / module
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def kdsteps(study: Folder, *arguments: str) -> str:
    return study.run(["python", "-m", "kdsteps", *arguments])


def test_a_small_missing_file_that_others_only_need_is_made_and_runs_no_other_job(study: Study):
    check = Path("results/train/digits/big/check.json")
    check.unlink()
    done = accept(study, everything, run_here)
    assert [status.rule for status in done.lacking] == ["train_check"]
    assert done.refused == []
    check.write_text("{}")
    write_provenance(study, "train_check", done.lacking[0].names, code=done.lacking[0].code)
    assert set(reasons(study)) == {REPORT}


@pytest.mark.slow
@pytest.mark.stories
def test_an_upgrade_is_listed_accepted_and_then_nothing_is_computed(tmp_path: Path):
    methods = {"labels": {}, "kd": {}}
    study = Folder.new(tmp_path / "study", TINY | UNTRAINED | {"methods": methods})
    study.record()
    study.commit()
    study.executed()
    edit(study.path, "training/loop.py", 'log.info("', 'log.info("! ')
    assert "up to date" in kdsteps(study, "stale")
    assert study.planned() == {}
    edit(study.path, "methods/kd.py", "temperature**2", "2 * temperature")
    assert re.search(r"distil +1  code changed", kdsteps(study, "stale"))
    assert study.planned() == KD_JOBS
    assert "accepted as is: 1 distil" in kdsteps(study, "accept")
    assert study.planned() == {}
    page = (study.path / "results/report/index.html").read_text()
    assert "accepted as is: 1 distil" in page
    study.executed()
    study.dvc("repro")
    assert study.executed() == {}
    assert "up to date" in study.dvc("status")
    study.change(methods={"labels": {}, "kd": {"temperature": 2.0}})
    assert study.planned() == KD_JOBS
    study.snakemake()
    assert "accepted as is" not in (study.path / "results/report/index.html").read_text()


@pytest.mark.slow
@pytest.mark.stories
def test_results_of_the_first_round_are_taken_over(tmp_path: Path):
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{ROUND_ONE}^{{commit}}"], cwd=REPOSITORY, capture_output=True
    )
    if known.returncode:
        pytest.skip(f"the history does not reach back to {ROUND_ONE}")
    old = tmp_path / "old"
    old.mkdir()
    archive = subprocess.run(
        ["git", "archive", ROUND_ONE], cwd=REPOSITORY, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", old], input=archive.stdout, check=True)
    methods = {"labels": {}, "kd": {}, "feature_only": {}}
    steps = {"epochs": 8, "schedule": "steps", "milestones": [5, 6, 7]}
    train = {"epochs": 1, "batch_size": 256, "schedule": "cosine"}
    params = TINY | {"methods": methods, "train": train, "distil": TINY["distil"] | steps}
    (old / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    Folder(old).run(["snakemake", "--cores", "2", "--resources", "gpu=1"], PYTHONPATH=str(old))
    study = Folder.new(tmp_path / "study", params | {"train": train | UNTRAINED["train"]})
    for name in ("results", ".snakemake", "logs"):
        subprocess.run(["cp", "-a", old / name, study.path], check=True)
    students = study.bytes_of("results/distil/**/student.safetensors")
    said = kdsteps(study, "accept")
    assert not {"train", "distil"} & set(study.planned()), said
    study.snakemake()
    assert study.planned() == {}
    assert study.bytes_of("results/distil/**/student.safetensors") == students
    study.dvc("repro")
    assert study.bytes_of("results/distil/**/student.safetensors") == students
