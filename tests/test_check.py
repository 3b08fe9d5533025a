"""`kdsteps check`: what could stop a later job, and how long all jobs take, in a minute."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _commands import NET, REPOSITORY, STUDY, files_in, write_study
from _pictures import prepare, write_folder

from kdsteps.cli.main import main
from kdsteps.data.decoding import decode
from kdsteps.data.sampling import sample_rows
from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.early_checks import study_problems
from kdsteps.jobs.job import Job
from kdsteps.jobs.known import network_outlines
from kdsteps.jobs.outputs import Names
from kdsteps.jobs.provenance import provenance_of_job
from kdsteps.jobs.remaining import Remaining, remaining
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.schedule import claim, priority, wall_seconds
from kdsteps.jobs.words import duration
from kdsteps.models import build_model
from kdsteps.rehearsal.costs import Costs
from kdsteps.rehearsal.images import look_at_source
from kdsteps.rehearsal.machine import companions
from kdsteps.rehearsal.rehearsal import Rehearsal, Scale
from kdsteps.rehearsal.trial import Trial, attempt
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.settings import Dataset, Prepare

CPU = Sharing(cores=4, gpus=0, jobs_per_gpu=1)

PAIR = STUDY["pairs"]["pair"]
LITTLE: dict[str, Any] = {"depth": 8, "widths": [2, 2, 4, 8]}

OWN = """
from kdsteps.methods.labels import Labels

class Wrong(Labels):
    def terms(self, batch):
        raise IndexError("there is no such thing")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Starting Python is measured in a test of its own."""
    monkeypatch.setattr("kdsteps.rehearsal.check.start_of_jobs", lambda *_: 0.5)
    monkeypatch.setattr("kdsteps.rehearsal.order.companions", lambda count: nullcontext())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> tuple[dict[str, Any], list[str], list[str]]:
    """What the check finds in the study of digits, and the files before and after."""
    folder = tmp_path_factory.mktemp("checked")
    (folder / "mine.py").write_text(OWN)
    torch.save({"weight": torch.zeros(3)}, folder / "odd.pt")
    methods = {"labels": {}, "feature_only": {}, "wrong": {"method": "./mine.py:Wrong"}}
    models = {"big": NET, "small": NET, "odd": NET | {"checkpoint": "odd.pt"}}
    pairs = {"pair": PAIR, "other": PAIR | {"teacher": "odd"}}
    write_study(folder, methods=methods, models=models, pairs=pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("kdsteps.rehearsal.check.start_of_jobs", lambda *_: 0.5)
        patch.setattr("kdsteps.rehearsal.order.companions", lambda count: nullcontext())
        patch.setattr("kdsteps.rehearsal.trial.LOOK", 0.05)
        before = list(files_in(folder))
        found: list[Any] = []
        patch.setattr("kdsteps.cli.check.asdict", lambda one: found.append(one) or {})
        assert main(["check", "--json", "--seconds", "600"]) == 2
        (result,) = found
    return (
        {
            "findings": [(each.status, each.what, each.text) for each in result.findings],
            "forecast": result.forecast,
        },
        before,
        list(files_in(folder)),
    )


def test_every_problem_is_listed_and_the_rest_is_tried(checked):
    found, _, _ = checked
    problems = {what: text for status, what, text in found["findings"] if status == "problem"}
    line = next(n for n, text in enumerate(OWN.splitlines(), 1) if "no such thing" in text)
    wrong = f"fails with IndexError in mine.py, line {line}: there is no such thing"
    assert problems.keys() == {"model odd", "pair with wrong", "other with wrong"}
    assert problems["pair with wrong"] == problems["other with wrong"] == wrong
    assert "odd.pt" in problems["model odd"]
    said = {what: text for status, what, text in found["findings"] if status == "ok"}
    assert said["methods"] == "students of 2 pairs can be trained with labels, feature_only"
    notes = [text for status, _, text in found["findings"] if status == "note"]
    assert "not tried, since what they need failed: other with feature_only" in notes
    assert {"model big", "model small", "memory", "disk", "device", "data digits"} <= said.keys()
    assert said["data digits"].startswith("1,797 images of 10 classes, 1 x 8 x 8; a sample of 300")


@pytest.mark.parametrize(
    ("failed", "blocked"),
    [
        (("network", "digits", "big"), True),
        (("score", "digits", "big", "0"), True),
        (("network", "digits", "other"), False),
        (("network", "photos", "big"), False),
        (("evaluate", "digits", "big"), False),
    ],
)
def test_a_trial_without_what_it_needs_is_blocked_only_if_that_failed(failed, blocked):
    found = SimpleNamespace(failed={failed: "broken"}, blocked=[], skipped=[])
    key = ("distil", "pair", "kd")
    Rehearsal.leave_out(found, key, ("network", "score"), "digits", ["big", "small"])  # type: ignore[arg-type]
    assert (found.blocked, found.skipped) == (([key], []) if blocked else ([], [key]))


def test_the_forecast_counts_every_job(checked):
    forecast = checked[0]["forecast"]
    assert (forecast.runs, forecast.jobs) == (12, 40)
    assert forecast.stages.keys() == {
        *("prepare", "train", "cache", "score", "build", "distil", "evaluate", "report")
    }
    assert 40 * 0.5 / 2 < forecast.seconds < sum(forecast.stages.values())


def test_the_folder_of_the_study_stays_as_it_was(checked):
    _, before, after = checked
    assert before == after


def test_images_without_labels_and_those_of_the_probe_are_looked_at_as_well(folder, capsys):
    write_folder(folder, {"photos": 24})
    write_folder(folder / "pets", {"cat": 6, "dog": 6}, start=40)
    (folder / "pets/dog/9.png").write_bytes(b"no image")
    network = build_model("cifar_resnet", num_classes=2, image_size=6, **LITTLE)
    torch.save(network.state_dict(), folder / "big.pth")
    little = {"family": "cifar_resnet", **LITTLE}
    kinds = {"kind": "folder", "store": 6}
    write_study(
        folder,
        datasets={
            "photos": kinds | {"path": "photos", "labels": "none"},
            "pets": kinds | {"path": "pets"},
        },
        models={"big": little | {"checkpoint": "big.pth", "train": {"epochs": 0}}, "small": little},
        pairs={"pair": {"dataset": "photos", "teacher": "big", "student": "small"}},
        methods={"feature_only": {}},
        probe={"dataset": "pets"},
        distil={"epochs": 1, "batch_size": 4},
    )
    assert main(["check", "--seconds", "600"]) == 2
    said = capsys.readouterr().out
    assert "data photos: 24 images without labels, 3 x 6 x 6" in said
    assert "data pets: 13 images of 2 classes, 3 x 6 x 6" in said
    assert "the student can be trained with feature_only" in said
    (problem,) = [line for line in said.splitlines() if line.startswith("PROBLEM")]
    assert "data pets" in problem
    assert "dog/9.png" in problem


def test_a_mistake_in_the_settings_is_a_problem_as_well(folder, capsys):
    write_study(folder, seeds=[])
    assert main(["check"]) == 2
    assert "PROBLEM  settings: params.yaml: seeds is" in capsys.readouterr().out


def test_several_mistakes_in_the_settings_are_all_listed(folder, capsys):
    write_study(folder, seeds=[-1], distil={"epochs": "many", "lr": 1})
    assert main(["check"]) == 2
    said = capsys.readouterr()
    problems = [line for line in said.out.splitlines() if line.startswith("PROBLEM  settings")]
    assert len(problems) == 3
    assert all(any(word in line for line in problems) for word in ("seeds", "epochs", "lr"))
    assert "more)" not in said.out
    assert "3 problems" in said.err


def test_files_that_dvc_would_miss_are_a_note_since_snakemake_can_run(folder, capsys):
    write_folder(folder / "photos", {"a": 8, "b": 8})
    Path("dvc.yaml").write_text("stages: {resolve: {cmd: kdsteps resolve, deps: [kdsteps.lock]}}")
    write_study(
        folder,
        datasets={"photos": {"kind": "folder", "path": "photos"}},
        pairs={"pair": PAIR | {"dataset": "photos"}},
        distil={"epochs": 1, "batch_size": 4},
        train={"epochs": 1, "batch_size": 4},
    )
    assert main(["check", "--seconds", "1"]) == 0
    said = capsys.readouterr().out
    assert "note     dvc: `dvc repro` would stop, but not Snakemake: dvc.yaml" in said
    assert "write `deps: [kdsteps.lock, photos]` in that stage" in said


SEEDING = """
import torch
from torch import nn

def build(num_classes, in_channels):
    torch.manual_seed(42)
    body = [nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(4, num_classes))
"""


def test_a_student_that_has_the_same_weights_for_all_seeds_is_refused(folder, capsys):
    (folder / "seeding.py").write_text(SEEDING)
    models = {"big": NET, "small": {"family": "./seeding.py:build"}}
    write_study(folder, models=models, methods={"labels": {}}, distil={"epochs": 1})
    assert main(["check", "--seconds", "600"]) == 2
    said = capsys.readouterr().out
    assert "./seeding.py:build: its code sets torch's seed to 42, so runs of all seeds" in said


@pytest.mark.parametrize(("method", "status"), [("kd", 2), ("fitnet", 0)])
def test_a_teacher_without_the_classifier_that_methods_need_is_a_problem(
    folder, capsys, method: str, status: int
):
    network = build_model("cifar_resnet", num_classes=6, image_size=8, in_channels=1, **LITTLE)
    torch.save(network.state_dict(), folder / "six.pth")
    little = {"family": "cifar_resnet", **LITTLE}
    big = little | {"checkpoint": "six.pth", "train": {"epochs": 0}}
    write_study(
        folder,
        models={"big": big, "small": little},
        methods={method: {}},
        distil={"epochs": 1, "batch_size": 8},
    )
    assert main(["check", "--seconds", "600"]) == status
    said = "PROBLEM  model big: six.pth has no classifier for 10 classes, so fc.weight, fc.bias are"
    assert (said in capsys.readouterr().out) == (status == 2)


def test_all_early_problems_are_found_and_not_the_first_alone(folder):
    models = {"big": NET | {"checkpoint": "gone.pt"}, "small": NET}
    methods = {"fitnet": {"teacher_layer": "nowhere"}, "at": {"student_layers": ["nothing"]}}
    found = study_problems(parse_study(STUDY | {"models": models, "methods": methods}))
    assert [problem.split(":")[1].strip() for problem in found.problems] == [
        "models.big.checkpoint",
        "pairs.pair with fitnet",
        "pairs.pair with at",
    ]


@pytest.mark.parametrize(("broken", "status"), [("refuse", "PROBLEM"), ("skip", "note")])
def test_an_image_that_cannot_be_read_is_named(folder, capsys, broken: str, status: str):
    write_folder(folder / "pets", {"cat": 8, "dog": 8})
    (folder / "pets/cat/3.png").write_bytes(b"no image")
    datasets = {"digits": {"kind": "folder", "path": "pets", "image_size": 16}}
    write_study(folder, datasets=datasets, prepare={"broken": broken})
    main(["check", "--seconds", "0"])
    said = next(line for line in capsys.readouterr().out.splitlines() if "cat/3.png" in line)
    assert re.match(rf"{status} +data digits: 1 of a sample of 16 cannot be read", said)


def test_without_time_nothing_is_tried_and_that_is_said(folder, capsys):
    write_study(folder)
    assert main(["check", "--seconds", "0"]) == 0
    said = capsys.readouterr().out
    assert "not tried, for lack of time: model big" in said
    assert "(not counted: Snakemake itself, and drawing the report" in said


def test_a_batch_larger_than_images_that_are_not_prepared_is_a_problem(folder, capsys):
    write_study(folder, methods={"labels": {}}, distil={"epochs": 1, "batch_size": 5000})
    assert main(["check", "--seconds", "0"]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if "PROBLEM" in line]
    assert len(problems) == 1
    assert "pairs.pair with labels: distil.batch_size is 5000, but there are " in problems[0]


@pytest.mark.parametrize(
    ("distil", "told"),
    [
        ({"epochs": 6000, "learning_rate": 0.05}, True),
        ({"epochs": 60, "learning_rate": 0.05}, False),
        ({"epochs": 6000, "learning_rate": 0.05, "weight_decay": 0.0}, False),
        ({"epochs": 6000, "optimizer": "adamw"}, False),
    ],
)
def test_weight_decay_that_may_outweigh_small_gradients_is_a_note(folder, capsys, distil, told):
    methods = {"labels": {}, "feature_only": {}}
    write_study(folder, methods=methods, distil={"batch_size": 256} | distil)
    assert main(["check", "--seconds", "0"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "outweigh" in line]
    assert len(said) == told
    assert all("methods: feature_only: in " in line for line in said)


def test_a_folder_that_jobs_could_not_write_is_a_problem(folder, capsys, monkeypatch):
    write_study(folder, methods={"labels": {}})
    Path("results").mkdir()
    closed, access = folder / "results", os.access
    monkeypatch.setattr(
        "kdsteps.files.atomic.os.access",
        lambda path, mode: path != closed and access(path, mode),
    )
    assert main(["check", "--seconds", "0"]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if "PROBLEM" in line]
    said = f"cannot be written; make the folder {closed} writable"
    assert problems == [f"PROBLEM  disk: results/prepare/digits/images.npy: {said}"]


def test_a_file_with_the_name_of_a_folder_of_the_cache_is_a_problem(folder, capsys):
    write_study(folder, methods={"labels": {}})
    Path(".kdsteps").mkdir(exist_ok=True)
    Path(".kdsteps/outputs").write_text("mine")
    assert main(["check", "--seconds", "0"]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if "PROBLEM" in line]
    said = "is not a folder; move it away, since jobs cache files in it"
    assert problems == [f"PROBLEM  disk: .kdsteps/outputs: {said}"]


def test_a_study_that_is_done_needs_no_trial(folder, capsys, monkeypatch):
    write_study(folder)
    monkeypatch.setattr("kdsteps.rehearsal.check.remaining", lambda study: Remaining(24, [], []))
    assert main(["check"]) == 0
    assert "there is nothing to do" in capsys.readouterr().out


def test_more_gpus_than_there_are_is_a_problem(folder, capsys):
    write_study(folder)
    assert main(["check", "--gpus", "99", "--seconds", "0"]) == 2
    assert "PROBLEM  device: --gpus is 99" in capsys.readouterr().out


# The sample


def test_a_sample_is_fixed_and_has_every_class():
    labels = np.repeat(np.arange(20), 50)
    rows = sample_rows(labels, 30)
    assert np.array_equal(rows, sample_rows(labels, 30))
    assert len(rows) == 30
    assert set(labels[rows]) == set(range(20))
    assert len(sample_rows(labels, 5)) == 20


def test_a_folder_is_sampled_without_reading_all_of_it(folder, monkeypatch):
    write_folder(folder / "pets", {"cat": 30, "dog": 30})
    opened: list[Path] = []

    def noted(content: Any, form: Any) -> Any:
        opened.append(content)
        return decode(content, form)

    monkeypatch.setattr("kdsteps.data.encoded.decode", noted)
    monkeypatch.setattr("kdsteps.rehearsal.images.SAMPLE", 10)
    found = look_at_source(Dataset(kind="folder", options={"path": "pets"}), Prepare(), 1)
    assert len(set(opened)) == 10
    assert found.counts == {"train": 44, "validation": 4, "test": 12}
    assert found.shape == (3, 6, 6)


def test_a_class_with_too_few_images_for_its_splits_is_found_before_they_are_prepared(folder):
    write_folder(folder / "pets", {"cat": 30, "dog": 30, "rare": 2})
    pets = Dataset(kind="folder", options={"path": "pets"})
    with pytest.raises(KdstepsError, match="'rare' has 1 different image left for the splits"):
        look_at_source(pets, Prepare(), 1)
    found = look_at_source(pets, Prepare(validation=0), 1)
    assert found.counts == {"train": 49, "validation": 0, "test": 13}


def test_the_images_of_each_split_are_counted_as_they_will_be_drawn(folder):
    write_folder(folder / "pets", {"cat": 11, "dog": 7, "newt": 4})
    pets = Dataset(kind="folder", options={"path": "pets"})
    found = look_at_source(pets, Prepare(validation=0.2, test=0.3), 1)
    files = prepare(folder, "folder", {"path": "pets"}, validation=0.2, test=0.3)
    assert found.counts == read_json(files["summary"])["images"]


# Which jobs are left, and when they end


def test_a_result_in_the_job_cache_is_not_computed_again(folder):
    write_study(folder)
    study = load_study()
    names: Names = {"pair": "pair", "method": "labels", "seed": "0"}
    for name in ("images", "digest", "index", "summary"):
        path = Path(graph.outputs("prepare", {"dataset": "digits"})[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    before = remaining(study)
    assert not before.cached
    node = graph.node(study, "distil", names)
    _provide(study, {"dataset": "digits"})
    outputs = {name: Path(path) for name, path in graph.outputs("distil", names).items()}
    code = code_identity.code(study, "distil", names)
    inputs = {name: Path(path) for name, path in node.inputs.items()}
    with remembered("distil", node.settings.as_json(), code, inputs, outputs) as known:
        assert not known
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
    for path in outputs.values():
        path.unlink()
    assert [job.names for job in remaining(study).cached] == [names]


def _provide(study: Any, names: Names) -> None:
    """Let the results of `prepare` count as made."""
    node = graph.node(study, "prepare", names)
    files = graph.outputs("prepare", names)
    code = code_identity.code(study, "prepare", names)
    provenance_of_job("prepare", node.text, code, {}, files, 0.0, 1.0).write(files)


def test_jobs_run_side_by_side_as_their_cores_allow(folder):
    study = parse_study(STUDY)
    runs = [graph.node(study, "distil", names) for names in graph.jobs(study, "distil")]
    own = [node for node in runs if node.names["method"] == "labels"]
    two = Sharing(cores=claim(study, own[0], CPU).threads * 2, gpus=0, jobs_per_gpu=1)
    assert wall_seconds(study, own, [3.0, 5.0], two) == 5.0
    one = Sharing(cores=1, gpus=0, jobs_per_gpu=1)
    assert wall_seconds(study, own, [3.0, 5.0], one) == 8.0
    names = own[0].names
    evaluated = [graph.node(study, "evaluate", names), own[0]]
    assert wall_seconds(study, evaluated, [3.0, 2.0], two) == 5.0


@pytest.mark.parametrize(
    ("cores", "gpus", "most", "jobs", "seconds"),
    [
        *((80, 0, None, None, 40.0), (80, 0, 8, None, 10.0), (80, 0, 8, 3, 30.0)),
        *((80, 4, None, None, 20.0), (80, 3, 8, None, 30.0), (80, 16, 8, 6, 20.0)),
    ],
)
def test_jobs_on_a_cluster_run_side_by_side_as_its_limits_allow(
    folder, monkeypatch, cores, gpus, most, jobs, seconds
):
    """8 students of 10 s; the machine that submits them has 2 cores."""
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 2)
    study = parse_study(STUDY)
    runs = [graph.node(study, "distil", names) for names in graph.jobs(study, "distil")]
    assert len(runs) == 8
    sharing = Sharing(cores, gpus, 1, max_threads=most, jobs=jobs)
    assert wall_seconds(study, runs, [10.0] * 8, sharing) == seconds


def test_jobs_that_run_already_have_their_cores(folder):
    study = parse_study(STUDY)
    names = {"pair": "pair", "method": "labels", "seed": "0"}
    running = graph.node(study, "evaluate", names)
    waiting = graph.node(study, "train", {"dataset": "digits", "teacher": "big"})
    assert priority("train") > priority("evaluate")
    evaluated_after = graph.node(study, "evaluate_teacher", waiting.names)
    one, seconds = Sharing(cores=1, gpus=0, jobs_per_gpu=1), [2.0, 5.0, 1.0]
    jobs = [evaluated_after, waiting, running]
    assert wall_seconds(study, jobs, seconds[::-1], one, [False, False, True]) == 8.0
    two = Sharing(cores=2, gpus=0, jobs_per_gpu=1)
    # `train` takes both cores: it begins after the evaluation only if that runs already
    assert wall_seconds(study, [waiting, running], [5.0, 2.0], two, [False, True]) == 7.0


RULES = "".join(path.read_text() for path in sorted((REPOSITORY / "workflow/rules").glob("*.smk")))


@pytest.mark.parametrize(
    "sharing",
    [Sharing(8, 0, 1), Sharing(8, 2, 1), Sharing(8, 2, 4), Sharing(80, 0, 1, 8, jobs=10)],
)
def test_a_job_claims_what_its_rule_does(sharing: Sharing):
    methods = {"feature_only": {}, "kd": {"tune": {"temperature": [2, 4]}}}
    every = {"methods": methods, "probe": {"dataset": "digits"}, "export": {}}
    one = parse_study(STUDY | every | {"tune": {"seeds": [100]}})
    pair = {"dataset": "digits", "teachers": ["big", "small"], "student": "small"}
    several = parse_study(STUDY | {"pairs": {"pair": pair}, "methods": {"kd": {}}})
    slots = {
        "1": 1,
        "sharing.jobs_per_gpu": sharing.jobs_per_gpu,
        'gpu_slots_of("train", alone=True)': sharing.jobs_per_gpu,
        'gpu_slots_of("distil", alone=False)': 1,
        'gpu_slots_of("tune", alone=False)': 1,
    }
    for text in re.split(r"^rule ", RULES, flags=re.MULTILINE)[1:]:
        rule = text[: text.index(":")]
        study = several if rule == "train_audit" else one
        node = graph.node(study, rule, graph.jobs(study, rule)[0])
        own = claim(study, node, sharing)
        threads = {
            "sharing.most_cores": sharing.most_cores,
            "sharing.cores_of_one_of_many": sharing.cores_of_one_of_many,
            f'threads_of("{rule}")': own.threads,
        }
        found = re.search(r"^    threads: (.*)$", text, re.MULTILINE)
        wanted = 1 if found is None else threads[found[1]]
        gpus = re.search(r"gpu_slots=(.*),$", text, re.MULTILINE)
        order = re.search(r"^    priority: priority\(\"(\w+)\"\)$", text, re.MULTILINE)
        assert (order[1] if order else None) == (rule if priority(rule) else None)
        assert own.threads == wanted, rule
        assert own.slots == (slots[gpus[1]] if gpus and sharing.gpus else 0), rule


@pytest.mark.parametrize(
    ("sharing", "train", "distil", "score"),
    [
        (Sharing(1, 0, 1), 1, 1, 1),
        (Sharing(2, 0, 1), 2, 1, 2),
        (Sharing(8, 0, 1), 8, 4, 8),  # half of the cores given are one of the two that there are
        (Sharing(8, 2, 1), 4, 4, 8),
        (Sharing(8, 2, 4), 4, 1, 8),
        (Sharing(16, 1, 4), 16, 4, 16),
        (Sharing(8, 2, 1, max_threads=3), 3, 3, 3),
        (Sharing(80, 3, 1, max_threads=8, jobs=10), 8, 8, 8),  # a cluster
        (Sharing(80, 0, 1, max_threads=8, jobs=10), 8, 8, 8),
    ],
)
def test_the_cores_that_jobs_claim(monkeypatch, sharing, train, distil, score):
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 2)
    study = parse_study(STUDY | {"methods": {"feature_only": {}}})
    for rule, wanted in [
        *(("train", train), ("cache", train), ("distil", distil), ("evaluate", distil)),
        *(("score", score), ("evaluate_latency", score), ("build", 1), ("report", 1)),
    ]:
        node = graph.node(study, rule, graph.jobs(study, rule)[0])
        assert claim(study, node, sharing).threads == wanted, rule


def test_the_audit_that_students_wait_for_starts_before_evaluations(monkeypatch):
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 2)
    pair = {"dataset": "digits", "teachers": ["big", "small"], "student": "small"}
    study = parse_study(STUDY | {"pairs": {"pair": pair}, "methods": {"kd": {}}})
    student, *_ = (graph.node(study, "distil", names) for names in graph.jobs(study, "distil"))
    (audit,) = (graph.node(study, "train_audit", n) for n in graph.jobs(study, "train_audit"))
    assert audit.names == {"pair": "pair"}
    assert set(graph.outputs("train_audit", audit.names).values()) <= set(student.read)
    names = graph.jobs(study, "evaluate_teacher")
    evaluations = [graph.node(study, "evaluate_teacher", each) for each in names]
    two = Sharing(cores=2, gpus=0, jobs_per_gpu=1)
    # 1 s, then 9 s; the two evaluations run on the other core
    jobs, seconds = [student, *evaluations, audit], [9.0, 3.0, 3.0, 1.0]
    assert wall_seconds(study, jobs, seconds, two) == 10.0


def test_a_job_on_a_small_teacher_claims_the_cores_that_it_keeps_busy(monkeypatch):
    def cores(rule: str, size: int, sharing: Sharing = CPU) -> int:
        network = {"family": "cifar_resnet", "depth": 20}
        study = parse_study(
            STUDY
            | {"datasets": {"digits": {"kind": "digits", "size": size}}}
            | {"models": {"big": network, "small": NET}, "methods": {"feature_only": {}}}
            | {"train": {"batch_size": 64}, "cache": {"images": 1000}}
        )
        node = graph.node(study, rule, graph.jobs(study, rule)[0])
        return claim(study, node, sharing).threads

    assert cores("train", 8) == 4, "networks are not built to know this"
    built = partial(network_outlines, build=True)
    monkeypatch.setattr(
        "kdsteps.jobs.busy_cores.network_outlines", lambda *given, build: built(*given)
    )
    monkeypatch.setattr("kdsteps.jobs.resources.cores_there", lambda: 2)
    for rule in ("train", "cache", "score"):
        assert cores(rule, 8) == 2, f"{rule}: half of the claimed cores are one real core"
        assert cores(rule, 32) == 4, rule
        cluster = Sharing(20, 0, 1, max_threads=4, jobs=5)
        assert cores(rule, 8, cluster) == 4, f"{rule}: of a cluster's cores, all are requested"
        assert cores(rule, 8, Sharing(8, 2, 1)) == claim_of_all(rule)


def claim_of_all(rule: str) -> int:
    """Cores that a job claims on a machine with 8 cores and 2 GPUs."""
    return 8 if rule == "score" else 4


# Times


def test_companions_train_until_the_block_ends():
    with companions(1):
        (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:]
        assert Path(f"/proc/{child}").exists()
    assert not Path(f"/proc/{child}").exists()


def test_what_each_image_adds_is_told_from_what_is_done_once(folder):
    study = parse_study(STUDY | {"methods": {"feature_only": {}}, "cache": {"images": 1056}})
    found = look_at_source(study.datasets["digits"], study.params.prepare, 1)
    rehearsal = Rehearsal(study, CPU, folder, print, 0.0, {"digits": found})
    for place, seconds in ((0, 9.0), (1, 2.0), (2, 3.92)):
        rehearsal.trials["cache", "digits", "big", str(place)] = Trial(seconds=seconds)
    node = graph.node(study, "cache", {"dataset": "digits", "teacher": "big"})
    (seconds,) = Costs(rehearsal, start=0.5, decoding={}).seconds([node])
    assert seconds == pytest.approx(0.5 + 3.92 + 800 * 0.01)


def test_a_trial_ends_even_within_a_step(folder, monkeypatch):
    monkeypatch.setattr("kdsteps.rehearsal.trial._PATIENCE", 0.0)
    monkeypatch.setattr("kdsteps.stages.distil.run", lambda job: time.sleep(60))
    found = attempt("distil", Job(settings=None, inputs={}, outputs={}), limit=0.1)
    assert not found.epochs
    assert found.seconds < 30


def test_a_training_is_scaled_from_its_trial_to_the_study(folder):
    """640 images in batches of 64 are 10 steps; a trial of 2 steps on half a batch took 1 s."""
    study = parse_study(STUDY | {"distil": {"epochs": 3, "batch_size": 64}})
    found = look_at_source(study.datasets["digits"], study.params.prepare, 1)
    images = type(found)(**vars(found) | {"counts": {"train": 640, "validation": 0, "test": 9}})
    say = lambda *finding: None  # noqa: E731
    rehearsal = Rehearsal(study, CPU, folder, say, 0.0, {"digits": images})
    key = ("distil", "pair", "labels")
    rehearsal.trials[key] = Trial(seconds=7.0, epochs=[3.0, 1.0, 1.0])
    rehearsal.scales[key] = Scale(batch_size=32, steps=2)
    costs = Costs(rehearsal, start=0.5, decoding={})
    node = graph.node(study, "distil", {"pair": "pair", "method": "labels", "seed": "1"})
    setup = 2.0 + 2.0  # besides the epochs, and of the first one
    assert costs.seconds([node]) == [0.5 + setup + 3 * 10.0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (89, "89 s"), (600, "10 min"), (11400, "3 h 10 min"), (4e5, "4.6 days")],
)
def test_times_are_said_as_precisely_as_they_are_known(seconds: float, words: str):
    assert duration(seconds) == words


def test_the_output_is_json_on_demand(folder, capsys):
    write_study(folder)
    assert main(["check", "--json", "--seconds", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["forecast"]["runs"] == 8
    assert {each["status"] for each in found["findings"]} <= {"ok", "problem", "note"}
