"""The numbers in docs/findings.md follow from the records in docs/findings."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from kdsteps.evaluation.statistics import holm, paired, rank_correlation, sample
from kdsteps.study.yaml_text import read_yaml

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "findings.md").read_text(encoding="utf-8")
TWO_PAPERS = "Both papers and five other methods on a fifth of CIFAR-100"
OUTSIDE = "block_kd_quality"  # not among the comparisons that are corrected for


def accuracies(name: str) -> pd.DataFrame:
    """Test accuracy, a row a seed and a column a method."""
    runs = pd.read_csv(DOCS / "findings" / name)
    return runs.pivot(index="seed", columns="method", values="test_accuracy")


def rows_under(title: str) -> dict[str, list[str]]:
    """The cells of the table rows of a section that begin with a name in code quotes."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", section, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def spread_of(values: pd.Series[float]) -> str:
    found = sample(values.tolist())
    assert found.spread is not None
    return f"{100 * found.mean:.1f} ± {100 * found.spread:.1f}"


def probability(value: float | None) -> str:
    assert value is not None
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if abs(value - 0.05) >= 0.0005 else f"{value:.5f}"


@pytest.mark.parametrize(
    ("title", "records", "reference", "num_images"),
    [
        ("All methods on a subset of Fashion-MNIST", "fashion-mnist-runs.csv", "labels", 3000),
        (TWO_PAPERS, "two-papers-runs.csv", "labels", 10_000),
        ("The options of feature-only KD", "feature-only-runs.csv", "feature_only", 10_000),
        ("The options of Block-KD", "block-kd-runs.csv", "block_kd", 10_000),
    ],
)
def test_the_table_of_a_comparison_follows_from_its_records(title, records, reference, num_images):
    runs = accuracies(records).drop(columns=OUTSIDE, errors="ignore")
    rows = rows_under(title)
    assert rows.keys() == set(runs.columns)
    assert rows.pop(reference)[0] == spread_of(runs[reference])
    against = runs[reference].to_dict()
    gains = {
        name: paired(runs[name].to_dict(), against, resolution=1 / num_images) for name in rows
    }
    corrected = holm([gain.p for gain in gains.values()])
    for (name, gain), adjusted in zip(gains.items(), corrected, strict=True):
        ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        said = [f"{100 * gain.mean:+.1f}", ends, probability(gain.p), probability(adjusted)]
        assert rows[name][:5] == [spread_of(runs[name]), *said], name
        if len(rows[name]) > 5:
            assert rows[name][5] == f"{gain.effect:+.1f}", name


def test_the_tuning_by_hand_and_as_a_stage_differ_as_said():
    runs = pd.read_csv(DOCS / "findings" / "fashion-mnist-tuned.csv")
    assert len(runs) == 144
    values = ["learning_rate", "option", "value"]
    again = runs.groupby(["method", *values], dropna=False)
    means = again.agg({"validation_accuracy": "mean", "seed": "count", "chosen": "first"})
    best = means[means["seed"] == 2].sort_values("validation_accuracy").groupby("method").tail(1)
    assert best["chosen"].all()
    chosen = {row["method"]: row for _, row in best.reset_index().iterrows()}
    by_hand = read_yaml((DOCS.parent / "recipes/fashion-mnist-all-methods.yaml").read_text())
    del chosen["feature_only_conv"]
    others = {}
    for name, row in chosen.items():
        entry = by_hand["methods"][name]
        if row["learning_rate"] != entry["distil"]["learning_rate"]:
            others[name] = row["learning_rate"]
        if isinstance(row["option"], str) and row["value"] != entry[row["option"]]:
            others[name] = row["value"]
    assert others == {"lskd": 0.3, "sp": 0.1, "rkd": 0.3, "block_kd": 0.1, "semckd": 40}


def test_no_run_of_the_comparison_is_left_out():
    runs = accuracies("fashion-mnist-runs.csv")
    assert runs.index.tolist() == list(range(8))
    assert not runs.isna().any(axis=None)


SWEEPS = {
    "Does Q predict how well a layer teaches?": "layer-sweep",
    "The sweep over layers on a fifth of CIFAR-100": "cifar100-sweep",
}
"""The sections on sweeps over layers, and what the names of their records begin with."""


@pytest.mark.parametrize(("title", "records"), SWEEPS.items())
def test_the_table_of_layers_follows_from_its_records(title, records):
    runs = accuracies(f"{records}-runs.csv")
    scores = pd.read_csv(DOCS / "findings" / f"{records}-scores.csv")
    scores = scores[scores["variant"] == "intended"].set_index("layer")
    names = ["quality", "separation", "information", "efficiency"]
    rows = rows_under(title)
    assert rows.keys() == set(scores.index)
    for layer, cells in rows.items():
        assert cells[:4] == [f"{scores.loc[layer, name]:.3f}" for name in names]
        assert cells[4] == spread_of(runs[layer.replace(".", "_")])


@pytest.mark.parametrize(
    ("score", "name"),
    [
        ("Q", "quality"),
        ("S", "separation"),
        ("I", "information"),
        ("E", "efficiency"),
        ("sqrt(I E)", "root_information_efficiency"),
        ("depth", "depth"),
    ],
)
@pytest.mark.parametrize(("column", "left_out"), [(1, ()), (2, ("pool",))])
@pytest.mark.parametrize(("title", "records"), SWEEPS.items())
def test_rank_correlations_of_a_sweep_follow_from_its_records(
    title, records, score, name, column, left_out
):
    runs = accuracies(f"{records}-runs.csv")
    scores = pd.read_csv(DOCS / "findings" / f"{records}-scores.csv")
    scores = scores[(scores["variant"] == "intended") & ~scores["layer"].isin(left_out)]
    methods = [layer.replace(".", "_") for layer in scores["layer"]]
    found = sample([rank_correlation(scores[name], row[methods]) for _, row in runs.iterrows()])
    pattern = rf"^\| {re.escape(score)} \| (.*) \| (.*) \|$"
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    (row,) = re.findall(pattern, section, flags=re.MULTILINE)
    interval = f" ({found.low:+.2f} to {found.high:+.2f})" if found.spread else ""
    assert row[column - 1] == f"{found.mean:+.2f}{interval}"


def test_the_scores_as_coded_order_the_layers_of_the_cifar_100_sweep_in_the_same_way():
    scores = pd.read_csv(DOCS / "findings" / "cifar100-sweep-scores.csv")
    by_variant = scores.pivot(index="layer", columns="variant", values="rank")
    assert (by_variant["intended"] == by_variant["as_coded"]).all()


@pytest.mark.parametrize("letter", ["Q", "S", "I", "E", "depth"])
def test_rank_correlations_of_the_second_sweep_follow_from_its_records(letter):
    names = {"Q": "quality", "S": "separation", "I": "information", "E": "efficiency"}
    runs = accuracies("layer-sweep-second-runs.csv")
    scores = pd.read_csv(DOCS / "findings" / "layer-sweep-second-scores.csv")
    methods = [layer.replace(".", "_") for layer in scores["layer"]]
    values = scores[names.get(letter, letter)]
    found = sample([rank_correlation(values, row[methods]) for _, row in runs.iterrows()])
    paragraph = " ".join(
        TEXT.split("**Replication with another teacher.**")[1].split("**")[0].split()
    )
    said = f"{letter} {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    assert said in paragraph


def test_the_table_of_cifar100_follows_from_its_records():
    runs = pd.read_csv(DOCS / "findings" / "cifar100-runs.csv")
    section = TEXT.split("## CIFAR-100, the benchmark's recipe: the first methods\n")[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]
    rows = {tuple(cells[:2]): cells[2:] for cells in (re.split(r" \| ", x[2:-2]) for x in lines)}
    groups = runs.groupby(["network", "method"])["test_accuracy"]
    found = {(f"`{network}`", f"`{method}`"): sample(group) for (network, method), group in groups}
    assert rows.keys() == found.keys()
    for name, (seeds, accuracy, published) in rows.items():
        spread = "" if found[name].spread is None else f" ± {100 * found[name].spread:.2f}"
        assert (seeds, accuracy) == (
            str(found[name].count),
            f"{100 * found[name].mean:.2f}{spread}",
        )
        if published[0].isdigit():
            assert abs(float(published.split()[0]) - 100 * found[name].mean) < 0.6


def test_what_is_said_about_cifar100_follows_from_its_records():
    runs = pd.read_csv(DOCS / "findings" / "cifar100-runs.csv").query("network == 'resnet8x4'")
    of = {
        method: dict(zip(rows["seed"], rows["test_accuracy"], strict=True))
        for method, rows in runs.groupby("method")
    }
    text = " ".join(
        TEXT.split("benchmark's recipe: the first methods\n")[1].split("\n## ")[0].split()
    )
    for better, worse in (("kd", "labels"), ("dkd", "kd")):
        found = paired(of[better], of[worse])
        assert found is not None and found.p is not None
        gain, low, high = (100 * value for value in (found.mean, found.low, found.high))
        assert f"{gain:.1f}" in text
        assert f"({low:+.1f} to {high:+.1f}, p = {found.p:.3f}" in text
    epochs = pd.read_csv(DOCS / "findings" / "cifar100-feature-only-epochs.csv").set_index("epoch")
    for epoch in (1, 5, 11, 24, 50, 229):
        features, labels = epochs.loc[epoch, ["features", "labels"]]
        assert f"| {epoch} | {features:.4f} | {labels:.2f} |" in text
    assert epochs["features"].idxmin() == 11
    optimizers = pd.read_csv(DOCS / "findings" / "feature-only-optimizers.csv")
    many = optimizers.groupby(["images", "method", "optimizer"])["test_accuracy"]
    means = {" ".join(key): 100 * rows.mean() for key, rows in many}
    fifth, small = "a fifth of CIFAR-100 feature_only", "5000 without augmentation"
    assert f"reached {means[f'{small} feature_only sgd']:.1f} % with each of two seeds" in text
    assert f"the paper's optimizer {means[f'{small} feature_only adamw']:.1f} %" in text
    assert f"with SGD {means[f'{small} labels sgd']:.1f} %" in text
    assert f"({means[f'{fifth} sgd']:.1f} ± " in text
    assert f"reached {means[f'{fifth} adamw']:.1f} ± " in text


def test_what_the_readme_says_about_cifar100_follows_from_its_records():
    runs = pd.read_csv(DOCS / "findings" / "cifar100-runs.csv").query("network == 'resnet8x4'")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    sentence = " ".join(readme.split("On CIFAR-100, after 240 epochs,")[1].split())
    (row,) = re.findall(r"^\| CIFAR-100, resnet32x4 to .*$", readme, flags=re.MULTILINE)
    for method, rows in runs.groupby("method"):
        found = sample(rows["test_accuracy"].tolist())
        mean = f"{100 * found.mean:.2f}"
        if method == "feature_only":
            mean = f"{100 * found.mean:.1f}"
        said = mean if found.spread is None else f"{mean} ± {100 * found.spread:.2f}"
        assert said in row, method
        if method in ("labels", "kd", "dkd"):
            assert found.count == 3
            assert said in sentence.split("(three seeds each)")[0], method


def test_the_table_of_bad_teachers_follows_from_its_records():
    runs = pd.read_csv(DOCS / "findings" / "bad-teachers.csv", keep_default_na=False)
    section = TEXT.split("## One bad teacher among four\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    found = {way: cells for way, *cells in rows[1:]}
    kinds = [(c, s) for s in ("logits", "standardized") for c in ("mean", "median", "confidence")]
    columns = {
        (way, kind): rows.set_index("seed")["test_accuracy"]
        for (way, *kind_), rows in runs.groupby(["way", "combine", "space"])
        for kind in [tuple(kind_)]
    }
    ways = {way for way, _ in columns} - {f"teacher {number}" for number in range(4)}
    assert found.keys() == ways - {"labels"} | {"---"}
    assert found["none"] == [spread_of(columns["none", kind]) for kind in kinds]
    for way in ways - {"labels", "none"}:
        losses = [100 * (columns[way, kind] - columns["none", kind]) for kind in kinds]
        assert found[way] == [f"{each.mean():+.1f} ± {each.std():.1f}" for each in losses], way
    assert f"`labels` alone reaches {spread_of(columns['labels', ('', '')])}" in section


def differences(runs: pd.DataFrame, one: str, other: str) -> list[str]:
    """Mean and interval of the differences of two columns, paired by seed, as cells of a table."""
    found = paired(runs[one].to_dict(), runs[other].to_dict(), resolution=1 / 1500)
    return [f"{100 * found.mean:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"]


def test_the_table_of_fixed_draws_follows_from_its_records():
    read = pd.read_csv(DOCS / "findings" / "fixed-draws.csv", dtype={"draws": str})
    runs = read.pivot(index="seed", columns="draws", values="test_accuracy")
    runs = runs.dropna(axis="columns")  # those with all seeds
    rows = rows_under("Fixed draws of strong augmentation")
    assert rows.keys() == set(runs.columns)
    for name, cells in rows.items():
        assert cells[0] == spread_of(runs[name])
        for other, place in (("live", 1), ("24", 3)):
            expected = ["", ""] if name == other else differences(runs, name, other)
            assert cells[place : place + 2] == expected, name


def test_the_table_of_patient_teaching_follows_from_its_records():
    runs = accuracies("patient-runs.csv")
    rows = rows_under("Patient, consistent teaching")
    assert rows.keys() == set(runs.columns)
    for name, cells in rows.items():
        assert cells[0] == spread_of(runs[name])
    assert rows["patient"][1:3] == differences(runs, "patient", "kd")
