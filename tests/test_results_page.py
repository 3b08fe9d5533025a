"""docs/results.md names files and columns that there are, and its examples work as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from _results import make_results, make_study

from kdsteps.files.columns import INDEX, PREDICTIONS, RUNS
from kdsteps.stages import report

PAGE = (Path(__file__).parents[1] / "docs/results.md").read_text()
KEYS = {"teacher": "resnet20", "dataset": "digits", "pair": "resnet20-resnet8"}
KEYS |= {"method": "kd", "seed": "0"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its results and its report."""
    folder = tmp_path_factory.mktemp("study")
    report.run(make_results(folder, make_study()))
    return folder


def test_the_files_that_are_named_are_written(study):
    named = re.findall(r"^\| `(results/[^`]*)`", PAGE, re.MULTILINE)
    assert len(named) == 8
    for path in named:
        assert (study / re.sub(r"<(\w+)>", lambda key: KEYS[key[1]], path)).exists(), path


def test_the_columns_that_are_named_are_those_of_the_tables():
    assert {*re.findall("`([a-z_]+)`", row_of("runs.parquet"))} <= {*RUNS}
    assert {*re.findall("`([a-z_]+)`", row_of("predictions.parquet"))} == {*PREDICTIONS}
    assert {*re.findall("`([a-z_]+)`", row_of("index.parquet"))} <= {*INDEX}
    assert {"best_validation_accuracy", "diverged"} <= {*RUNS}


def row_of(name: str) -> str:
    """What the page says about a file, in the second column of its table."""
    (row,) = re.findall(rf"^\| `[^`]*/{re.escape(name)}` \| (.*) \|$", PAGE, re.MULTILINE)
    return row


def test_the_examples_print_what_they_say(study, monkeypatch, capsys):
    monkeypatch.chdir(study)
    table, mistakes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(table, {})
    shown = capsys.readouterr().out
    assert r"\begin{tabular}" in shown and "block_kd" in shown
    keys = re.findall(r"# (mean, low, .*)", table)[0].split(", ")
    assert all(f"'{key}'" in shown for key in keys)
    exec(mistakes, {})
    assert re.search(r"\d+/\d+\.png +\d +\d", capsys.readouterr().out)
