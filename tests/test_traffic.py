"""What a training step computes and moves (benchmarks/bench_traffic.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_traffic as bench


def test_an_operator_reads_and_writes_its_tensors_once_and_a_view_moves_nothing():
    first, second = torch.ones(4, 6), torch.ones(4, 6)
    with bench.Traffic() as traffic:
        first.view(24).t()
        assert traffic.moved == 0
        torch.add(first, second)
    assert traffic.moved == 3 * 24 * 4


def test_the_cost_of_a_method_is_that_of_its_networks_and_projectors():
    cached, live, fused = (
        bench.cost(name) for name in ("kd", "kd with the teacher on the fly", "reviewkd")
    )
    teacher = 2 * 1083e6  # two operations for each multiply-add of resnet32x4
    assert live.operations - cached.operations == pytest.approx(teacher, rel=0.01)
    assert cached.moved < live.moved < fused.moved
    assert fused.operations > live.operations


def test_no_method_of_the_table_fails_to_be_counted():
    found = {row.what.rpartition(", ")[2]: row.ratio or 0.0 for row in bench.rows()}
    assert found["kd"] == 1
    assert found["labels"] < 1.01
    assert all(ratio > 1 for name, ratio in found.items() if name not in ("kd", "labels"))
