"""Images without labels: what is stored of them, which jobs there are, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from _commands import NET, STUDY
from _methods import plan_of
from _networks import CUT_ENTRIES, ENTRIES, IMAGE_SHAPE, NUM_CLASSES, build, network
from _pictures import as_bytes, color, settings_of, write_folder

from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.data.source import UNKNOWN
from kdsteps.errors import KdstepsError
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.early_checks import check_study
from kdsteps.jobs.job import Job
from kdsteps.methods.base import Batch, Task
from kdsteps.models import build_model
from kdsteps.models.chain import HEAD
from kdsteps.stages.prepare import run
from kdsteps.study import registry
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

BARE = {"kind": "folder", "path": "birds", "labels": "none"}
WEIGHTS = {**NET, "checkpoint": "weights.pt", "train": {"epochs": 0}}
UNLABELED: dict[str, Any] = {
    "datasets": {"birds": BARE, "digits": {"kind": "digits", "size": 8}},
    "models": {"big": WEIGHTS, "small": NET},
    "pairs": {"pair": {"dataset": "birds", "teacher": "big", "student": "small"}},
    "methods": {"embedding": {}, "feature_only": {}},
}


def study(**sections: Any) -> Study:
    return parse_study(STUDY | UNLABELED | sections)


def prepared(
    folder, kind: str, options: dict[str, Any], classes: tuple[str, ...] = (), **section: Any
) -> Prepared:
    folder.mkdir(exist_ok=True)
    names = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}
    files = {name: folder / file for name, file in names.items()}
    unlabeled = {"labels": "none", "classes": classes or None}
    settings = settings_of(kind, options, **section).model_copy(update=unlabeled)
    run(Job(settings, {}, files, threads=2))
    found = load_prepared(**files, device=torch.device("cpu"))
    assert set(read_table(files["index"], INDEX)["label"].to_pylist()) == {UNKNOWN}
    assert read_json(files["summary"])["class_names"] == list(classes)
    return found


# what is stored


def test_every_image_of_a_bare_folder_counts_wherever_it_is(tmp_path):
    root = write_folder(tmp_path / "birds", {"a": 6, "b/c": 5})
    color(50).save(root / "top.png")
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("no image")
    found = prepared(tmp_path / "out", "folder", {"path": str(root)}, validation=0.25)
    sizes = {part: len(found.rows(part)) for part in ("train", "validation", "test")}
    assert sizes == {"train": 9, "validation": 3, "test": 0}
    assert found.num_classes == 0
    assert found.part("train").labels.tolist() == [UNKNOWN] * 9


def test_splits_of_a_bare_folder_are_its_own_and_a_test_split_is_allowed(tmp_path):
    root = write_folder(tmp_path / "birds", {"train/x": 6, "test": 3})
    found = prepared(tmp_path / "out", "folder", {"path": str(root)}, validation=0)
    assert [len(found.rows(part)) for part in ("train", "validation", "test")] == [6, 0, 3]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "birds").mkdir()
    with pytest.raises(KdstepsError, match=r"birds: has no images; .*\.png"):
        prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "birds")})


def test_tables_need_no_column_of_labels(tmp_path):
    root = write_folder(tmp_path / "birds", {"": 6})
    rows = "".join(f"{number}.png\n" for number in range(6))
    (root / "list.csv").write_text(f"path\n{rows}")
    images = pa.table({"image": [as_bytes(color(number)) for number in range(6)]})
    pq.write_table(images, root / "birds.parquet")
    listed = prepared(tmp_path / "a", "table", {"path": str(root / "list.csv")}, validation=0)
    inside = prepared(tmp_path / "b", "parquet", {"train": str(root / "birds.parquet")})
    assert [len(listed.rows("train")), len(listed.rows("test"))] == [6, 0]
    assert [len(inside.rows("train")), len(inside.rows("validation"))] == [5, 1]


def test_labels_that_a_kind_has_anyway_are_dropped(tmp_path):
    found = prepared(tmp_path / "out", "digits", {"size": 8}, validation=0)
    assert len(found.rows("train")) == 1797


# which jobs there are


def test_nothing_that_needs_labels_is_planned():
    found = study()
    jobs = {rule: len(graph.jobs(found, rule)) for rule in graph.OUTPUTS}
    assert {rule: count for rule, count in jobs.items() if count} == {
        "prepare": 1,
        "train": 1,
        "train_check": 1,
        "build": 1,
        "distil": 4,
        "evaluate_latency": 1,
        "report": 1,
    }
    (names,) = graph.jobs(found, "build")
    assert "scores" not in graph.inputs(found, "build", names)


def test_a_probe_measures_the_teacher_and_each_student_before_and_after_training():
    found = study(probe={"dataset": "digits"})
    assert len(graph.jobs(found, "evaluate_probe")) == 4
    assert len(graph.jobs(found, "evaluate_probe_teacher")) == 1
    assert len(graph.jobs(found, "evaluate_probe_untrained")) == 2  # one per seed
    assert {names["dataset"] for names in graph.jobs(found, "prepare")} == {"birds", "digits"}
    images = graph.outputs("prepare", {"dataset": "digits"})["images"]
    for rule in graph.rules_of("evaluate"):
        if rule.startswith("evaluate_probe"):
            for names in graph.jobs(found, rule):
                assert graph.inputs(found, rule, names)["images"] == images


def test_a_study_with_labels_knows_nothing_of_all_this():
    labeled = parse_study(STUDY)
    for rule in graph.OUTPUTS:
        for names in graph.jobs(labeled, rule):
            assert "probe" not in graph.settings_text(labeled, rule, names)
            assert '"labels": null' not in graph.settings_text(labeled, rule, names)
    measured = parse_study(STUDY | {"probe": {"dataset": "digits"}})
    for rule in set(graph.OUTPUTS) - {"report"}:
        for names in graph.jobs(labeled, rule):
            before, after = (graph.node(each, rule, names) for each in (labeled, measured))
            assert (before.text, before.inputs) == (after.text, after.inputs)


# what is refused


@pytest.mark.parametrize(
    ("sections", "where", "what"),
    [
        ({"methods": {"kd": {}}}, "methods.kd", "needs labels.* embedding, feature_only, at"),
        ({"methods": {"labels": {}}}, "methods.labels", "needs labels"),
        (
            {"methods": {"fitnet": {}}},
            "methods.fitnet",
            "unless `labels_weight: 0`.*fitnet .labels_weight: 0",
        ),
        (
            {"methods": {"semckd": {"labels_weight": 0}}},
            "methods.semckd",
            "classifier.* semckd .labels_weight: 0, kd_weight: 0",
        ),
        (
            {"methods": {"feature_only": {"classifier_after": 0.5}}},
            "methods.feature_only",
            "needs labels unless `classifier_after: 0`",
        ),
        (
            {"methods": {"feature_only": {"tune": {"distil.learning_rate": [0.1, 0.2]}}}},
            "methods.feature_only.tune",
            "accuracy on validation images.*leave it out",
        ),
        ({"export": {}}, "export", "labeled test images.*leave the section out"),
        ({"build": {"select": "quality"}}, "build.select", "'quality' .* list layers"),
        ({"models": {"big": NET, "small": NET}}, "models.big", "trained with labels.*epochs: 0"),
        (
            {"models": {"big": WEIGHTS | {"classes": ["x", "y"]}, "small": NET}},
            "models.big.classes",
            "leave it out",
        ),
        ({"probe": {"dataset": "birds"}}, "probe.dataset", "'birds', which has no labels.*digits"),
        ({"probe": {"dataset": "digit"}}, "probe.dataset", "'digit', .*did you mean 'digits'"),
    ],
)
def test_what_needs_labels_is_refused_while_planning(sections, where, what):
    with pytest.raises(KdstepsError, match=f"{where}.*{what}"):
        study(**sections)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "digits", "classes": ["x", "y"]}, "classes follow from its labels.*labels: none"),
        (BARE | {"classes": ["x"]}, "at least 2 items"),
        (BARE | {"classes": ["x", "x"]}, "'x' twice; list each one once"),
    ],
)
def test_classes_are_for_images_without_labels_and_differ(entry, message):
    with pytest.raises(KdstepsError, match=f"datasets.birds.classes.*{message}"):
        study(datasets={"birds": entry})


def test_with_classes_students_learn_from_logits_and_labels_stay_unknown(tmp_path):
    methods = {name: {"labels_weight": 0} for name in ("kd", "lskd", "dist", "uld", "ckd")}
    named = {"birds": BARE | {"classes": ["crow", "owl"]}}
    found = study(datasets=named, methods={**methods, "embedding": {}})
    assert len(graph.jobs(found, "cache_outputs")) == 1
    assert graph.jobs(found, "evaluate") == []
    with pytest.raises(KdstepsError, match=r"methods.dkd: needs labels.*kd .labels_weight: 0"):
        study(datasets=named, methods={"dkd": {}})
    with pytest.raises(KdstepsError, match=r"methods.kd: .*list them in its `classes`"):
        study(methods={"kd": {"labels_weight": 0}})
    options = {"path": str(write_folder(tmp_path / "birds", {"a": 6}))}
    images = prepared(tmp_path / "out", "folder", options, classes=("crow", "owl"))
    assert (images.num_classes, images.labeled) == (2, False)
    assert set(images.part("train").labels.tolist()) == {UNKNOWN}


@pytest.mark.parametrize("name", ["kd", "lskd", "dist", "uld", "ckd"])
def test_without_labels_the_only_term_is_that_of_the_logits(name):
    teacher, student = network("large resnet", seed=1).eval(), network("resnet")
    unknown = torch.full((8,), UNKNOWN)
    task = Task(IMAGE_SHAPE, NUM_CLASSES, unknown, batch_size=8, labeled=False)
    method = registry.load("methods", name)(teacher, student, task, labels_weight=0.0)
    batch = Batch(torch.randn(8, *IMAGE_SHAPE), unknown, torch.arange(8), torch.zeros(8).long())
    terms = method.terms(batch)
    assert list(terms) == [name]
    assert terms[name].isfinite()


def test_methods_with_the_options_that_the_refusal_names_are_accepted():
    without = {"labels_weight": 0, "kd_weight": 0}
    methods = dict.fromkeys(("at", "fitnet", "ofd", "reviewkd", "rkd", "semckd", "sp"), without)
    assert set(study(methods=methods).methods) == set(methods)


# networks and methods

LABEL_FREE: list[tuple[str, dict[str, Any]]] = [
    ("embedding", {}),
    ("feature_only", {}),
    *((name, {"labels_weight": 0}) for name in ("at", "fitnet", "ofd", "reviewkd", "rkd", "sp")),
    ("semckd", {"labels_weight": 0, "kd_weight": 0}),
]


@pytest.mark.parametrize(("name", "options"), LABEL_FREE, ids=lambda value: str(value))
@pytest.mark.parametrize(
    ("teacher", "student"), [("large resnet", "resnet"), ("timm resnet", "timm vit")]
)
def test_backbones_are_taught_without_a_term_of_labels(name, options, teacher, student):
    if name == "ofd" and teacher == "timm resnet":
        pytest.skip("tokens have no activation to read before")
    frozen = network(teacher, seed=1, num_classes=0).requires_grad_(False).eval()
    ours = network(student, num_classes=0).train()
    kind = registry.load("methods", name)
    unknown = torch.full((8,), UNKNOWN)
    plan = plan_of(kind.plan, frozen, ours)
    task = Task(IMAGE_SHAPE, 0, unknown, plan, batch_size=8, labeled=False)
    method = kind(frozen, ours, task, **options)
    batch = Batch(torch.randn(8, *IMAGE_SHAPE), unknown, torch.arange(8), torch.zeros(8).long())
    terms = method.train().terms(batch)
    assert terms
    assert not {"labels", "kd"} & set(terms)
    torch.stack(list(terms.values())).sum().backward()
    first = next(iter(ours.parameters()))
    assert first.grad.isfinite().all()
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [*ENTRIES, *CUT_ENTRIES])
def test_a_backbone_is_its_network_up_to_the_classifier(kind, tmp_path):
    """Also from weights with a classifier, which is ignored."""
    entry = (ENTRIES | CUT_ENTRIES)[kind]
    full = network(kind, num_classes=7).eval()
    torch.save(full.plain().state_dict(), tmp_path / "weights.pt")
    options = {**entry["options"], "checkpoint": str(tmp_path / "weights.pt")}
    backbone = build({**entry, "options": options}, num_classes=0).eval()
    assert (backbone.layers, backbone.stages) == (full.layers, full.stages)
    own, theirs = backbone.plain().state_dict(), full.plain().state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    images = torch.randn(2, *IMAGE_SHAPE)
    traced, whole = backbone.trace(images), full.trace(images)
    assert all(torch.equal(traced[layer], whole[layer]) for layer in full.layers)
    lost = {name: value for name, value in theirs.items() if name not in own}
    weight, bias = (next(v for v in lost.values() if v.ndim == ndim) for ndim in (2, 1))
    assert torch.allclose(traced[HEAD] @ weight.T + bias, whole[HEAD], atol=1e-5)


def test_timm_loads_a_backbone_and_it_computes_the_same():
    import timm

    chain = build_model("timm", num_classes=0, image_size=16, name="test_resnet").eval()
    there = timm.create_model("test_resnet", num_classes=0).eval()
    there.load_state_dict(chain.plain().state_dict())
    images = torch.randn(2, *IMAGE_SHAPE)
    assert torch.equal(there(images), chain(images))


def test_a_vision_transformer_learns_with_the_token_that_is_its_output():
    teacher = network("timm vit", seed=1, num_classes=0).requires_grad_(False).eval()
    student = network("timm vit", num_classes=0)
    task = Task(IMAGE_SHAPE, 0, torch.full((8,), UNKNOWN), batch_size=8, labeled=False)
    method = registry.load("methods", "embedding")(teacher, student, task, local_weight=0)
    assert method.projector.in_features == student(torch.zeros(2, *IMAGE_SHAPE)).shape[1]
    assert method.student_layers == (HEAD,)


def test_images_of_another_size_than_those_of_the_probe_are_refused_before_the_first_job():
    sizes = {"birds": BARE | {"store": 16}, "digits": {"kind": "digits", "size": 8}}
    with pytest.raises(
        KdstepsError, match=r"probe.dataset: 'digits' .* 8 x 8 .*'birds' of 16 x 16"
    ):
        check_study(study(datasets=sizes, probe={"dataset": "digits"}), with_files=False)


def test_the_study_of_the_page_is_one():
    page = (Path(__file__).parents[1] / "docs/without-labels.md").read_text()
    first, *others = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = parse_study(yaml.safe_load(first))
    assert len(graph.jobs(found, "distil")) == 6
    named = {**found.params.model_dump(exclude_unset=True), **yaml.safe_load(others[0])}
    assert parse_study(named).datasets["bare"].classes == ("cat", "dog")


OWN_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.{last}
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, images):
        return self.last(self.stem(images).mean(dim=(2, 3)))
"""


def test_a_network_of_ones_own_loses_its_linear_classifier_wherever_it_is_registered(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(OWN_NET.format(last="Linear(6, num_classes)"))
    backbone = build_model("./net.py:Net", num_classes=0, image_size=16)
    assert set(backbone.plain().state_dict()) == {"stem.0.weight", "stem.0.bias"}
    assert backbone(torch.randn(2, *IMAGE_SHAPE)).shape == (2, 6)
    layers = "nn.Unflatten(1, (6, 1)), nn.Conv1d(6, num_classes, 1), nn.Flatten()"
    (tmp_path / "other.py").write_text(OWN_NET.format(last=f"Sequential({layers})"))
    with pytest.raises(KdstepsError, match=r"other.py:Net has no linear classifier.*timm.*classes"):
        build_model("./other.py:Net", num_classes=0, image_size=16)
