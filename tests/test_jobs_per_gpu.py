"""The simulation of a study whose students share a GPU (benchmarks/bench_jobs_per_gpu.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_jobs_per_gpu as bench

KD, BLOCKS, LIVE = 240 * 0.74, 240 * 2.22, 240 * 1.47
BEFORE = 240 * 2.31 + 100  # the teacher and the cache of its logits, alone on the card
STUDENTS = 3 * (4 * KD + BLOCKS + 3 * LIVE)


@pytest.fixture
def perfect(monkeypatch):
    """Jobs that share a GPU do not slow each other down."""
    monkeypatch.setattr(bench, "TOGETHER", {"perfect": {1: 1.0, 4: 4.0}})


def test_one_job_at_a_time_takes_the_sum_of_all():
    found = bench.makespan(bench._study(), 1, "by time", cores=16, eight=1.0)
    assert found == pytest.approx(BEFORE + STUDENTS)


@pytest.mark.parametrize("jobs", [2, 4, 8])
def test_students_share_the_card_and_the_teacher_has_it_alone(perfect, jobs):
    found = bench.makespan(bench._study(), jobs, "perfect", cores=16, eight=2.0)
    at_best = BEFORE + STUDENTS / jobs
    assert at_best <= found <= at_best + BLOCKS, "at most one student computes while others do not"


def test_more_gain_of_eight_jobs_shortens_the_study_of_eight_alone():
    study = bench._study()
    times = [
        bench.makespan(study, jobs, "MPS", cores=16, eight=eight)
        for jobs, eight in ((4, 0.8), (4, 1.2), (8, 0.8), (8, 1.2))
    ]
    assert times[0] == times[1]
    assert times[2] > times[3]


def test_the_rows_have_the_measured_gains_and_name_what_is_assumed():
    found = {row.what.partition(", ")[2]: row for row in bench.rows()}
    assert found["by time, jobs_per_gpu 1"].ratio == 1.0
    assert 0.97 <= (found["by time, jobs_per_gpu 4"].ratio or 0) < 1
    assert 1 < (found["MPS, jobs_per_gpu 4"].ratio or 0) < 29.3 / 20.2
    assert "interpolated" in found["MPS, jobs_per_gpu 2"].detail
    assert "not measured" in found["MPS, jobs_per_gpu 8"].detail
