"""Forecasts of memory and time: they follow what a job computes and holds, and planning knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _commands import STUDY

from kdsteps.jobs import forecasts, graph, needs
from kdsteps.jobs.forecasts import Forecast, forecast
from kdsteps.study.joints import Outline
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

SUMMARY = {
    "images": {"train": 40_000, "validation": 10_000, "test": 10_000},
    "image_shape": [3, 32, 32],
    "class_names": [str(number) for number in range(100)],
}
RUN = {"pair": "pair", "method": "kd", "seed": "0"}
TEACHER = {"dataset": "digits", "teacher": "big"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, since descriptions of methods are cached in it."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(autouse=True)
def summary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The summary of prepared images; the networks are as large as a ResNet-56 and a ResNet-20."""
    monkeypatch.chdir(folder)
    path = Path(graph.outputs("prepare", {"dataset": "digits"})["summary"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(SUMMARY))
    known = {
        ("digits", "big"): Outline((), ("a", "b", "c"), 860_000, 125_000_000, 2_200_000),
        ("digits", "small"): Outline((), ("a", "b", "c"), 280_000, 41_000_000, 800_000),
    }
    monkeypatch.setattr(needs, "network_outlines", lambda *_: known)
    return path


def study(**sections: Any) -> Study:
    return parse_study(STUDY | sections)


def distil(cores: int = 8, gpu: bool = True, run: graph.Names = RUN, **recipe: Any) -> Forecast:
    section = {"epochs": 240, "batch_size": 64} | recipe
    return forecast(study(distil=section), "distil", run, cores, gpu)


def test_every_rule_has_a_forecast():
    given = study(build={"cuts": "quality"})
    for rule in graph.OUTPUTS:
        for names in graph.jobs(given, rule):
            found = forecast(given, rule, names, 8, gpu=True)
            assert found.memory >= forecasts.PROCESS_MB
            assert found.time >= 10


def test_a_run_of_the_benchmark_fits_a_day_and_a_usual_node():
    found = distil()
    assert 60 < found.time < 24 * 60
    assert found.memory < 16_000


def test_twice_the_epochs_take_twice_the_time_after_the_start():
    start = forecasts.START_SECONDS / 60
    short, long = distil(epochs=240).time - start, distil(epochs=480).time - start
    assert long / short == pytest.approx(2, rel=0.1)


def test_more_cores_shorten_a_run_on_the_cpu():
    assert distil(cores=16, gpu=False).time < distil(cores=4, gpu=False).time


def test_cached_logits_of_fixed_draws_need_memory():
    recipe = {"epochs": 240, "batch_size": 64, "mixup": 0.2}
    few, many = (
        forecast(study(distil=recipe, cache={"draws": draws}), "distil", RUN, 8, gpu=True)
        for draws in (1, 100)
    )
    logits = 4 * 40_000 * 100 / 2**20  # MiB of one draw of each image, in float32
    assert many.memory - few.memory == pytest.approx(2 * 99 * logits, abs=500)


def test_large_batches_need_more_memory():
    assert distil(batch_size=4096).memory > distil(batch_size=64).memory


def test_a_method_that_runs_the_teacher_takes_longer_and_one_that_trains_its_blocks_more_so():
    by_method = [
        distil(run=RUN | {"method": method}).time for method in ("labels", "kd", "block_kd")
    ]
    assert by_method == sorted(set(by_method))


def test_larger_images_count_once_they_are_prepared(summary: Path):
    given = study()
    before = forecast(given, "train", TEACHER, 8, gpu=True)
    summary.write_text(json.dumps(SUMMARY | {"image_shape": [3, 128, 128]}))
    assert forecast(given, "train", TEACHER, 8, gpu=True).memory > before.memory


@pytest.mark.parametrize("content", [None, "{", '{"images": 3}'])
def test_before_images_are_prepared_many_are_assumed(summary: Path, content: str | None):
    known = distil()
    summary.unlink()
    if content is not None:
        summary.write_text(content)
    assert distil().time > known.time


def test_a_network_that_is_not_known_counts_as_a_large_one(monkeypatch: pytest.MonkeyPatch):
    known = distil()
    nothing = {("digits", "big"): None, ("digits", "small"): Outline(("a",), ("a",))}
    monkeypatch.setattr(needs, "network_outlines", lambda *_: nothing)
    unknown = distil()
    assert unknown.time > known.time and unknown.memory > known.memory


def test_forecasts_do_not_import_torch():
    program = "import kdsteps.jobs.forecasts, sys; sys.exit('torch' in sys.modules)"
    folder = str(Path(forecasts.__file__).parents[2])
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": folder}, check=True)
