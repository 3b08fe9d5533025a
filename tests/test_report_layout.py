"""The page fits and is readable at every width, whatever the names and the size of the study."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from _browser import measure, needs_browser, overlapping
from _results import Look, make_results, make_study, render_page

from kdsteps.files.columns import HISTORY
from kdsteps.report.charts.curves import validation_domain
from kdsteps.report.charts.labels import places
from kdsteps.report.charts.theme import log_ticks, whole_ticks
from kdsteps.study.study import Study

WIDTHS = (400, 800, 1400)
METHODS = (
    *("labels", "kd", "dkd", "dist", "lskd", "loca", "uld", "ckd", "sld", "fitnet", "at", "sp"),
    *("rkd", "crd", "reviewkd", "simkd", "block_kd", "feature_only"),
)


def long(word: str, number: int = 0) -> str:
    """A name of 40 characters."""
    return f"{word}_{number:02d}_with_a_name_of_exactly_forty_letters"[:40]


def make_hostile(folder: Path) -> Path:
    """The page of a study with long names, one epoch, 18 methods and 30 seeds."""
    methods = {long("method", place): {"method": name} for place, name in enumerate(METHODS)}
    dataset, teacher, student = long("dataset"), long("teacher"), long("student")
    study = make_study(
        30,
        methods,
        datasets={dataset: {"kind": "digits", "size": 16}},
        models={
            teacher: {"family": "cifar_resnet", "depth": 20},
            student: {"family": "cifar_resnet", "depth": 8, "widths": [4, 4, 8, 16]},
        },
        pairs={long("pair"): {"dataset": dataset, "teacher": teacher, "student": student}},
        report={"title": "R" * 60},
    )
    look = Look(
        shape=(3, 48, 32),
        classes=[f"<b>{k}</b> & {'w' * 40}" for k in range(12)],
        epochs=1,
        terms=tuple(long("loss", place) for place in range(10)),
        layers=[f"features.stage{place // 8}.block{place % 8}.conv" for place in range(60)],
    )
    gains = {name: 0.02 - 0.005 * place for place, name in enumerate(methods)}
    return write_page(folder, study, gains, look)


def make_ordinary(folder: Path) -> Path:
    """The page of a study as most are."""
    return write_page(folder, make_study())


def write_page(folder: Path, study: Study, *made: Any) -> Path:
    page = folder / "index.html"
    page.write_text(render_page(make_results(folder, study, *made)))
    return page


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict[int, dict[str, Any]]]:
    """Measurements of both pages, by width."""
    found = {}
    for make in (make_hostile, make_ordinary):
        folder = tmp_path_factory.mktemp(make.__name__)
        found[make.__name__] = measure(make(folder), folder, WIDTHS)
    return found


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["make_hostile", "make_ordinary"])
def test_nothing_is_clipped_overlapping_or_empty(measured, name, width):
    found = measured[name][width]
    assert found["page"] == width, "the page can be scrolled sideways"
    assert found["wide"] == [], "outside the page"
    assert found["cut"] == [], "cut off"
    assert found["panels"] == [1] * len(found["panels"])
    assert len(found["charts"]) > 15
    for chart in found["charts"]:
        assert overlapping(chart) == [], chart["name"]
        assert chart["marks"], f"{chart['name']}: is empty"
        for text in chart["texts"]:
            assert not text["text"].endswith("…"), chart["name"]
            assert text["left"] > -1, (chart["name"], text)
            assert text["right"] < width + 1, (chart["name"], text)
            assert text["bottom"] - text["top"] > 6, f"{chart['name']}: {text} is too small"


@needs_browser
@pytest.mark.slow
def test_the_measurement_finds_what_is_wrong(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body><div class='a' style='width:900px'>too wide</div>"
        "<div class='b' style='width:50px;overflow:hidden'><p style='width:99px'>cut off</p></div>"
        "<div class='tabs'><div class='panel'>one</div><div class='panel'>two</div></div>"
        "<svg class='chart' viewBox='0 0 100 50' aria-label='bad'>"
        "<text y='20'>first</text><text y='22'>second</text></svg></body>"
    )
    found = measure(page, tmp_path, [400])[400]
    assert found["page"] > 400
    assert any("too wide" in name for name in found["wide"])
    assert any("cut off" in name for name in found["cut"])
    assert found["panels"] == [2]
    (chart,) = found["charts"]
    assert overlapping(chart) == [("first", "second")]
    assert chart["marks"] == 0


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((1, 1), [1]),
        ((1, 2), [1, 2]),
        ((1, 12), [3, 6, 9, 12]),
        ((1, 100), [20, 40, 60, 80, 100]),
        ((1, 240), [60, 120, 180, 240]),
        ((1, 77), [20, 40, 60, 77]),
        ((0, 9), [0, 3, 6, 9]),
        ((0, 0), [0]),
    ],
)
def test_epochs_and_depths_are_labeled_with_round_numbers(ends, ticks):
    assert whole_ticks(*ends) == ticks


@pytest.mark.parametrize("last", [1, 2, 3, 7, 13, 60, 199, 300, 1001, 5000])
def test_axes_of_whole_numbers_have_few_labels_with_room_between_them(last):
    ticks = whole_ticks(1, last)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert 1 <= ticks[0] <= ticks[-1] <= last
    gaps = [after - before for before, after in pairwise(ticks)]
    assert not gaps or min(gaps) > 0.5 * max(gaps)


@pytest.mark.parametrize("ratio", [20, 99, 101, 900, 1e4, 1e6])
@pytest.mark.parametrize("low", [0.031, 0.4, 7.0, 1234.0])
def test_logarithmic_axes_of_cost_and_time_have_several_labels(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= low * ratio for tick in ticks)


def test_a_method_far_below_the_others_is_not_cut_off():
    rows = [
        ("p", method, 0, epoch, "validation_accuracy", 0.3 if method == "m0" else 0.95)
        for method in (f"m{place}" for place in range(40))
        for epoch in range(1, 11)
    ]
    curves = pd.DataFrame(rows, columns=["pair", "method", "seed", *HISTORY])
    low, high = validation_domain(curves)
    assert low < 0.3
    assert high > 0.95


def test_names_are_left_out_where_they_would_cover_others_or_the_edge():
    short, covered, second, long_name = places(
        [(20, 50, "resnet8"), (22, 50, "resnet9"), (24, 50, "resnet7"), (100, 90, "x" * 40)], 200
    )
    assert short is not None
    assert covered is not None
    assert second is not None
    assert len({short.dy, covered.dy, second.dy}) == 3
    assert long_name is None
