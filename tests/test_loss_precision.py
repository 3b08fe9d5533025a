"""Losses on logits keep six digits at any temperature, against their definitions in 50 digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from kdsteps.methods.ckd import ckd_loss
from kdsteps.methods.contrastive_logits import category_contrast, class_contrast
from kdsteps.methods.dist import NORM_FLOOR, dist_loss
from kdsteps.methods.dkd import dkd_loss
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.loca import loca_loss
from kdsteps.methods.lskd import SPREAD_FLOOR, lskd_loss
from kdsteps.methods.sld import sld_loss
from kdsteps.methods.uld import uld_loss

Row = list[Decimal]


def softmax(logits: Row) -> Row:
    exponentials = [value.exp() for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def divergence(student: Row, teacher: Row) -> Decimal:
    """KL(teacher | student) of probabilities."""
    pairs = zip(teacher, student, strict=True)
    return sum((p * (p.ln() - q.ln()) for p, q in pairs), Decimal(0))


def mean(values: Row) -> Decimal:
    return sum(values, Decimal(0)) / len(values)


def kd(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    soft = [softmax([value / temperature for value in side]) for side in (student, teacher)]
    return temperature**2 * divergence(*soft)


def lskd(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    def standardized(side: Row) -> Row:
        centered = [value - mean(side) for value in side]
        spread = (sum(value**2 for value in centered) / (len(side) - 1)).sqrt()
        return [value / (spread + Decimal(SPREAD_FLOOR)) for value in centered]

    return kd(standardized(student), standardized(teacher), label, temperature)


def dkd(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    """With alpha 1 and beta 8."""
    soft = [softmax([value / temperature for value in side]) for side in (student, teacher)]
    target = [[side[label], 1 - side[label]] for side in soft]
    others = [[p / (1 - s[label]) for k, p in enumerate(s) if k != label] for s in soft]
    return temperature**2 * (divergence(*target) + 8 * divergence(*others))


def loca(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    """With alpha 0.9."""
    ours, theirs = (softmax([value / temperature for value in side]) for side in (student, teacher))
    if theirs.index(max(theirs)) != label:
        scale = Decimal("0.9") / (1 - theirs[label] + max(theirs))
        rest = 1 - scale * (1 - theirs[label])
        theirs = [rest if k == label else scale * p for k, p in enumerate(theirs)]
    return temperature**2 * divergence(ours, theirs)


def uld(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    soft = (sorted(softmax([v / temperature for v in side])) for side in (student, teacher))
    return sum((abs(p - q) for p, q in zip(*soft, strict=True)), Decimal(0))


def sld(student: Row, teacher: Row, label: int, temperature: int) -> Decimal:
    """With one temperature and its double."""
    predicted, swapped = teacher.index(max(teacher)), list(teacher)
    swapped[predicted], swapped[label] = swapped[label], swapped[predicted]
    return sum((kd(student, swapped, label, t) for t in (temperature, 2 * temperature)), Decimal(0))


BY_IMAGE: dict[str, Callable[[Row, Row, int, int], Decimal]] = {
    function.__name__: function for function in (kd, lskd, dkd, loca, uld, sld)
}


def correlation(first: Row, second: Row) -> Decimal:
    first, second = ([value - mean(side) for value in side] for side in (first, second))
    norms = [sum(value**2 for value in side).sqrt() for side in (first, second)]
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / (norms[0] * norms[1] + Decimal(NORM_FLOOR))


def dist(student: list[Row], teacher: list[Row], labels: list[int], temperature: int) -> Decimal:
    """With beta 1 and gamma 1."""
    soft = [
        [softmax([value / temperature for value in row]) for row in side]
        for side in (student, teacher)
    ]
    within = [1 - correlation(*rows) for rows in zip(*soft, strict=True)]
    columns = [[list(column) for column in zip(*side, strict=True)] for side in soft]
    between = [1 - correlation(*rows) for rows in zip(*columns, strict=True)]
    return temperature**2 * (mean(within) + mean(between))


def contrast(
    student: list[Row], teacher: list[Row], groups: list[int], temperature: int
) -> Decimal:
    """The student's row of each of the teacher's, among itself and those of other groups."""

    def unit(row: Row) -> Row:
        norm = sum(value**2 for value in row).sqrt()
        return [value / norm for value in row]

    ours, theirs = [unit(row) for row in student], [unit(row) for row in teacher]
    losses = []
    for own, (target, group) in enumerate(zip(theirs, groups, strict=True)):
        scores = [
            sum(p * q for p, q in zip(target, row, strict=True)) / temperature for row in ours
        ]
        others = [score.exp() for score, its in zip(scores, groups, strict=True) if its != group]
        losses.append((scores[own].exp() + sum(others)).ln() - scores[own])
    return mean(losses)


def ckd(student: list[Row], teacher: list[Row], labels: list[int], temperature: int) -> Decimal:
    return contrast(student, teacher, list(range(len(labels))), temperature)


def category(
    student: list[Row], teacher: list[Row], labels: list[int], temperature: int
) -> Decimal:
    def centered_columns(side: list[Row]) -> list[Row]:
        columns = [list(column) for column in zip(*side, strict=True)]
        return [[value - mean(column) for value in column] for column in columns]

    columns = [centered_columns(side) for side in (student, teacher)]
    return contrast(*columns, list(range(len(columns[0]))), temperature)


BY_BATCH: dict[str, Callable[[list[Row], list[Row], list[int], int], Decimal]] = {
    "dist": dist,
    "ckd": ckd,
    "class": contrast,
    "category": category,
}


def exact(
    name: str, student: list[Row], teacher: list[Row], labels: list[int], temperature: int
) -> Decimal:
    if name in BY_BATCH:
        return BY_BATCH[name](student, teacher, labels, temperature)
    images = zip(student, teacher, labels, strict=True)
    return mean([BY_IMAGE[name](*image, temperature) for image in images])


def rows(logits: Tensor) -> list[Row]:
    return [list(map(Decimal, row)) for row in logits.tolist()]


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kd": lambda s, t, y, heat: kd_loss(s, t, heat),
    "lskd": lambda s, t, y, heat: lskd_loss(s, t, heat),
    "dkd": lambda s, t, y, heat: dkd_loss(s, t, y, 1.0, 8.0, heat),
    "dist": lambda s, t, y, heat: dist_loss(s, t, 1.0, 1.0, heat),
    "loca": lambda s, t, y, heat: loca_loss(s, t, y, 0.9, heat),
    "uld": lambda s, t, y, heat: uld_loss(s, t, heat),
    "ckd": lambda s, t, y, heat: ckd_loss(s, t, heat),
    "class": class_contrast,
    "category": lambda s, t, y, heat: category_contrast(s, t, heat),
    "sld": lambda s, t, y, heat: sld_loss(s, t, y, (heat, 2 * heat)),
}


def logits(difference: float, dtype: torch.dtype) -> Iterator[Tensor]:
    """Student, teacher and labels of four images; the teacher is right about the first two."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(4, 10, generator=generator)
    student = teacher + difference * torch.randn(4, 10, generator=generator)
    right = teacher.argmax(dim=1)
    labels = torch.cat([right[:2], (right[2:] + 1) % 10])
    yield from (student.to(dtype), teacher.to(dtype), labels)


@pytest.fixture(autouse=True)
def fifty_digits() -> Iterator[None]:
    with localcontext(prec=50):
        yield


@pytest.mark.parametrize("difference", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("temperature", [1, 20, 1000])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_keep_six_digits(name, temperature, difference):
    student, teacher, labels = logits(difference, torch.float32)
    student.requires_grad_()
    found = LOSSES[name](student, teacher, labels, float(temperature))
    (gradient,) = torch.autograd.grad(found, student)
    ours, theirs = rows(student), rows(teacher)
    expected = exact(name, ours, theirs, labels.tolist(), temperature)
    assert found.item() == pytest.approx(float(expected), rel=1e-6)
    tiny = Decimal("1e-15")
    for image, column in ((0, 3), (3, 7)):
        ours[image][column] += tiny
        rise = exact(name, ours, theirs, labels.tolist(), temperature) - expected
        ours[image][column] -= tiny
        error = gradient[image, column].item() - float(rise / tiny)
        assert abs(error) < 1e-6 * gradient.abs().max().item()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_in_half_precision_lose_no_more_than_their_own_rounding(name):
    student, teacher, labels = logits(1e-1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](student, teacher, labels, 1000.0).item()
    expected = exact(name, rows(student), rows(teacher), labels.tolist(), 1000)
    assert found == pytest.approx(float(expected), rel=1e-6)
