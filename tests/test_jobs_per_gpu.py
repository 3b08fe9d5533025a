"""The simulation of a study whose students share a GPU (benchmarks/bench_jobs_per_gpu.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_jobs_per_gpu as bench

KD, BLOCKS, REVIEW, MAP = (240 * seconds for seconds in (0.74, 2.22, 4.42, 1.64))
FEATURES = 240 * 1.97 * 0.74 / 0.84  # measured under MPS, where an epoch of kd takes 0.84 s
BEFORE = 240 * 2.31 + 100  # the teacher and the cache of its logits, alone on the card
STUDENTS = 3 * (4 * KD + BLOCKS + FEATURES + REVIEW + MAP)


@pytest.fixture
def perfect(monkeypatch):
    """Jobs that share a GPU do not slow each other down."""
    monkeypatch.setattr(bench, "TOGETHER", {"perfect": {1: 1.0, 4: 4.0, 8: 8.0}})


def test_one_job_at_a_time_takes_the_sum_of_all():
    found = bench.makespan(bench._study(), 1, "by time", cores=16)
    assert found == pytest.approx(BEFORE + STUDENTS)


@pytest.mark.parametrize("jobs", [2, 4, 8])
def test_students_share_the_card_and_the_teacher_has_it_alone(perfect, jobs):
    found = bench.makespan(bench._study(), jobs, "perfect", cores=16)
    at_best = BEFORE + STUDENTS / jobs
    assert at_best <= found <= at_best + REVIEW, "at most one student computes while others do not"


@pytest.mark.parametrize(("jobs", "shorter"), [(4, False), (8, True)])
def test_more_gain_of_eight_jobs_shortens_the_study_of_eight_alone(monkeypatch, jobs, shorter):
    study = bench._study()
    before = bench.makespan(study, jobs, "MPS", cores=16)
    monkeypatch.setitem(bench.TOGETHER["MPS"], 8, 2 * bench.TOGETHER["MPS"][8])
    after = bench.makespan(study, jobs, "MPS", cores=16)
    assert after < before if shorter else after == before


def test_the_rows_have_the_measured_gains_and_name_what_is_assumed():
    found = {row.what.partition(", ")[2]: row for row in bench.rows()}
    assert found["by time, jobs_per_gpu 1"].ratio == 1.0
    assert 0.97 <= (found["by time, jobs_per_gpu 4"].ratio or 0) < 1
    assert 1 < (found["MPS, jobs_per_gpu 4"].ratio or 0) < 28.9 / 20.2
    assert "interpolated" in found["MPS, jobs_per_gpu 2"].detail
    assert "as fast as four" in found["by time, jobs_per_gpu 8"].detail
