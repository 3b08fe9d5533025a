"""The inputs of the worked examples of the losses, in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdsteps.methods.crd import Contrast


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


S = tensor([[1, 0, -1], [0.5, 2, 0]])
T = tensor([[2, 1, -1], [0, 1, 3]])  # wrong on image 1
T2 = tensor([[2, 0], [0, 1]])  # of a teacher with other classes
Y = torch.tensor([0, 1])
A = tensor([[[[1, 0], [0, 2]], [[0, 1], [1, 0]]], [[[2, 1], [0, 0]], [[1, 0], [0, 1]]]])
B = tensor([[[[1, 0], [0, 1]]], [[[0, 2], [1, 0]]]])
P_OF_A = A[:, :1] - A[:, 1:]
U = tensor([[0, 0], [1, 0], [0, 2]])
V = tensor([[0, 0], [3, 0], [0, 4]])
STAIRS = torch.arange(8.0, dtype=torch.float64)
STAIRS = ((8 * STAIRS[:, None] + STAIRS) / 10)[None, None]  # (1, 1, 8, 8)


def six(value: object) -> object:
    """`value` to six digits behind the point, as the examples give it."""
    return pytest.approx(value, abs=5.1e-7, rel=0)


def contrast_of_the_example() -> tuple[Contrast, tuple[Tensor, ...]]:
    contrast = Contrast(
        tensor([[1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]]),
        tensor([[0.8, 0.6], [0, 1], [1, 0], [-0.6, 0.8]]),
        temperature=0.5,
        momentum=0.5,
    )
    student, teacher = tensor([[1, 0], [3, 4]]), tensor([[3, 4], [0, 2]])
    return contrast, (student, teacher, torch.tensor([0, 2]), torch.tensor([[0, 1, 3], [2, 3, 1]]))
