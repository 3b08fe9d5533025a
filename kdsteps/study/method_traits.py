"""What the class of a method says about it: its attributes that planning has to know."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import JsonValue

from kdsteps.errors import KdstepsError

_CHOICES = {
    "wants": ("nothing", "logits", "blocks", "layers"),
    "plan": (None, "stones", "pairs"),
}
_BY_OPTION = ("one_class", "compares_images", "needs_labels")


def method_traits(reference: str, part: Any, options: Collection[str]) -> dict[str, Any]:
    """Attributes of a method by name, as `Description` has them.

    Args:
        reference: As params.yaml names the method.
        part: Its class.
        options: The names of its options.

    Raises:
        KdstepsError: An attribute has a value that it cannot have.
    """
    traits: dict[str, Any] = {name: _choice(reference, part, name) for name in _CHOICES}
    traits |= {name: _by_option(reference, part, name) for name in _BY_OPTION}
    return traits | {"lengths": _lengths(reference, part, options)}


def _choice(reference: str, part: Any, name: str) -> Any:
    value, choices = getattr(part, name), _CHOICES[name]
    if value not in choices:
        right = ", ".join(map(str, choices))
        raise KdstepsError(f"{reference!r}: {name} is {value!r}; it should be one of {right}")
    return value


def _by_option(reference: str, part: Any, name: str) -> bool | dict[str, JsonValue]:
    value = getattr(part, name)
    if not isinstance(value, bool | dict):
        raise KdstepsError(
            f"{reference!r}: {name} is {value!r}; it should be True, False or {{option: value}}"
        )
    return value


def _lengths(reference: str, part: Any, options: Collection[str]) -> dict[str, int]:
    value = part.lengths
    if not isinstance(value, dict) or not all(isinstance(after, int) for after in value.values()):
        raise KdstepsError(
            f"{reference!r}: lengths is {value!r}; it should be {{option: number of epochs that "
            "have to follow}"
        )
    for name in value:
        if name not in options:
            raise KdstepsError(
                f"{reference!r}: lengths has {name!r}, which is not one of its options; delete it"
            )
    return value
