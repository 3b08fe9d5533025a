"""Which exports a study has, what they read, and what is known before the first job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _commands import STUDY, write_study

from kdsteps.cli.resolve import resolve
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import all_or_none
from kdsteps.jobs import code_identity, early_checks, graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.early_checks import check_study
from kdsteps.jobs.settings import ExportSettings
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

RUNS = [f"{method}/{seed}" for method in STUDY["methods"] for seed in STUDY["seeds"]]


def study(**export: Any) -> Study:
    return parse_study(STUDY | {"export": export})


def exported(**export: Any) -> list[str]:
    return [names["student"] for names in graph.jobs(study(**export), "export")]


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        ("best", ["best"]),
        ("all", RUNS),
        (["kd"], ["kd/0", "kd/1"]),
        (["pair/kd/1", "best", "pair/labels/0"], ["best", "labels/0", "kd/1"]),
    ],
)
def test_runs_are_the_best_all_or_those_that_are_named(runs: Any, found: list[str]):
    assert exported(runs=runs) == found


@pytest.mark.parametrize("section", [{"export": None}, {"export": {}}])
def test_a_section_without_values_exports_the_best_run_of_each_pair(section):
    found = parse_study(STUDY | section)
    assert [names["student"] for names in graph.jobs(found, "export")] == ["best"]
    assert parse_study(found.described).described == found.described


def test_without_the_section_nothing_is_exported_and_no_job_reads_or_shows_it():
    without = parse_study(STUDY)
    assert graph.jobs(without, "export") == []
    assert "export" not in without.described
    assert graph.inputs(without, "report", {})["exports"] == []


def test_a_method_that_is_called_best_is_named_run_by_run():
    methods = {"labels": {}, "best": {"method": "labels"}}
    for runs, found in (("best", ["best"]), (["pair/best/1"], ["best/1"])):
        chosen = parse_study(STUDY | {"methods": methods, "export": {"runs": runs}})
        assert [names["student"] for names in graph.jobs(chosen, "export")] == found


@pytest.mark.parametrize(
    ("export", "place", "words"),
    [
        ({"runs": ["kdd"]}, "export.runs", ["'kdd'", "did you mean 'kd'"]),
        ({"runs": ["pair/kd/7"]}, "export.runs", ["'pair/kd/7'", "pair/kd/"]),
        ({"runs": []}, "export.runs", ["at least"]),
        ({"runs": "worst"}, "export.runs", ["'worst'"]),
        ({"formats": ["onx"]}, "export.formats", ["'onx'", "onnx"]),
        ({"formats": ["timm"], "int8": True}, "export.int8", ["onnx"]),
        ({"int4": True}, "export.int4", ["int8"]),
    ],
)
def test_a_mistake_in_the_section_is_said(export, place, words):
    with pytest.raises(KdstepsError) as raised:
        study(**export)
    assert place in str(raised.value)
    assert all(word in str(raised.value) for word in words)


def test_the_best_is_chosen_by_a_job_that_reads_every_student_of_the_pair():
    found = graph.inputs(study(), "export", {"pair": "pair", "student": "best"})
    names = [
        {"pair": "pair", "method": m, "seed": str(s)}
        for m in sorted(STUDY["methods"])
        for s in (0, 1)
    ]
    assert found["students"] == [graph.outputs("distil", each)["model"] for each in names]
    assert found["histories"] == [graph.outputs("distil", each)["history"] for each in names]
    assert found["measures"] == [graph.outputs("evaluate", each)["measures"] for each in names]
    one = graph.inputs(study(runs=["pair/kd/1"]), "export", {"pair": "pair", "student": "kd/1"})
    assert len(one["students"]) == len(one["predictions"]) == 1
    assert len(one["measures"]) == 2, "the other seeds of its method are in the record"
    assert "teacher" in one and "histories" not in one


def test_runs_have_the_order_of_the_files_after_the_settings_were_json():
    chosen = parse_study(STUDY | {"methods": {"labels": {}, "kd": {}, "at": {}}, "export": {}})
    node = graph.node(chosen, "export", {"pair": "pair", "student": "best"})
    assert isinstance(node.settings, ExportSettings)
    assert (
        ExportSettings.model_validate_json(node.text).measured_runs == node.settings.measured_runs
    )
    pairs = zip(node.settings.measured_runs, node.inputs["students"], strict=True)
    assert all(f"/{run}/" in path for run, path in pairs)


def test_another_order_of_seeds_exports_nothing_again():
    names = {"pair": "pair", "student": "best"}
    one, other = (
        graph.node(parse_study(STUDY | {"seeds": seeds, "export": {}}), "export", names)
        for seeds in ([0, 1], [1, 0])
    )
    assert one == other


def test_code_of_every_network_that_may_be_exported_counts():
    methods = {"labels": {}, "simkd": {}}
    chosen = parse_study(STUDY | {"methods": methods, "export": {"runs": ["best", "labels"]}})

    def roots(run: str) -> set[str]:
        return set(code_identity.roots(chosen, "export", {"pair": "pair", "student": run}))

    assert "kdsteps.models.families.simkd:build" in roots("best")
    assert "kdsteps.models.families.simkd:build" not in roots("labels/0")
    assert "kdsteps.stages.export:run" in roots("labels/0")


def test_what_onnx_needs_is_missed_before_the_first_job(monkeypatch):
    monkeypatch.setattr(early_checks, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(KdstepsError, match=r"export.formats has onnx.*kdsteps\[export\]"):
        check_study(study())
    check_study(study(formats=["safetensors"]))
    check_study(parse_study(STUDY))


def test_an_artifact_of_dvc_that_the_study_does_not_export_is_said(tmp_path, monkeypatch, capsys):
    from argparse import Namespace

    monkeypatch.chdir(tmp_path)
    given = Namespace(params="params.yaml", folder="settings")

    def written(path: str, **sections: Any) -> None:
        write_study(tmp_path, **sections)
        Path("dvc.yaml").write_text(f"artifacts: {{student: {{path: {path}, type: model}}}}")

    written("results/export/other/best", export={})
    resolve(given)
    said = capsys.readouterr().err
    assert "student is results/export/other/best" in said and "export/pair/best" in said
    written("results/export/pair/best", export={})
    resolve(given)
    written("results/export/other/best")
    resolve(given)  # nothing is exported
    assert capsys.readouterr().err == ""


# files that a job need not write


def test_a_file_that_is_not_written_again_is_removed(tmp_path: Path):
    paths = {"always": tmp_path / "always", "maybe": tmp_path / "maybe"}
    for names in (("always", "maybe"), ("always",)):
        with all_or_none(paths, {"maybe"}) as drafts:
            for name in names:
                drafts[name].write_text("written")
        assert {path.name for path in tmp_path.iterdir()} == set(names)
    with pytest.raises(FileNotFoundError), all_or_none(paths, {"maybe"}) as drafts:
        drafts["maybe"].write_text("written")
    assert {path.name for path in tmp_path.iterdir()} == {"always"}


def test_the_job_cache_has_the_files_that_were_written(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("KDSTEPS_JOB_CACHE", str(tmp_path / "cache"))
    paths = {"record": tmp_path / "record", "onnx": tmp_path / "onnx", "int8": tmp_path / "int8"}
    job = ("export", {}, "code", {}, paths, {"onnx", "int8"})
    with remembered(*job) as known:
        assert not known
        for name in ("record", "onnx"):
            paths[name].write_text(name)
    paths["onnx"].unlink()
    paths["int8"].write_text("of another job")
    with remembered(*job) as known:
        assert known
    assert paths["onnx"].read_text() == "onnx"
    assert not paths["int8"].exists()
