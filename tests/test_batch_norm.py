"""Synchronized batch normalization on a CPU: of one process, it is that of PyTorch and timm."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from kdsteps.training.batch_norm import synchronize

CPU = torch.device("cpu")
MODULES = {
    "maps": (nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "vectors": (nn.BatchNorm1d(3, eps=0.1), (8, 3)),
    "a plain mean": (nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 6)),
    "without weights": (nn.BatchNorm2d(3, affine=False), (4, 3, 5, 6)),
    "without running statistics": (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
    "with an activation": (BatchNormAct2d(3), (4, 3, 5, 6)),
}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)


@pytest.mark.parametrize("name", MODULES)
def test_outputs_gradients_and_running_statistics_are_the_same(name):
    plain, shape = copy.deepcopy(MODULES[name])
    synchronized = nn.Sequential(copy.deepcopy(plain))
    before = list(synchronized.state_dict())
    synchronize(synchronized, CPU)
    for seed in range(3):
        inputs = 5 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        given = [inputs.clone().requires_grad_() for _ in range(2)]
        outputs = plain(given[0]), synchronized(given[1])
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
        for output in outputs:
            (output**2 * torch.arange(output.numel()).view_as(output) / 100).sum().backward()
        torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(synchronized.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-4)
    assert list(synchronized.state_dict()) == before
    for ours, theirs in zip(synchronized.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            synchronized.eval()(inputs), plain.eval()(inputs), rtol=1e-5, atol=1e-5
        )


def test_sixteen_bits_go_in_and_out():
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronize(network, CPU)
    assert network(torch.randn(4, 3, 5, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert network[0].running_mean.dtype == torch.float32


def test_one_value_per_channel_is_refused():
    network = nn.Sequential(nn.BatchNorm1d(3))
    synchronize(network, CPU)
    with pytest.raises(ValueError, match="more than one value per channel"):
        network(torch.randn(1, 3))
