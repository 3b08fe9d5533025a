"""The duel with lightly-train: both sides get the same, and its table follows from its record."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdsteps.evaluation.probes import probe_names
from kdsteps.evaluation.statistics import sample
from kdsteps.study.loading import parse_study

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _duel_sides import candidates, lightly_command, num_steps, params  # noqa: E402
from duel_lightly import best, costs, gap_closed, parsed, summary  # noqa: E402

RECORD = ROOT / "docs" / "findings" / "lightly-duel.csv"


def options(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command[2:])


def test_both_sides_train_for_the_same_steps_at_the_same_peak_rate():
    args = parsed(
        [
            "--images",
            "640",
            "--batch",
            "64",
            "--epochs",
            "3",
            "--rates",
            "0.002",
            "--variants",
            "embedding",
            "same",
        ]
    )
    study = parse_study(params(args))
    theirs = {run: options(lightly_command(run, args)) for run in candidates("lightly", args)}
    ours = candidates("kdsteps", args)
    assert len(ours) == len(theirs) == 1
    for run in ours:
        recipe = study.distil("pair", run.method)
        assert recipe.learning_rate == 0.002
        for given in theirs.values():
            assert (recipe.epochs, recipe.batch_size) == (3, 64)
            assert (given["epochs"], given["batch_size"]) == ("3", "64")
            assert float(given["optim_args.weight_decay"]) == recipe.weight_decay
            scaled = float(given["optim_args.lr"]) * (64 / 1536) ** 0.5
            assert scaled == pytest.approx(recipe.learning_rate)
    assert num_steps(640, 64, 3) == 30


def test_images_that_would_leave_a_rest_are_refused(capsys):
    with pytest.raises(SystemExit):
        parsed(["--images", "650", "--batch", "64"])
    assert "650" in capsys.readouterr().err


def test_one_side_cannot_try_more_than_the_other(capsys):
    with pytest.raises(SystemExit):
        parsed(["--variants", "embedding", "feature_only", "same"])
    assert "--variants" in capsys.readouterr().err
    assert len(candidates("lightly", parsed(["--variants", "embedding", "same"]))) == 2


def test_the_mean_over_the_seeds_of_the_tuning_decides():
    def row(variant: str, rate: float, accuracy: float) -> dict[str, Any]:
        return {"variant": variant, "learning_rate": rate, "neighbor_accuracy": accuracy}

    tried = [row("a", 0.1, 0.9), row("a", 0.1, 0.1), row("a", 0.2, 0.6), row("a", 0.2, 0.5)]
    assert best(tried) == ("a", 0.2)


def test_the_gap_is_that_between_the_untrained_student_and_the_teacher():
    assert gap_closed(0.5, untrained=0.2, teacher=0.6) == pytest.approx(0.75)


def test_the_cache_and_the_start_of_programs_are_counted():
    def run(side: str, seconds: float, cache: float) -> dict[str, Any]:
        variant = {"kdsteps": "embedding", "lightly": "same"}[side]
        row = {"what": "student", "side": side, "variant": variant, "seconds": seconds}
        return row | {"cache_seconds": cache}

    rows = [
        {"what": "prepare", "side": "kdsteps", "seconds": 10.0},
        {"what": "start", "side": "kdsteps", "seconds": 2.0},
        {"what": "start", "side": "lightly", "seconds": 5.0},
        run("kdsteps", 25.0, 5.0) | {"what": "tuning"},  # wrote the cache of the others
        *(run("kdsteps", 20.0, 0.0), run("kdsteps", 20.0, 0.0)),
        *(run("lightly", 50.0, 0.0), run("lightly", 60.0, 0.0)),
    ]
    together, alone, bare = costs(rows)
    assert "kdsteps 55 s" in together and "ratio 0.50" in together  # 10 + 45 of 110
    assert "kdsteps 35 s" in alone and "ratio 0.64" in alone  # 10 + 5 + 20 of 55
    assert "kdsteps 47 s" in bare and "ratio 0.47" in bare  # less 4 starts, less 2 of theirs: 100


def test_without_lightly_train_the_duel_is_skipped_with_a_reason(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "duel_lightly.py"), "--work", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "skipped" in result.stdout and "--install" in result.stdout
    assert not list(tmp_path.iterdir())


def test_the_tables_in_the_findings_follow_from_the_record():
    rows = pd.read_csv(RECORD)
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    section = text.split("## A duel with lightly-train\n")[1].split("\n## ")[0]
    students = rows[rows.what == "student"]
    untrained = rows[rows.what == "untrained"]
    (teacher,) = rows[rows.what == "teacher"].to_dict("records")
    for side in ("kdsteps", "lightly"):
        found = students[students.side == side]
        cells = []
        for name in probe_names((0.01, 0.1, 1.0)):
            start = untrained[name].mean()
            closed = sample([gap_closed(value, start, teacher[name]) for value in found[name]])
            assert closed.spread is not None
            cells.append(f"{100 * closed.mean:.0f} ± {100 * closed.spread:.0f}")
        (row,) = re.findall(rf"^\| closed by {side}[^|]*\| (.*) \|$", section, flags=re.MULTILINE)
        assert [cell.strip() for cell in row.split("|")] == cells
    records = [
        {key: value for key, value in row.items() if pd.notna(value)}
        for row in rows.to_dict("records")
    ]
    for line in summary(records):
        for ratio in re.findall(r"ratio ([\d.]+)", line):
            assert ratio in section
