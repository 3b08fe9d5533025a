"""A pair with several teachers: what is refused, which jobs there are, and such a study."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _commands import NET, STUDY, write_study
from _prepared import costs_of, with_noise_for_testing
from _study import TINY
from _study import Study as Folder

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.cli.running import run_call
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.trials import ranked, trials_of
from kdsteps.files.checkpoints import read_checkpoint, read_checkpoint_header, write_checkpoint
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs import code_identity, forecasts, graph, job_needs, storage
from kdsteps.jobs.inputs import input_paths
from kdsteps.jobs.job import Job
from kdsteps.jobs.outputs import optional_outputs
from kdsteps.jobs.settings import AuditSettings
from kdsteps.models import build_model
from kdsteps.stages import distil, export, train, tune
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

SEVERAL = {"dataset": "digits", "teachers": ["big", "other"], "student": "small"}
MODELS = {"big": NET, "other": NET | {"train": {"seed": 1}}, "small": NET}
METHODS: dict[str, Any] = {"labels": {}, "kd": {}}


def study(*, several: Mapping[str, Any] | None = None, **sections: Any) -> Study:
    """The small study with a second pair, which has two teachers."""
    pairs = STUDY["pairs"] | {"both": SEVERAL | dict(several or {})}
    return parse_study(STUDY | {"models": MODELS, "methods": METHODS, "pairs": pairs} | sections)


# what is refused


@pytest.mark.parametrize(
    ("several", "message"),
    [
        ({"teachers": None}, "pairs.both.teacher is missing; .* or set `teachers`"),
        ({"teacher": "big"}, "pairs.both has teacher and teachers; delete one"),
        ({"teachers": ["big"]}, "pairs.both.teachers"),
        ({"teachers": ["big", "big"]}, "pairs.both.teachers has 'big' twice"),
        (
            {"teachers": ["big", "othr"]},
            "teachers has 'othr', .* under models; did you mean 'other'",
        ),
        ({"combine": "best"}, "pairs.both.combine is 'best'; .*mean.*median.*confidence"),
        (
            {"teachers": None, "teacher": "big", "combine": "median"},
            "pairs.both.combine is 'median', and there is one teacher",
        ),
    ],
)
def test_teachers_that_contradict_each_other_are_refused(several, message):
    with pytest.raises(KdstepsError, match=message):
        study(several=several)


@pytest.mark.parametrize("method", ["block_kd", "feature_only", "simkd", "reviewkd", "embedding"])
def test_a_method_that_needs_layers_is_refused_with_the_methods_that_do_not(method):
    with pytest.raises(KdstepsError) as error:
        study(methods=METHODS | {"mine": {"method": method}})
    said = str(error.value)
    assert re.search("pairs.both.teachers: mine needs the layers of one teacher", said)
    offered = said.rpartition("there are ")[2].split(", ")
    assert {"labels", "kd", "dkd", "dist", "lskd", "sld", "ckd"} <= set(offered)
    assert not {"block_kd", "feature_only", "simkd", "reviewkd", "embedding"} & set(offered)
    study(methods={name: {} for name in offered})


def test_confidence_needs_labels():
    bare = {"kind": "folder", "path": "birds", "labels": "none", "classes": ["wren", "robin"]}
    weights = {**NET, "checkpoint": "weights.pt", "train": {"epochs": 0}}
    with pytest.raises(KdstepsError, match=r"combine is 'confidence', which needs labels"):
        study(
            several={"combine": "confidence"},
            datasets={"digits": bare},
            models={"big": weights, "other": weights, "small": NET},
            methods={"kd": {"labels_weight": 0}},
        )


# which jobs there are


def identities(chosen: Study) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """What each job of a study depends on, by rule and names; without the report."""
    return {
        (rule, *names.values()): (
            graph.settings_text(chosen, rule, names),
            code_identity.code(chosen, rule, names),
            graph.inputs(chosen, rule, names),
        )
        for rule in graph.OUTPUTS
        for names in graph.jobs(chosen, rule)
        if rule != "report"
    }


def test_a_pair_with_several_teachers_reruns_no_job_of_the_others():
    methods = METHODS | {"dkd": {"tune": {"distil.learning_rate": [0.1, 0.2]}}}
    before = identities(parse_study(STUDY | {"models": MODELS, "methods": methods}))
    after = identities(study(methods=methods))
    assert {job: after[job] for job in before} == before
    added = {rule for rule, *_ in after.keys() - before.keys()}
    assert added == {
        *("train", "train_check", "train_audit", "cache_outputs", "tune", "tune_choose"),
        *("distil", "evaluate", "evaluate_teacher", "evaluate_latency"),
    }
    assert sum(rule == "train" for rule, *_ in after) == 2


def test_students_of_one_teacher_are_known_by_the_code_and_the_settings_they_had():
    found = study()
    run = {"method": "kd", "seed": "0"}
    one, both = ({"pair": name, **run} for name in ("pair", "both"))
    assert code_identity.roots(found, "distil", one)[0] == "kdsteps.stages._student:run"
    assert code_identity.roots(found, "distil", both)[0] == "kdsteps.stages._several:run"
    labels = both | {"method": "labels"}
    assert code_identity.roots(found, "distil", labels)[0] == "kdsteps.stages._student:run"
    assert "combination" not in graph.settings_text(found, "distil", one)
    assert '"combine": "mean"' in graph.settings_text(found, "distil", both)
    assert "combination" not in graph.settings_text(found, "distil", labels)


def test_a_student_reads_all_teachers_and_waits_for_their_checks_and_the_audit():
    found = study()
    read = graph.inputs(found, "distil", {"pair": "both", "method": "kd", "seed": "0"})
    named = [{"dataset": "digits", "teacher": name} for name in ("big", "other")]
    assert read["teachers"] == [graph.outputs("train", each)["model"] for each in named]
    assert read["checks"] == [graph.outputs("train_check", each)["check"] for each in named]
    assert read["audit"] == graph.outputs("train_audit", {"pair": "both"})["audit"]
    views = [names["views"] for names in graph.jobs(found, "cache_outputs")]
    shown = {"views": views[0]}
    assert read["tickets"] == [
        graph.outputs("cache_outputs", each | shown)["ticket"] for each in named
    ]
    hints = [graph.hints(found, "cache_outputs", each | shown)["passes"] for each in named]
    assert hints == [4, 2]  # of one epoch: two seeds of both pairs, and of one


TUNED = {"labels": {}, "kd": {"tune": {"temperature": [1, 4]}}}


def test_a_trial_has_what_a_student_of_several_teachers_reads_and_its_values():
    found = study(methods=TUNED)
    trial, run = {"pair": "both", "method": "kd", "trial": "1", "seed": "100"}, {"seed": "0"}
    node = graph.node(found, "tune", trial)
    student = graph.inputs(found, "distil", {"pair": "both", "method": "kd", **run})
    assert node.inputs == {name: student[name] for name in student if name != "choice"}
    assert student["choice"] == graph.outputs("tune_choose", trial)["choice"]
    settings = json.loads(node.text)
    assert (settings["options"]["temperature"], settings["values"]) == (1, {"temperature": 1})
    assert settings["combination"] == {"combine": "mean", "space": "logits"}
    roots = {
        pair: set(code_identity.roots(found, "tune", trial | {"pair": pair}))
        for pair in ("pair", "both")
    }
    assert {"kdsteps.stages.tune:_try", "kdsteps.stages._student:run"} <= roots["pair"]
    assert {"kdsteps.stages.tune:_try", "kdsteps.stages._several:run"} <= roots["both"]
    hints = [
        graph.hints(found, "cache_outputs", names) for names in graph.jobs(found, "cache_outputs")
    ]
    assert [each["passes"] for each in hints] == [8, 4]  # 2 seeds and 2 trials of each pair


@pytest.mark.parametrize(
    ("stage", "names", "read"),
    [
        ("distil", ("--method", "kd", "--seed", "0"), False),  # works without checks and audit
        ("export", ("--student", "kd/0"), True),  # its model card repeats what they found
    ],
)
def test_a_missing_audit_matters_to_a_job_by_hand_that_reads_it(
    stage, names, read, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    several = {"models": MODELS, "pairs": {"both": SEVERAL}, "methods": METHODS}
    write_study(tmp_path, **several, export={"runs": "all"})
    calls: list[Any] = []
    monkeypatch.setattr("kdsteps.cli.stages.run_call", lambda call, *_, **__: calls.append(call))
    assert main([stage, "--pair", "both", *names]) == 0
    assert ("audit" in calls[0].read) is read


def test_other_ways_to_combine_train_the_same_teachers():
    several = {name: SEVERAL | {"combine": name} for name in ("mean", "median", "confidence")}
    found = study(pairs=several)
    assert len(graph.jobs(found, "train")) == len(graph.jobs(found, "cache_outputs")) == 2
    texts = [
        graph.settings_text(found, "distil", {"pair": name, "method": "kd", "seed": "0"})
        for name in several
    ]
    assert len(set(texts)) == 3


def test_all_teachers_are_in_forecasts_and_in_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(b"")
    models = MODELS | {"other": NET | {"checkpoint": "weights.pt", "train": {"epochs": 0}}}
    found = study(models=models)
    run = {"pair": "both", "method": "kd", "seed": "0"}
    assert input_paths(found) == [Path("weights.pt")]
    node = graph.node(found, "train_audit", {"pair": "both"})
    assert storage.declared(found, node)["provenance"]
    for rule, names in (("train_audit", {"pair": "both"}), ("distil", run)):
        assert forecasts.forecast(found, rule, names, 1, gpu=False).memory > 0
    single = job_needs.NEEDS["distil"](job_needs.KnownJob(found, run | {"pair": "pair"}))
    double = job_needs.NEEDS["distil"](job_needs.KnownJob(found, run))
    assert double.multiply_adds > single.multiply_adds


# a study, run here


SMALL = {"family": "cifar_resnet", "depth": 8, "widths": [4, 8, 8, 16]}
RUN: dict[str, Any] = {
    "datasets": {"digits": {"kind": "digits", "size": 8}},
    "models": {
        "plain": SMALL,
        "large": SMALL
        | {"image_size": 12, "normalize": {"mean": [0.5], "std": [0.25]}, "train": {"seed": 1}},
        "deep": SMALL | {"depth": 14, "train": {"seed": 2}},
        "small": SMALL | {"widths": [4, 4, 4, 8]},
    },
    "pairs": {
        "middle": {
            "dataset": "digits",
            "teachers": ["plain", "large", "deep"],
            "student": "small",
            "combine": "median",
            "space": "standardized",
        },
        "sure": {
            "dataset": "digits",
            "teachers": ["plain", "large"],
            "student": "small",
            "combine": "confidence",
            "distil": {"mixup": 0.2},
        },
    },
    "methods": {"labels": {}, "lskd": {"tune": {"distil.learning_rate": [0.05, 0.1]}}},
    "seeds": [0],
    "cache": {"draws": 2},  # of mixed images
    "train": {"epochs": 4, "batch_size": 64},
    "distil": {"epochs": 2, "batch_size": 128},
    "evaluate": {"latency_runs": 2},
    "export": {"runs": ["middle/lskd/0"], "formats": ["safetensors"]},
}
ORDER = [rule for rule in graph.OUTPUTS if rule not in ("evaluate", "evaluate_latency", "export")]
ORDER = [*ORDER[:-1], "evaluate", "evaluate_latency", "export", "report"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a study of such pairs after all its jobs, and the study."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = parse_study(RUN)
        for rule in ORDER:
            for names in graph.jobs(found, rule):
                run_call(call_of(found, rule, names), threads=1, gpus=0)
        yield folder, found


def job_of(found: Study, rule: str, names: graph.Names, folder: Path, **changes: Any) -> Job[Any]:
    """A job of the study as its stage receives it, with its files in another folder."""
    call = call_of(found, rule, names)
    outputs = {name: folder / path.name for name, path in call.outputs.items()}
    job = Job(call.settings, call.inputs, outputs, lists=call.lists, budget_mib=100)
    return replace(job, **changes)


def page_of(folder: Path) -> str:
    page = (folder / "results/report/index.html").read_text()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("<main>")[1]))


@pytest.fixture
def inside(ran, monkeypatch) -> Study:
    """The study, in whose folder the test runs."""
    folder, found = ran
    monkeypatch.chdir(folder)
    return found


def test_every_teacher_and_their_combination_is_cached_once(ran):
    """Three teachers for plain images and two for the draws of mixed ones, and one file of each."""
    folder, _ = ran
    assert len(list((folder / ".kdsteps/outputs").glob("*.npy"))) == 3 + 1 + 2 + 1


def test_the_forecast_of_the_disk_counts_the_combined_logits(ran):
    folder, found = ran
    rules = ("cache_outputs", "distil")
    nodes = [graph.node(found, rule, names) for rule in rules for names in graph.jobs(found, rule)]
    size = sum(path.stat().st_size for path in (folder / ".kdsteps/outputs").iterdir())
    costs = costs_of(found, folder / "results/prepare/digits/summary.json")
    assert costs.disk(nodes) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("pair", ["middle", "sure"])
def test_a_student_is_the_same_with_cached_and_computed_logits(pair, inside, tmp_path):
    call = call_of(inside, "distil", {"pair": pair, "method": "lskd", "seed": "0"})
    outputs = {name: tmp_path / path.name for name, path in call.outputs.items()}
    run_call(replace(call, outputs=outputs, code=None), threads=1, gpus=0, keep="never")
    assert outputs["model"].read_bytes() == call.outputs["model"].read_bytes()


def test_a_student_of_images_mixed_in_each_batch_learns_from_all_teachers(inside, tmp_path):
    found = parse_study(RUN | {"cache": {}})
    names = {"pair": "sure", "method": "lskd", "trial": "1", "seed": "100"}
    job = job_of(found, "tune", names, tmp_path)
    tune.run(job)
    ours, theirs = (
        read_json(job.outputs["trial"]),
        read_json(call_of(inside, "tune", names).outputs["trial"]),
    )
    assert ours["diverged"] is None and ours["values"] == theirs["values"]
    assert ours["validation_loss"] != theirs["validation_loss"]  # mixed in another way


def test_metrics_of_a_student_do_not_name_one_of_the_teachers(ran):
    folder, _ = ran
    measured = read_json(folder / "results/evaluate/students/sure/lskd/0/measures.json")
    assert not measured["diverged"]
    assert measured["agreement"] is None  # there is no single teacher to agree with


def test_a_trial_is_what_a_student_with_its_values_reaches_on_the_validation_images(
    inside, tmp_path
):
    tried = {"pair": "middle", "method": "lskd", "trial": "2", "seed": "100"}
    written = {"lskd": {"distil": {"learning_rate": 0.1}}}
    found = parse_study(RUN | {"methods": written, "seeds": [100], "export": None})
    job = job_of(found, "distil", {"pair": "middle", "method": "lskd", "seed": "100"}, tmp_path)
    distil.run(job)
    rows = read_table(job.outputs["history"], HISTORY).to_pylist()
    trial = read_json(call_of(inside, "tune", tried).outputs["trial"])
    for name in ("validation_accuracy", "validation_loss"):
        assert trial[name] == [row["value"] for row in rows if row["name"] == name]


def test_a_trial_reads_no_image_and_no_label_for_testing(inside, tmp_path):
    names = {"pair": "middle", "method": "lskd", "trial": "2", "seed": "100"}
    job = job_of(inside, "tune", names, tmp_path, keep="never")
    noise = with_noise_for_testing(job.inputs["images"].parent, tmp_path)
    tune.run(replace(job, inputs=job.inputs | noise))
    made = call_of(inside, "tune", names).outputs["trial"]
    assert job.outputs["trial"].read_bytes() == made.read_bytes()


@pytest.mark.parametrize("pair", ["middle", "sure"])
def test_students_are_trained_with_the_chosen_values(pair, ran):
    folder, _ = ran
    tuned = folder / f"results/tune/{pair}/lskd"
    tried = [read_json(tuned / f"{number}/100/trial.json") for number in (1, 2)]
    best = ranked(trials_of(tried))[0]
    assert read_json(tuned / "choice.json") == {"values": best.values}
    header = read_checkpoint_header(folder / f"results/distil/{pair}/lskd/0/student.safetensors")
    assert {"distil.learning_rate": header["settings"]["distil"]["learning_rate"]} == best.values


def test_the_audit_names_each_teacher(ran):
    folder, _ = ran
    found = read_json(folder / "results/train/audits/middle/audit.json")
    assert [each["teacher"] for each in found["teachers"]] == ["plain", "large", "deep"]
    assert all(each["accuracy"] > 0.5 and not each["problems"] for each in found["teachers"])


def test_the_report_and_the_card_name_all_teachers_and_how_they_are_combined(ran):
    folder, _ = ran
    page = page_of(folder)
    assert "middle learns from the median of standardized logits" in page
    assert "sure learns from the confidence-weighted mean of logits" in page
    assert "middle lskd distil.learning_rate 0.05, 0.1" in page.split("How values were tuned")[1]
    quality = page.split("Quality of the predictions")[1]
    assert all(f"{name}, teacher" in quality for name in ("plain", "large", "deep"))
    card = (folder / "results/export/middle/lskd/0/model_card.md").read_text()
    assert "from the teachers `plain, large, deep (median of standardized logits)`" in card


def test_the_card_repeats_what_the_checks_and_the_audit_found(inside, tmp_path):
    names = {"pair": "middle", "student": "lskd/0"}
    job = job_of(inside, "export", names, tmp_path)
    found = {"check.json": job.lists["teacher_checks"][1], "audit.json": job.inputs["audit"]}
    assert set(map(str, found.values())) <= graph.node(inside, "export", names).watched
    check, audit = map(read_json, found.values())
    audit["teachers"][2]["problems"] = ["its logits are odd"]
    write_json(tmp_path / "check.json", check | {"warnings": ["its errors are confident"]})
    write_json(tmp_path / "audit.json", audit)
    checks = list(job.lists["teacher_checks"])
    checks[1] = tmp_path / "check.json"
    outputs = job.outputs | optional_outputs("export", job.outputs)
    inputs = job.inputs | {"audit": tmp_path / "audit.json"}
    lists = job.lists | {"teacher_checks": checks}
    export.run(replace(job, inputs=inputs, lists=lists, outputs=outputs))
    card = outputs["card"].read_text()
    assert "The teacher large: its errors are confident." in card
    assert "The teacher deep: its logits are odd." in card


@pytest.fixture
def permuted(ran, tmp_path):
    """The job that audits three teachers, one of which has its classes in another order."""
    folder, found = ran
    job = job_of(found, "train_audit", {"pair": "middle"}, tmp_path)
    *good, path = job.lists["teachers"]
    weights, header = read_checkpoint(folder / path)
    moved = {name: v.roll(1, 0) if v.shape[:1] == (10,) else v for name, v in weights.items()}
    assert any(not torch.equal(moved[name], weights[name]) for name in weights)
    write_checkpoint(tmp_path / "bad.safetensors", moved, header)
    return replace(job, lists={"teachers": [*good, tmp_path / "bad.safetensors"]})


def test_a_teacher_whose_family_is_cut_is_audited_like_any_other(ran, tmp_path):
    folder, found = ran
    job = job_of(found, "train_audit", {"pair": "middle"}, tmp_path)
    *good, path = (folder / path for path in job.lists["teachers"])
    options = {"name": "test_resnet"}
    network = build_model("timm", num_classes=10, in_channels=1, image_size=8, **options)
    model = {"family": "timm", "options": options}
    _, header = read_checkpoint(path)
    cut = tmp_path / "cut.safetensors"
    write_checkpoint(cut, network.plain().state_dict(), header | {"model": model})
    settings = job.settings.model_copy(update={"tolerated": ("deep",)})  # it is not trained
    train.run(replace(job, settings=settings, lists={"teachers": [*good, cut]}))
    assert [each["teacher"] for each in read_json(job.outputs["audit"])["teachers"]][2] == "deep"


def test_a_teacher_that_is_far_out_stops_the_study(permuted):
    with pytest.raises(KdstepsError, match=r"the teacher deep: .* training images.*teacher_check"):
        train.run(permuted)
    assert not permuted.outputs["audit"].exists()


def test_a_teacher_with_teacher_check_warn_is_only_reported(permuted, caplog):
    settings = permuted.settings
    assert isinstance(settings, AuditSettings)
    tolerated = settings.model_copy(update={"tolerated": ("deep",)})
    train.run(replace(permuted, settings=tolerated))
    found = read_json(permuted.outputs["audit"])["teachers"]
    assert [bool(each["problems"]) for each in found] == [False, False, True]
    assert "the teacher deep: " in caplog.text


# the real snakemake

STORY = TINY | {
    "models": {
        "big": TINY["models"]["big"],
        "other": TINY["models"]["big"] | {"train": {"seed": 1}},
        "small": TINY["models"]["small"],
    },
    "pairs": {"both": SEVERAL},
    "methods": {"kd": {"tune": {"temperature": [1]}}},
    "distil": {"epochs": 2, "batch_size": 256},
}


@pytest.mark.slow
def test_snakemake_trains_audits_tunes_heals_and_runs_what_depends_on_combine(tmp_path):
    folder = Folder.new(tmp_path / "study", STORY)
    folder.snakemake("distil_all")
    first, student = folder.executed(), "distil/both/kd/0"
    audit = "train/audits/both/audit"
    assert {audit, "tune/both/kd/1/100", "tune/both/kd", student} <= first.keys()
    (cached,) = set(re.findall(r"in (\.kdsteps/outputs/\w+\.npy)", "".join(first.values())))
    made, later = folder.bytes_of("results/**/*.safetensors"), folder.planned()
    assert not later.keys() & {"train", "train_audit", "tune", "tune_choose", "distil"}

    content = (folder.path / cached).read_bytes()
    (folder.path / cached).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for name in ("results/distil", ".jobcache"):
        shutil.rmtree(folder.path / name)
    folder.snakemake("distil_all")
    assert f"{cached}: was changed since" in folder.executed()[student]
    assert folder.bytes_of("results/**/*.safetensors") == made
    assert (folder.path / cached).read_bytes() == content

    file = folder.path / f"results/{audit}.json"
    audited = file.read_bytes()
    file.write_bytes(audited[:-9])
    assert "audit.json: was damaged or changed" in folder.snakemake("train_all")
    assert folder.executed().keys() == {audit}
    assert file.read_bytes() == audited

    folder.change(pairs={"both": SEVERAL | {"combine": "confidence"}})
    assert folder.planned() - later == {"tune": 1, "tune_choose": 1, "distil": 1}
