"""What the training loop relies on in the losses of a method, and sentences where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Method

_TAKEN = ("total", "learning_rate")  # what the history of a run holds besides the losses


def check_terms(method: Method, terms: Any, before: Sequence[str]) -> Mapping[str, Tensor]:
    """The losses that a method returned, if the loop can add them up.

    Args:
        terms: What `Method.terms` returned.
        before: The names of the losses in the steps before; empty in the first step.

    Raises:
        KdstepsError: They are not what `Method.terms` promises.
    """
    where = f"methods: `terms` of {type(method).__qualname__}"
    if not isinstance(terms, Mapping):
        raise KdstepsError(
            f"{where} returned a value of type {type(terms).__name__}; return a dictionary of "
            "named losses, such as {'labels': loss}"
        )
    if not terms:
        raise KdstepsError(f"{where} returned no loss; return at least one")
    if before and list(terms) != list(before):
        raise KdstepsError(
            f"{where} returned the losses {', '.join(map(str, terms))} after {', '.join(before)}; "
            "return the same names in every step, with 0 where a loss does not apply"
        )
    for name, value in terms.items():
        if not isinstance(name, str) or name in _TAKEN:
            raise KdstepsError(
                f"{where} named a loss {name!r}; use text other than {' and '.join(_TAKEN)}"
            )
        if not isinstance(value, Tensor):
            raise KdstepsError(
                f"{where} returned a value of type {type(value).__name__} as {name!r}; return a "
                "tensor that holds one number"
            )
        if value.ndim != 0 or not value.is_floating_point():
            found = f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype)[6:]}"
            raise KdstepsError(
                f"{where} returned {found} as {name!r}; return one number of a floating-point "
                "type, such as the mean over the images"
            )
    if not any(value.requires_grad for value in terms.values()):
        raise KdstepsError(
            f"{where} returned losses that depend on no weight in training; compute at least one "
            "of them from the student's outputs, without detach() or no_grad()"
        )
    return terms
