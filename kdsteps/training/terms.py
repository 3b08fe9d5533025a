"""What the training loop relies on in the losses of a method, and sentences where it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Method

_TAKEN = ("total", "learning_rate")  # what the history of a run holds besides the losses


def check_modules(method: Method) -> None:
    """Check that a method is a module with all of its trainable parts.

    Raises:
        KdstepsError: It does not call its base class, or keeps modules where no optimizer finds
            them, such as in a list.
    """
    where = f"methods: {type(method).__qualname__}"
    if "_modules" not in vars(method):
        raise KdstepsError(
            f"{where} does not call its base class; begin its __init__ with "
            "`super().__init__(*given, **options)`"
        )
    known = set(map(id, method.parameters()))
    for name, value in vars(method).items():
        lost = (
            module
            for module in _in_containers(value)
            if any(each.requires_grad and id(each) not in known for each in module.parameters())
        )
        if (module := next(lost, None)) is not None:
            raise KdstepsError(
                f"{where} keeps a {type(module).__name__} in `{name}`, where its weights would not "
                "be trained; use nn.ModuleList or nn.ModuleDict, or set requires_grad to False"
            )


def _in_containers(value: object) -> Iterator[nn.Module]:
    """The modules in plain lists and dictionaries, in which PyTorch does not look for them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, nn.Module):
                yield item
            else:
                yield from _in_containers(item)


def check_terms(method: Method, terms: Any, before: Sequence[str]) -> Mapping[str, Tensor]:
    """The losses that a method returned, if the loop can add them up.

    Args:
        terms: What `Method.terms` returned.
        before: The names of the losses in the steps before; empty in the first step.

    Raises:
        KdstepsError: They are not what `Method.terms` promises.
    """
    where = f"methods: `terms` of {type(method).__qualname__}"
    if method.teacher is not None and method.teacher.training:
        raise KdstepsError(
            f"{where} put the teacher into training mode, where it predicts otherwise; leave it in "
            "eval mode"
        )
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
