"""The metrics against values worked out by hand, and the registry that everything follows from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from _commands import DATA, TEACHER, write_study
from torch import Tensor, nn

from kdsteps.cli.main import main
from kdsteps.data.images import ImageSplit
from kdsteps.errors import KdstepsError
from kdsteps.evaluation import metrics
from kdsteps.evaluation.metrics import METRICS, Metric, all_metrics, compute
from kdsteps.evaluation.predictions import (
    accuracy,
    accuracy_per_class,
    agreement,
    ece,
    kl_to_teacher,
    nll,
    predict,
    top5_accuracy,
    varies,
)
from kdsteps.evaluation.size import parameters, size_mib
from kdsteps.evaluation.speed import (
    Timing,
    images_per_second,
    latency_ms,
    latency_p90_ms,
    time_network,
)
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.nodes import JobNode
from kdsteps.jobs.resources import WORK_OF_A_CORE
from kdsteps.report.results import run_columns
from kdsteps.study.loading import load_study
from kdsteps.study.part_cache import description
from kdsteps.training.device import keep_busy

OPTIONS = {"calibration_bins": 15}


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits that soften to the given probabilities."""
    return torch.tensor(rows, dtype=torch.double).log()


def test_accuracy_top5_and_nll_match_values_worked_by_hand():
    ascending = torch.arange(6.0).repeat(2, 1)  # ranks class 5 first and class 0 last
    assert accuracy(ascending, torch.tensor([5, 0])) == 0.5
    assert top5_accuracy(ascending, torch.tensor([5, 0])) == 0.5
    assert top5_accuracy(ascending, torch.tensor([1, 1])) == 1.0
    sure = logits_of((0.5, 0.5), (0.2, 0.8))
    expected = -(math.log(0.5) + math.log(0.2)) / 2
    assert nll(sure, torch.tensor([0, 0])) == pytest.approx(expected)


def test_ece_matches_a_value_worked_by_hand():
    # two bins: 0.6 and 0.9 fall into the upper one; confidence 0.75, accuracy one half
    logits = logits_of((0.6, 0.4), (0.1, 0.9))
    assert ece(logits, torch.tensor([0, 0]), calibration_bins=2) == pytest.approx(0.25)
    # fifteen bins: each in its own bin, |1 - 0.6| and |0 - 0.9|
    assert ece(logits, torch.tensor([0, 0]), calibration_bins=15) == pytest.approx(0.65)


def test_a_correct_and_certain_network_is_perfectly_calibrated():
    assert ece(1000 * torch.eye(4), torch.arange(4)) == 0.0


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one():
    logits = logits_of((0.5, 0.5), (0.25, 0.75))  # bins (0, 0.5] and (0.5, 1]
    found = ece(logits, torch.tensor([0, 1]), calibration_bins=2)
    assert found == pytest.approx((0.5 + 0.25) / 2)


def test_accuracy_per_class_is_none_for_a_class_without_images():
    logits = torch.eye(3)[[0, 1, 0, 0]]  # predicts 0, 1, 0, 0
    assert accuracy_per_class(logits, torch.tensor([0, 0, 0, 1])) == [2 / 3, 0.0, None]


def test_kl_and_agreement_match_values_worked_by_hand():
    student = logits_of((0.5, 0.5), (0.5, 0.5))
    teacher = logits_of((0.75, 0.25), (0.5, 0.5))
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert kl_to_teacher(student, teacher) == pytest.approx(expected)
    assert agreement(student, teacher) == 1.0
    assert agreement(-teacher, teacher) == 0.5  # the tie of the second row remains one


def test_a_network_agrees_with_itself_and_with_shifted_logits():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert agreement(logits, logits + 3) == 1.0
    assert kl_to_teacher(logits, logits + 3) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("function", [agreement, kl_to_teacher])
def test_logits_of_other_classes_are_refused(function):
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        function(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("function", [accuracy, top5_accuracy, nll, ece, accuracy_per_class])
def test_labels_of_other_images_are_refused(function):
    with pytest.raises(ValueError, match="2 rows of logits for 3 labels"):
        function(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="0 rows of logits"):
        function(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_every_entry_of_the_registry_is_complete_and_has_its_own_name():
    assert len({entry.name for entry in METRICS}) == len(METRICS)
    for entry in METRICS:
        assert entry.label and entry.unit and entry.explanation.endswith("."), entry.name
        assert entry.better in ("higher", "lower"), entry.name


def test_metrics_are_computed_by_source_and_top5_only_above_five_classes():
    labels = torch.tensor([0, 1])
    given = {"num_classes": 5, "options": OPTIONS}
    found = compute(METRICS, "predictions", torch.zeros(2, 5), labels, **given)
    assert found.keys() == {"accuracy", "top5_accuracy", "nll", "ece"}
    assert found["top5_accuracy"] is None
    given = {"num_classes": 6, "options": OPTIONS}
    found = compute(METRICS, "predictions", torch.eye(6)[:2], labels, **given)
    assert found["top5_accuracy"] == 1.0


def test_a_number_that_is_not_finite_counts_as_undefined():
    entry = Metric("odd", lambda logits, labels: math.nan)
    assert entry.value(None, None, num_classes=2, options={}) is None


@pytest.mark.parametrize(
    ("found", "words"), [("0.5x", "type str"), (torch.ones(3), r"type Tensor of shape \(3,\)")]
)
def test_a_metric_that_returns_no_number_is_told_in_one_sentence(found, words):
    entry = Metric("odd", lambda logits, labels: found)
    with pytest.raises(KdstepsError, match=rf"odd returned a value of {words}; return one number"):
        entry.value(None, None, num_classes=2, options={})


OF_SPEED = """
from kdsteps.evaluation.metrics import metric

@metric(source="speed", unit="s")
def brier(timing):
    return max(timing.image_ms)
"""

BRIER = """
from kdsteps.evaluation.metrics import metric
import torch.nn.functional as F

@metric(label="Brier score", better="lower", explanation="Squared error of probabilities.")
def brier(logits, labels):
    targets = F.one_hot(labels, logits.shape[1])
    return (logits.softmax(dim=1) - targets).square().sum(dim=1).mean().item()

def plain(logits, labels):
    '''Number of images.'''
    return len(labels)

accuracy = plain
accuracy.__name__ = "accuracy"
number = 3

def few(logits):
    return 1.0
"""


def test_a_metric_of_a_file_joins_the_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER.replace("accuracy", "other"))
    *shipped, brier, plain = all_metrics(["./mine.py:brier", "./mine.py:plain"])
    assert tuple(shipped) == METRICS
    assert (brier.name, brier.label, brier.better) == ("brier", "Brier score", "lower")
    assert (plain.name, plain.explanation, plain.better) == ("other", "Number of images.", None)
    found = brier.value(torch.zeros(1, 2), torch.tensor([0]), num_classes=2, options={})
    assert found == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./mine.py:brierr", r"no metric 'brierr'; did you mean 'brier'"),
        ("./other.py:brier", r"no file '\./other\.py'"),
        ("no_such_package.metrics:brier", r"no module 'no_such_package'"),
        ("brier", r"there is no metric 'brier'"),
        ("./mine.py:accuracy", r"already a metric 'accuracy'"),
        ("./mine.py:number", r"is a int; a metric is a function"),
        ("./mine.py:few", r"few\(logits\) should take: logits, labels"),
    ],
)
def test_a_wrong_reference_to_a_metric_is_one_sentence(reference, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER)
    with pytest.raises(KdstepsError, match=words):
        all_metrics([reference])


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ("name='seconds'", r"results have something else under the name 'seconds'; rename yours"),
        ("name='diverged'", r"results have something else under the name 'diverged'"),
        ("name='nll'", r"there is already a metric 'nll'; rename yours"),
        ("name='a b'", r"the name 'a b' cannot be a column"),
        ("titel='x'", r"a metric has no 'titel'"),
        ("lable='x'", r"a metric has no 'lable'; did you mean 'label'"),
        ("source='prediction'", r"source is 'prediction'; it should be 'predictions', 'teacher'"),
        ("better='up'", r"better is 'up'; it should be None, 'higher', 'lower'"),
        ("source='speed', options=('batch_size',)", r"it should be latency_runs or throughput"),
        ("options=('bins',)", r"options has 'bins'; it should be calibration_bins or batch_size"),
    ],
)
def test_a_metric_with_wrong_keywords_is_told_before_anything_runs(
    keywords, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER.replace('better="lower"', keywords))
    with pytest.raises(KdstepsError, match=rf"^\./mine\.py:brier: .*{words}"):
        description("metrics", "./mine.py:brier")


def test_a_metric_may_work_in_place():
    def sharpness(logits: Tensor, labels: Tensor) -> float:
        logits -= logits.max(dim=1, keepdim=True).values
        return logits.min().item()

    with torch.inference_mode():
        logits = torch.tensor([[1.0, 3.0]])
    entry = Metric("sharpness", sharpness)
    assert entry.value(logits, torch.tensor([0]), num_classes=2, options={}) == -2
    assert logits.tolist() == [[1, 3]]


class Noisy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) + torch.rand(len(images), 3)


class Batchwise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        found = images.mean(dim=(2, 3))
        return found - found.mean(dim=0)


class Steady(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("network", "found"), [(Noisy(), True), (Batchwise(), True), (Steady(), False)]
)
@pytest.mark.parametrize("count", [3, 5, 16, 40])
def test_outputs_that_depend_on_more_than_the_image_vary(network, found, count):
    images = torch.rand(40, 3, 4, 4)
    with torch.no_grad():
        outputs = network(images)
    assert varies(network, outputs, images[:count]) == found


def test_predictions_are_made_in_order_and_in_eval_mode():
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None]
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    part = ImageSplit(images, labels, torch.zeros(1), torch.ones(1))
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train()
    logits, found = predict(network, part.in_order(3))
    assert torch.allclose(logits[:, 0], torch.arange(7) / 255)
    assert torch.equal(found, labels)
    assert network.training
    assert not logits.requires_grad


@pytest.mark.parametrize("where", ["registry", pytest.param("params.yaml", marks=pytest.mark.slow)])
def test_a_metric_is_one_entry_and_found_in_every_result(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER)
    references = ["./mine.py:brier"]
    if where == "registry":
        monkeypatch.setattr(metrics, "METRICS", all_metrics(references))
        references = []
    write_study(tmp_path, methods={"labels": {}}, seeds=[0], evaluate={"metrics": references})
    run = ["--pair", "pair", "--method", "labels", "--seed", "0"]
    assert main(["prepare", "--dataset", "digits"]) == 0
    assert main(["distil", *run]) == 0
    assert main(["evaluate", *run]) == 0
    assert main(["evaluate", "--pair", "pair"]) == 0
    assert main(["report"]) == 0
    names = {"pair": "pair", "method": "labels", "seed": "0"}
    results = graph.outputs("report")
    measured = read_json(graph.outputs("evaluate", names)["measures"])["brier"]
    assert 0 < measured < 2
    runs = read_table(results["runs"], run_columns(all_metrics(references)))
    assert runs["brier"].to_pylist() == [measured]
    page = Path(results["page"]).read_text()
    assert ">Brier score" in page
    assert "Squared error of probabilities. Lower is better." in page
    assert f">{measured:.3f}<" in page
    assert read_json(results["metrics"])["pair"]["methods"]["labels"]["brier"] == measured


def test_a_network_that_learned_nothing_is_told_of(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, train={"epochs": 1, "learning_rate": 1e-9})
    caplog.set_level("WARNING")
    assert main(["prepare", *DATA]) == 0
    assert main(["train", *TEACHER]) == 0
    assert main(["evaluate", *TEACHER]) == 0
    assert "that is the level of chance: 0.1" in caplog.text


def test_a_metric_that_cannot_be_loaded_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path, evaluate={"metrics": ["./mine.py:brier"]})
    with pytest.raises(KdstepsError, match=r"evaluate\.metrics: .*\./mine\.py"):
        load_study(path)


def test_two_metrics_of_one_name_are_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("mine.py", "other.py"):
        Path(file).write_text(BRIER)
    references = ["./mine.py:brier", "./other.py:brier"]
    path = write_study(tmp_path, evaluate={"metrics": references})
    with pytest.raises(KdstepsError, match=r"other\.py:brier are both named 'brier'; rename one"):
        load_study(path)


@pytest.mark.parametrize("source", ["predictions", "speed"])
def test_the_file_of_a_metric_counts_as_code_of_the_jobs_that_use_it(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER if source == "predictions" else OF_SPEED)
    study = load_study(write_study(tmp_path, evaluate={"metrics": ["./mine.py:brier"]}))
    run = {"pair": "pair", "method": "labels", "seed": "0"}
    jobs = {"distil": run, "evaluate": run, "evaluate_latency": {"pair": "pair"}, "report": {}}
    used = {
        rule
        for rule, names in jobs.items()
        if "./mine.py:brier" in set(code_identity.roots(study, rule, names))
    }
    assert used == {"evaluate", "report"} | ({"evaluate_latency"} if source == "speed" else set())


def test_networks_are_timed_again_for_none_but_a_metric_of_speed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BRIER)
    Path("fast.py").write_text(OF_SPEED)

    def timing(*metrics: str, seeds: tuple[int, ...] = (0, 1)) -> JobNode:
        path = write_study(tmp_path, evaluate={"metrics": list(metrics)}, seeds=list(seeds))
        return graph.node(load_study(path), "evaluate_latency", {"pair": "pair"})

    assert timing("./mine.py:brier") == timing("./mine.py:brier", seeds=(1, 0)) == timing()
    assert timing("./fast.py:brier").settings.evaluate.metrics == ("./fast.py:brier",)


def test_size_counts_shared_weights_once_and_buffers_only_in_memory():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    network.append(network[0])
    image = torch.zeros(1, 4)
    count = parameters(network, image)
    assert count == 4 * 4 + 4 + 4 + 4
    # besides the parameters: running mean and variance of 4 bytes each, a counter of 8
    assert size_mib(network, image) == (4 * count + 4 * 8 + 8) / 2**20


def test_speed_is_computed_from_the_times():
    timing = Timing(tuple(float(ms) for ms in range(1, 12)), (10.0, 20.0, 40.0), 64, 1)
    assert latency_ms(timing) == 6.0
    assert latency_p90_ms(timing) == 10.0
    assert images_per_second(timing) == pytest.approx(64 / 0.020)


def test_timing_measures_both_and_leaves_threads_and_mode_as_they_were():
    given = torch.get_num_threads()
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)).train()
    try:
        torch.set_num_threads(2)
        timing = time_network(network, (3, 2, 2), runs=20, batch_size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(given)
    assert (len(timing.image_ms), timing.batch_size, timing.threads) == (20, 8, 1)
    assert min(timing.image_ms + timing.batch_ms) > 0
    assert network.training


def test_timing_restores_the_threads_when_a_network_fails():
    given = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError):
            time_network(nn.Linear(5, 5), (3, 2, 2), runs=2, batch_size=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(given)


def test_steps_too_small_for_threads_are_computed_on_one(monkeypatch):
    given = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        keep_busy(10 * WORK_OF_A_CORE)
        assert torch.get_num_threads() == 2
        keep_busy(WORK_OF_A_CORE // 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(given)
