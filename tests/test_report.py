"""The report says what the results say, loads nothing, and names who lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from _results import GAINS, PAIR, make_results, make_study, make_sweep, report_job
from scipy import stats

from kdsteps.errors import KdstepsError
from kdsteps.evaluation.metrics import METRICS
from kdsteps.files.columns import HISTORY, PREDICTIONS
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.report.charts import accuracy
from kdsteps.report.formats import count, duration, number, p_value, percent, points, signed
from kdsteps.report.page import render
from kdsteps.report.published import TABLE, published_rows
from kdsteps.report.results import (
    Results,
    chance_level,
    identity,
    load_results,
    run_columns,
)
from kdsteps.report.results import (
    finished as finished_runs,
)
from kdsteps.report.stones import drawing
from kdsteps.report.sweep import find_sweep
from kdsteps.report.tables import PairTable, pair_tables
from kdsteps.report.verdict import verdict
from kdsteps.stages import report
from kdsteps.study.loading import parse_study

REPOSITORY = Path(__file__).parent.parent
SIMKD = {"labels": 0.0, "kd": 0.01, "simkd": 0.03}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Job:
    job = make_results(tmp_path_factory.mktemp("study"), make_study())
    report.run(job)
    return job


@pytest.fixture(scope="module")
def page(finished) -> str:
    return finished.outputs["page"].read_text()


def table_of(accuracies: dict[str, dict[int, float | None]], num_images: int = 1000) -> PairTable:
    """The comparison of methods with these accuracies by seed, on one pair; None: it diverged."""
    rows = [
        {
            "pair": "p",
            "dataset": "d",
            "teacher": "t",
            "student": "s",
            "method": method,
            "seed": seed,
            "diverged": accuracy is None,
            "accuracy": accuracy,
            "num_images": num_images,
        }
        for method, values in accuracies.items()
        for seed, accuracy in values.items()
    ]
    nothing = pd.DataFrame(columns=["dataset", "teacher"])
    results = Results(
        metrics=METRICS,
        runs=pd.DataFrame(rows, columns=list(run_columns())),
        teachers=nothing,
        class_accuracy={},
        speeds={},
        curves=nothing,
        teacher_curves=nothing,
        scores=nothing,
        plans={},
        data={"d": {"class_names": ["a", "b"]}},
        origins=nothing,
    )
    return pair_tables(results, {"labels": "labels", "kd": "kd"}, 0.95)[0]


def text_of(page: str) -> str:
    """What a reader reads: no tags, no style, no script, one space where there is space."""
    bare = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare))


def test_every_file_of_the_report_is_written(finished):
    assert set(finished.outputs) == set(graph.OUTPUTS["report"])
    assert all(path.stat().st_size > 0 for path in finished.outputs.values())
    pictures = [path for path in finished.outputs.values() if path.suffix == ".png"]
    assert len(pictures) == 4
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_the_page_refers_to_nothing_outside_itself(page):
    assert not re.search(r"https?://|//cdn|@import|url\((?!#|data:image/)|<img|src=", page)
    links = set(re.findall(r'href="(?!#|data:,)([^"]*)"', page))
    assert {"runs.parquet", "metrics.json"} < links
    assert all(link.endswith("/student.safetensors") for link in links if link.startswith(".."))


def test_every_method_is_named_and_losers_are_called_so(page):
    text = text_of(page)
    assert all(method in text for method in GAINS)
    assert re.search(r"block_kd (won: 9\d\.\d%|beat labels by \d\.\d points)", text)
    assert re.search(r"Behind labels: feature_only \(−\d\.\d, more than noise\)", text)


def test_every_accuracy_is_shown_with_its_images_and_the_chance_level(page):
    card = text_of(page.split("<nav")[0])
    assert "360 test images, chance 10.0%" in card
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    accuracies = [
        table for table in tables if "test accuracy, %<" in table and "seed</th>" not in table
    ]
    assert len(accuracies) == 2
    assert all("360 test images, chance 10.0%" in table for table in accuracies)


def test_every_metric_of_the_registry_has_a_column_and_an_explanation(page):
    text = text_of(page)
    for metric in METRICS:
        assert text.count(metric.label) >= 2, metric.name
        assert text_of(metric.explanation) in text, metric.name


def test_networks_that_resize_their_images_are_named_with_the_size(tmp_path, page):
    assert "are resized" not in text_of(page)
    models = {
        "resnet20": {"family": "cifar_resnet", "depth": 20, "image_size": [32, 48]},
        "resnet8": {"family": "cifar_resnet", "depth": 8, "image_size": 16},  # that of the images
    }
    job = make_results(tmp_path, make_study(1, ("labels", "kd"), models=models))
    report.run(job)
    text = text_of(job.outputs["page"].read_text())
    assert "Images of 16 × 16 pixels are resized to 32 × 48 for resnet20." in text


def test_the_weakest_classes_of_every_method_are_shown(finished, page):
    names = {"pair": "resnet20-resnet8", "method": "labels"}
    root = finished.outputs["page"].parents[2]
    paths = [
        root / graph.outputs("evaluate", {**names, "seed": str(seed)})["measures"]
        for seed in range(3)
    ]
    mean = np.mean([read_json(path)["accuracy_per_class"] for path in paths], axis=0)
    weakest = page.split('class="weakest"')[1].split("</table>")[0]
    (row,) = (row for row in weakest.split("<tr>") if ">labels<" in row)
    assert f"<b>{mean.argmin()}</b> {100 * mean.min():.1f}" in row


def test_the_cost_is_that_of_the_network_that_a_method_deploys(tmp_path):
    job = make_results(tmp_path, make_study(seeds=2, methods=("labels", "kd", "simkd")), SIMKD)
    report.run(job)
    page = job.outputs["page"].read_text()
    costs = text_of(page.split('id="cost"')[1].split("</table>")[0])
    assert re.search(r"(kd and labels|labels and kd) 7\.9 k 1\.2 M", costs)
    assert re.search(r"simkd 12\.3 k 2 M", costs)
    assert "resnet20, teacher 272 k 31 M" in costs
    assert "resnet8, simkd" in page or "simkd: " in page
    runs = read_table(job.outputs["runs"], run_columns()).to_pandas().groupby("method").first()
    assert runs["parameters"].to_dict() == {"kd": 7900, "labels": 7900, "simkd": 12300}
    assert runs.loc["simkd", "latency_ms"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [["kd/1"], ["kd/0", "kd/1"], ["kd", "labels"]])
def test_diverged_runs_leave_a_report_with_all_others(tmp_path, lost):
    job = make_results(tmp_path, make_study(seeds=2, methods=("labels", "kd")))
    names = ("accuracy", "top5_accuracy", "nll", "ece", "agreement", "kl_to_teacher")
    nothing = dict.fromkeys((*names, "accuracy_per_class")) | {"diverged": True}
    for path in job.lists["measures"]:
        if any(f"/{run}/" in str(path) for run in lost):
            write_json(path, read_json(path) | nothing)
    report.run(job)
    text = text_of(job.outputs["page"].read_text()).split("params.yaml with all defaults")[0]
    assert not re.search(r"\bnan\b|\bNaN\b|\bNone\b", text)
    found = read_json(job.outputs["metrics"])["resnet20-resnet8"]["methods"]
    finished = {name: numbers.get("seeds", 0) for name, numbers in found.items()}
    if lost == ["kd/1"]:
        assert "Diverged: kd (seed 1)." in text
        assert text.count("1 diverged") > 1  # next to every mean
        assert finished == {"kd": 1, "labels": 2}
    elif lost == ["kd/0", "kd/1"]:
        assert "labels reached" in text
        assert "Diverged: kd (seeds 0 and 1)." in text
        assert finished == {"kd": 0, "labels": 2}
    else:
        assert "Every run diverged." in text
        assert finished == {"kd": 0, "labels": 0}


def test_charts_take_their_colors_from_the_page_and_share_no_names(page):
    drawings = re.findall(r'<svg class="chart".*?</svg>', page, flags=re.DOTALL)
    assert len(drawings) > 15
    assert not re.search(r'(?:fill|stroke)="#', "".join(drawings))
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(names)


def test_runs_hold_one_row_a_student_with_what_was_measured(finished):
    runs = read_table(finished.outputs["runs"], run_columns()).to_pandas()
    assert len(runs) == 12
    one = runs[(runs["method"] == "kd") & (runs["seed"] == 2)].iloc[0]
    names = {"pair": "resnet20-resnet8", "method": "kd", "seed": "2"}
    root = finished.outputs["page"].parents[2]
    measures = read_json(root / graph.outputs("evaluate", names)["measures"])
    assert one["accuracy"] == measures["accuracy"]
    assert one["macs"] == measures["macs"]
    history = read_table(root / graph.outputs("distil", names)["history"], HISTORY).to_pandas()
    validated = history.loc[history["name"] == "validation_accuracy", "value"]
    assert one["best_validation_accuracy"] == validated.max()
    assert one["seconds"] == 43.0


def test_metrics_equal_those_recomputed_from_the_runs(finished):
    runs = read_table(finished.outputs["runs"], run_columns()).to_pandas()
    found = json.loads(finished.outputs["metrics"].read_text())["resnet20-resnet8"]["methods"]
    wide = runs.pivot(index="seed", columns="method", values="accuracy")
    against_labels = {
        method: stats.ttest_rel(wide[method], wide["labels"])
        for method in wide
        if method != "labels"
    }
    order = sorted(against_labels, key=lambda method: against_labels[method].pvalue)
    largest = 0.0
    for rank, method in enumerate(order):
        test = against_labels[method]
        largest = max(largest, min(1.0, (3 - rank) * test.pvalue))
        difference = found[method]["difference_to_labels"]
        assert difference["mean"] == pytest.approx((wide[method] - wide["labels"]).mean())
        assert difference["p"] == pytest.approx(test.pvalue)
        assert difference["p_adjusted"] == pytest.approx(largest)
        interval = test.confidence_interval(0.95)
        assert (difference["low"], difference["high"]) == pytest.approx(tuple(interval))
    for method in wide:
        assert found[method]["accuracy"] == pytest.approx(wide[method].mean())
        assert found[method]["spread"] == pytest.approx(wide[method].std())
        assert found[method]["seeds"] == 3
    assert "difference_to_labels" not in found["labels"]


def test_students_without_a_teacher_are_compared_with_it_all_the_same(finished):
    runs = read_table(finished.outputs["runs"], run_columns()).to_pandas()
    one = runs[(runs["method"] == "labels") & (runs["seed"] == 0)].iloc[0]
    root = finished.outputs["page"].parents[2]
    paths = [
        graph.outputs("evaluate", {"pair": "resnet20-resnet8", "method": "labels", "seed": "0"}),
        graph.outputs("evaluate_teacher", {"dataset": "digits", "teacher": "resnet20"}),
    ]
    student, teacher = (
        read_table(root / path["predictions"], PREDICTIONS).to_pandas() for path in paths
    )
    assert one["agreement"] == (student["predicted"] == teacher["predicted"]).mean()
    ours, theirs = (np.stack(table["logits"]).astype(float) for table in (student, teacher))
    softened = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (ours, theirs)]
    kl = (np.exp(softened[1]) * (softened[1] - softened[0])).sum(axis=1).mean()
    assert one["kl_to_teacher"] == pytest.approx(kl)


def test_the_plots_tables_are_means_over_seeds(finished):
    runs = read_table(finished.outputs["runs"], run_columns()).to_pandas()
    accuracy = pd.read_csv(finished.outputs["accuracy_table"]).set_index("name")["accuracy"]
    assert accuracy["resnet20-resnet8 kd"] == pytest.approx(
        runs.loc[runs["method"] == "kd", "accuracy"].mean()
    )
    curves = pd.read_csv(finished.outputs["curves_table"])
    assert len(curves) == 4 * 15
    quality = pd.read_csv(finished.outputs["quality_table"])
    assert quality["chosen"].sum() == 3


@pytest.mark.parametrize("accuracies", [(0.2, 0.9, 0.9), (0.99, 0.99, 1.0), (0.0, 0.0, 0.4)])
def test_the_axis_of_the_accuracies_has_room_for_a_deviation_on_both_sides(accuracies):
    table = table_of({"labels": dict(enumerate(accuracies)), "kd": {0: 0.5, 1: 0.5, 2: 0.51}})
    spec = accuracy.strip(table, 500).to_dict()
    low, high = spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    shown = [row for rows in spec["datasets"].values() for row in rows if "low" in row]
    assert len(shown) == 2
    assert all(low < row["low"] or row["low"] == 0 for row in shown)
    assert all(row["high"] < high or row["high"] == 100 for row in shown)


@pytest.mark.slow
def test_the_same_results_give_the_same_page(finished, page):
    report.run(finished)
    assert finished.outputs["page"].read_text() == page


@pytest.mark.slow
def test_one_seed_is_shown_as_a_single_run(tmp_path):
    job = make_results(tmp_path, make_study(seeds=1))
    report.run(job)
    text = text_of(job.outputs["page"].read_text())
    assert "a single run cannot be told from noise" in text
    assert "±" not in text.split("How to read it")[0]
    found = read_json(job.outputs["metrics"])["resnet20-resnet8"]["methods"]["kd"]
    assert "spread" not in found
    assert set(found["difference_to_labels"]) == {"mean", "seeds"}


@pytest.mark.slow
def test_a_study_without_any_teacher_has_a_report(tmp_path):
    job = make_results(tmp_path, make_study(methods=("labels",)))
    report.run(job)
    assert "labels reached" in text_of(job.outputs["page"].read_text())
    found = read_json(job.outputs["metrics"])["resnet20-resnet8"]
    assert found.keys() == {"methods", "test_images", "chance"}


@pytest.mark.slow
def test_what_was_not_measured_is_a_dash_and_what_is_written_is_escaped(tmp_path):
    study = make_study(report={"title": "<script>alert(1)</script>"})
    job = make_results(tmp_path, study)
    for path in job.lists["measures"]:
        write_json(path, read_json(path) | {"top5_accuracy": None, "size_mib": None})
    for path in job.lists["teacher_measures"]:  # its logits are not finite
        write_json(path, read_json(path) | {"accuracy": None, "accuracy_per_class": None})
    for path in job.lists["histories"]:
        rows = read_table(path, HISTORY).to_pandas()
        rows = rows[~rows["name"].str.startswith("validation")]
        rows.loc[rows.index[0], "value"] = float("nan")
        write_table(path, rows.to_dict("list"), HISTORY)
    report.run(job)
    page = job.outputs["page"].read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"\bnan\b|\bNaN\b|\bNone\b|Undefined", text_of(page))
    assert (
        "top5_accuracy"
        not in read_json(job.outputs["metrics"])["resnet20-resnet8"]["methods"]["kd"]
    )


@pytest.mark.slow
def test_published_values_stand_beside_ours(tmp_path):
    named = PAIR | {"published": "resnet32x4-resnet8x4"}
    study = make_study(methods=("labels", "kd"), pairs={"named": named, "other": PAIR})
    job = make_results(tmp_path, study)
    report.run(job)
    text = text_of(job.outputs["page"].read_text())
    assert "All pairs at a glance" in text
    published = text.split("Published values and ours")[1]
    assert re.search(r"student 72\.50 9\d\.\d\d ± \d\.\d\d labels", published)
    assert re.search(r"DKD 76\.32 – – mdistiller README, read in a primary source", published)


def test_a_best_method_that_is_labels_is_no_success_of_distillation():
    found = verdict(table_of({"labels": {0: 0.9, 1: 0.91}, "kd": {0: 0.8, 1: 0.82}}))
    assert found.headline == "No method did better than labels (90.5%)"
    labels = {seed: 0.9 + 0.001 * seed for seed in range(6)}
    below = {seed: value - 0.03 - 0.001 * (seed % 2) for seed, value in labels.items()}
    decided = verdict(table_of({"labels": labels, "kd": below}))
    assert decided.answer == "More than noise: labels is better than kd over 6 seeds"
    assert decided.mood == "worse"
    found = verdict(table_of({"labels": {0: 0.9, 1: 0.91}, "kd": {0: 0.8, 1: 0.82}}))
    assert any("Behind labels: kd" in sentence for sentence in found.sentences)


def test_a_gain_within_the_noise_is_no_win():
    labels, kd = {0: 0.90, 1: 0.92, 2: 0.91}, {0: 0.93, 1: 0.90, 2: 0.92}
    found = verdict(table_of({"labels": labels, "kd": kd}))
    assert found.headline == "kd (91.7%) and labels (91.0%) cannot be told apart"
    assert found.answer == "Not shown to be more than noise over 3 seeds"
    # spread 2.52: at a power of 0.8 and 2 degrees of freedom, 3.26 times as much
    said = "With 3 seeds, a single comparison detects a true gain of 8.2 points over labels four"
    assert any(sentence.startswith(said) for sentence in found.sentences)


def test_a_method_won_only_if_it_is_better_than_every_other_one():
    labels = {0: 0.900, 1: 0.902, 2: 0.900, 3: 0.898}
    best = {seed: value + 0.02 + 0.002 * (seed % 2) for seed, value in labels.items()}
    second = {seed: value - 0.01 + 0.0005 * (seed // 2) for seed, value in best.items()}
    found = verdict(table_of({"labels": labels, "dkd": second, "sp": best}))
    assert found.headline == "sp won: 92.1%, 2.1 points above labels"
    close = {seed: value - 0.002 * (1 - seed) for seed, value in best.items()}
    found = verdict(table_of({"labels": labels, "dkd": close, "sp": best}))
    assert found.headline == "dkd beat labels by 2.2 points, at 92.2%"
    found = verdict(table_of({"dkd": close, "sp": best}))
    assert found.headline == "dkd (92.2%) and sp (92.1%) cannot be told apart"


def test_the_best_method_is_told_apart_from_all_but_those_that_are_too_close():
    at = {0: 0.900, 1: 0.880, 2: 0.915, 3: 0.890}  # the lowest mean, but too noisy
    sp = {0: 0.900, 1: 0.902, 2: 0.900, 3: 0.898}
    best = {seed: value + 0.02 + 0.002 * (seed % 2) for seed, value in sp.items()}
    found = verdict(table_of({"at": at, "sp": sp, "dkd": best}))
    assert found.headline == "dkd (92.1%) and at (89.6%) cannot be told apart"


def test_runs_that_are_left_after_others_diverged_are_not_a_study_of_one_seed_and_tie_with_none():
    found = verdict(table_of({"kd": {0: 0.9, 1: None}, "sp": {0: 0.8, 1: 0.7}}))
    assert found.headline == "sp (75.0%) and kd (90.0%) cannot be told apart"
    found = verdict(
        table_of({"labels": {0: 0.7, 1: 0.7, 2: None}, "sp": {0: 0.9, 1: None, 2: None}})
    )
    assert found.headline == "sp (90.0%) and labels (70.0%) cannot be told apart"
    assert not any("With one seed" in sentence for sentence in found.sentences)
    found = verdict(table_of({"sp": {0: 0.8, 1: 0.9}, "labels": {0: 0.85, 1: None}}))
    assert "tie" not in found.headline


def test_a_student_at_the_level_of_chance_is_named():
    table = table_of({"labels": {0: 0.9, 1: 0.91}, "kd": {0: 0.504, 1: 0.95}, "sp": {0: 0.51}})
    assert table.chance == 0.5
    told = [sentence for sentence in verdict(table).sentences if "level of chance" in sentence]
    assert [sentence.partition(". Such")[0] for sentence in told] == [
        "At the level of chance (50.0%) with at least one seed: kd (50.4%)"
    ]  # sp is further than a hundredth of the way to 100%


def test_one_seed_is_told_as_one_run_each():
    found = verdict(table_of({"labels": {0: 0.9}, "kd": {0: 0.95}}))
    assert found.headline == "One run each: kd reached 95.0%, labels 90.0%"
    found = verdict(table_of({"labels": {0: 0.9}, "kd": {0: 0.9}}))
    assert found.headline == "One run each: labels and kd tie at 90.0%"


def test_diverged_runs_are_named_and_their_methods_come_last():
    table = table_of(
        {"labels": {0: 0.9, 1: 0.91}, "kd": {0: 0.95, 1: None}, "sp": {0: None, 1: None}}
    )
    assert table.row("kd").values == {0: 0.95}
    assert table.diverged == {"kd": [1], "sp": [0, 1]}
    assert [row.method for row in table.rows] == ["labels", "kd"]
    said = verdict(table)
    assert said.sentences[0].startswith("Diverged: kd (seed 1) and sp (seeds 0 and 1).")
    assert said.headline == "No method without diverged runs did better than labels (90.5%)"


def test_a_method_or_a_reference_with_diverged_runs_is_not_called_better():
    labels = {seed: 0.9 + 0.001 * seed for seed in range(6)}
    above = {seed: value + 0.03 + 0.001 * (seed % 2) for seed, value in labels.items()}
    below = {seed: value - 0.03 - 0.001 * (seed % 2) for seed, value in labels.items()}
    complete = table_of({"labels": labels, "kd": above, "sp": below})
    found = {name: complete.row(name).versus["labels"].verdict for name in ("kd", "sp")}
    assert found == {"kd": "better", "sp": "worse"}
    without = table_of({"labels": labels, "kd": above | {5: None}, "sp": below | {5: None}})
    found = {name: without.row(name).versus["labels"].verdict for name in ("kd", "sp")}
    assert found == {"kd": "undecided", "sp": "worse"}
    reference = table_of({"labels": labels | {5: None}, "kd": above, "sp": below})
    found = {name: reference.row(name).versus["labels"].verdict for name in ("kd", "sp")}
    assert found == {"kd": "better", "sp": "undecided"}


def test_a_run_that_diverged_is_part_of_no_mean_of_the_curves():
    rows = [("p", "kd", 0, epoch, "total", 1.0) for epoch in (1, 2, 3)]
    rows += [("p", "kd", 1, epoch, "total", 9.0) for epoch in (1, 2)]
    rows += [("p", "sp", 0, 1, "total", 5.0)]
    curves = pd.DataFrame(rows, columns=["pair", "method", "seed", *HISTORY])
    left = finished_runs(curves, by=("pair", "method"))
    assert left.groupby("method")["value"].apply(list).to_dict() == {
        "kd": [1.0, 1.0, 1.0],
        "sp": [5.0],
    }


def test_chance_is_the_most_common_class_of_the_test_images():
    images = {"images_of_class": {"test": [30, 10, 10]}, "class_names": ["a", "b", "c"]}
    assert chance_level(images) == 0.6
    assert chance_level({"class_names": ["a", "b", "c", "d"]}) == 0.25


def test_equal_methods_tie():
    same = {0: 0.9, 1: 0.91, 2: 0.92}
    table = table_of({"labels": same, "kd": dict(same)})
    assert verdict(table).headline == "labels and kd tie at 91.0%"
    assert table.row("kd").versus["labels"].verdict == "equal"


def test_the_power_note_names_what_the_seeds_can_see():
    rng = np.random.default_rng(3)
    labels = {seed: 0.9 + rng.normal(0, 0.01) for seed in range(5)}
    kd = {seed: value + rng.normal(0.02, 0.01) for seed, value in labels.items()}
    table = table_of({"labels": labels, "kd": kd})
    spread = np.std([kd[seed] - labels[seed] for seed in labels], ddof=1)
    edge = stats.t.ppf(0.975, 4)
    shift = table.power["labels"].gain / spread * np.sqrt(5)
    assert stats.nct.sf(edge, 4, shift) == pytest.approx(0.8, abs=1e-4)


def test_methods_are_compared_over_the_seeds_they_share():
    table = table_of({"labels": {0: 0.9, 1: 0.8}, "kd": {1: 0.85, 2: 0.99}})
    found = table.row("kd").versus["labels"]
    assert found.difference.count == 1
    assert found.difference.mean == pytest.approx(0.05)
    assert found.verdict == "single"


def test_references_are_found_behind_other_names_or_are_those_that_the_study_lists():
    methods = {"plain": {"method": "labels"}, "hot": {"method": "kd"}, "kd": {}, "dkd": {}}
    assert make_study(1, methods).references == {"labels": "plain", "kd": "kd"}
    assert make_study(1, {"dkd": {}}).references == {}
    listed = {"references": ["dkd", "hot"]}
    assert make_study(1, methods, report=listed).references == {"dkd": "dkd", "hot": "hot"}


def test_variants_are_compared_with_the_one_that_the_study_lists(tmp_path):
    methods = {"base": {"method": "kd"}, "cold": {"method": "kd", "temperature": 1}, "labels": {}}
    study = make_study(3, methods, report={"references": ["base"]})
    job = make_results(tmp_path, study, {"cold": 0.03})
    results = load_results(job.lists, study)
    tables = pair_tables(results, study.references, 0.95)
    assert {row.method: list(row.versus) for row in tables[0].rows} == {
        "base": [],
        "cold": ["base"],
        "labels": ["base"],
    }
    page = " ".join(text_of(render(results, tables, study)).split())
    assert "cold won" in page and "difference from base" in page
    assert "difference from labels" not in page


def test_a_stone_starts_as_the_student_and_ends_as_the_teacher(finished):
    study = parse_study(finished.settings.study)
    plan = load_results(finished.lists, study).plans["resnet20-resnet8", "block_kd"]
    bars = drawing(plan, "resnet20", "resnet8").bars
    assert [bar.name for bar in bars] == ["resnet20", "N1", "N2", "N3", "resnet8"]
    assert [len(bar.tail) for bar in bars] == [11, 7, 4, 1, 0]
    assert bars[3].tail == ["head"]
    assert list(bars[3].front) == ["stem", "block1", "block2", "block3"]


def test_a_sweep_ranks_layers_as_their_students_do(tmp_path):
    study = make_sweep()
    gains = {name: 0.02 * place for place, name in enumerate(study.methods)}
    job = make_results(tmp_path, study, {name: gain - 0.15 for name, gain in gains.items()})
    results = load_results(job.lists, parse_study(job.settings.study))
    table = pair_tables(results, {"labels": "labels"}, 0.95)[0]
    found = find_sweep(table, results.plans, results.scores, ["quality", "information"])
    assert len(found.points) == 9
    assert found.correlations["quality"].count == 5
    assert found.correlations["quality"].mean > 0.95  # both rise with depth
    assert found.correlations["information"].mean < -0.95  # falls with depth


def test_two_layers_are_no_sweep(finished):
    results = load_results(finished.lists, parse_study(finished.settings.study))
    table = pair_tables(results, {}, 0.95)[0]
    assert find_sweep(table, results.plans, results.scores, ["quality"]) is None


def test_published_table_holds_what_was_transcribed():
    rows = pd.read_csv(TABLE)
    pair = rows[
        (rows["pair"] == "resnet32x4-resnet8x4")
        & (rows["source"] != "Knowledge-Distillation-via-ND")
    ]
    by_row = pair.set_index("row")["top1_percent"]
    for row, value in {"teacher": 79.42, "student": 72.50, "KD": 73.33, "DKD": 76.32}.items():
        assert by_row[row] == value
    benchmark = rows[rows["setting"] == "crd"]
    whole = benchmark.groupby("pair")["row"].agg(set)
    assert sum({"teacher", "student", "KD", "FitNet", "CRD"} <= found for found in whole) == 13
    assert rows["top1_percent"].between(50, 85).all()
    assert set(rows["marker"]) == {"R", "R2"}
    assert not rows.duplicated(["pair", "row", "source", "top1_percent", "note"]).any()


def test_published_rows_find_the_method_behind_a_name(finished):
    results = load_results(finished.lists, parse_study(finished.settings.study))
    table = pair_tables(results, {}, 0.95)[0]
    rows = published_rows("vgg13-vgg8", table, {name: name for name in GAINS} | {"kd": "dkd"})
    ours = {row.row: list(row.ours) for row in rows}
    assert ours["DKD"] == ["kd"]
    assert ours["KD"] == []
    assert ours["teacher"] == ["resnet20"]


def test_an_unknown_published_pair_is_told_when_params_are_read():
    with pytest.raises(KdstepsError, match=r"published is .* did you mean 'resnet32x4-resnet8x4'"):
        make_study(pairs={"pair": PAIR | {"published": "resnet32x4-resnet8x5"}})


def test_a_result_says_by_its_path_what_it_is():
    path = "/somewhere/results/evaluate/students/a-b/kd/7/measures.json"
    assert identity(path, "evaluate", "measures") == {"pair": "a-b", "method": "kd", "seed": "7"}
    with pytest.raises(KdstepsError, match=r"should end as results/evaluate"):
        identity("measures.json", "evaluate", "measures")


def test_measures_without_accuracy_are_told_by_their_path(tmp_path):
    job = make_results(tmp_path, make_study(seeds=1, methods=("labels", "kd")))
    path = job.lists["measures"][0]
    write_json(path, {"num_images": 3, "provenance": {}})
    with pytest.raises(KdstepsError, match=r"measures\.json: has no 'accuracy'"):
        load_results(job.lists, parse_study(job.settings.study))


def test_a_missing_result_is_told_by_its_path(tmp_path):
    study = make_study(seeds=1, methods=("labels", "kd"))
    make_results(tmp_path, study)
    job = report_job(tmp_path, study)
    job.lists["histories"][0].unlink()
    with pytest.raises(KdstepsError, match=r"history\.parquet"):
        load_results(job.lists, parse_study(job.settings.study))


def test_numbers_are_written_as_a_reader_expects():
    assert percent(0.97222, 1) == "97.2"
    assert (percent(-0.5, 0), percent(-0.0001, 1)) == ("−50", "0.0")
    assert percent(None) == percent(float("nan")) == "–"
    assert [points(value) for value in (0.031, -0.002, 0.0001)] == ["+3.1", "−0.2", "0.0"]
    assert (points(-0.0001), signed(-0.01), number(-0.0001)) == ("0.0", "0.0", "0.000")
    assert [p_value(value) for value in (0.0004, 0.0123, 0.04961, 0.0504, 0.34, None)] == [
        "< 0.001",
        "0.012",
        "0.04961",
        "0.05040",
        "0.34",
        "–",
    ]
    assert [count(value) for value in (950, 7_900, 31_000_000)] == ["950", "7.9 k", "31 M"]
    assert [count(value) for value in (999.7, 999_999, 2.5e12)] == ["1 k", "1 M", "2.5 T"]
    assert [duration(value) for value in (42, 600, 9000)] == ["42 s", "10 min", "2.5 h"]


def test_lists_that_the_report_reads_have_names_that_no_other_job_uses():
    study = make_study()
    others = {
        name
        for rule in graph.OUTPUTS
        if rule not in ("report", "evaluate_latency")
        for names in graph.jobs(study, rule)
        for name in graph.inputs(study, rule, names)
    }
    assert not graph.LISTS & others


def test_the_report_watches_the_digests_of_images_and_not_the_images():
    node = graph.node(make_study(), "report", {})
    assert "results/prepare/digits/digest.json" in node.watched
    assert "results/prepare/digits/images.npy" in node.read - node.watched
    assert "results/prepare/digits/index.parquet" in node.read - node.watched


def test_every_file_of_the_report_has_a_caption():
    captions = {path.stem for path in (REPOSITORY / "workflow" / "report").glob("*.rst")}
    assert set(graph.OUTPUTS["report"]) | {"workflow"} == captions


def test_words_alone_do_not_load_pandas_or_altair():
    code = (
        "import sys, kdsteps.report, kdsteps.study.registry as p\n"
        "p.published_pairs(); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout.split()
    assert not {"pandas", "altair", "torch"} & set(loaded)
