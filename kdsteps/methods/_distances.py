"""Losses between logits by name, for methods that take one as an option."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from kdsteps.methods.dist import dist_loss
from kdsteps.methods.dkd import dkd_loss
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.lskd import lskd_loss

Distance = Literal["kd", "lskd", "dkd", "dist"]
LogitDistance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A scalar from the student's logits (N, K), the teacher's (N, K) and the labels (N,)."""

_TEMPERATURES: dict[Distance, float] = {"kd": 4.0, "lskd": 2.0, "dkd": 4.0, "dist": 4.0}


def logit_distance(
    name: Distance, temperature: float | None = None, dkd_beta: float | None = None
) -> LogitDistance:
    """The loss of a method without its outer weight.

    Args:
        name: dkd has alpha 1, dist beta 1 and gamma 1.
        temperature: Above 0; None for the method's own.
        dkd_beta: Weight of the classes other than the target in dkd; None for its own, 8.

    Raises:
        ValueError: There is no loss of this name.
    """
    if name not in get_args(Distance):
        raise ValueError(f"no distance {name!r}; there are {', '.join(get_args(Distance))}")
    heat = _TEMPERATURES[name] if temperature is None else temperature
    if name == "dkd":
        beta = 8.0 if dkd_beta is None else dkd_beta
        return partial(dkd_loss, alpha=1.0, beta=beta, temperature=heat)
    if name == "dist":
        return _without_labels(partial(dist_loss, beta=1.0, gamma=1.0, temperature=heat))
    return _without_labels(partial(lskd_loss if name == "lskd" else kd_loss, temperature=heat))


def _without_labels(loss: Callable[[Tensor, Tensor], Tensor]) -> LogitDistance:
    return lambda student, teacher, labels: loss(student, teacher)
