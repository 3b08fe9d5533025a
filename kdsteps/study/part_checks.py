"""What is wrong with the options of a part that their types cannot express.

The module that defines a part may have a function `options_problem(*, depth, ...)` that returns a
sentence such as "depth is 9; it should be 8 or 14", or None.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import NonNegativeInt

from kdsteps.errors import KdstepsError
from kdsteps.study.part_imports import Kind, load

CUTTING: dict[str, Any] = {"output": str | int, "prefix_tokens": NonNegativeInt}
"""Types of the options of networks from elsewhere that say how to cut them (`CutChain`)."""


def options_problem(kind: Kind, reference: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with the options of a part, if it has all those that its function names.

    Args:
        options: With defaults.

    Raises:
        KdstepsError: The function itself fails.
    """
    check = checker(load(kind, reference))
    if check is None:
        return None
    named = inspect.signature(check).parameters.values()
    needed = {p.name for p in named if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    if needed - options.keys():
        return None
    is_open = any(p.kind is p.VAR_KEYWORD for p in named)
    names = {p.name for p in named}
    try:
        return check(**{k: v for k, v in options.items() if is_open or k in names})
    except Exception as error:  # it may be the user's code: anything can happen
        raise KdstepsError(
            f"options_problem of {reference} raises {type(error).__name__}: {error}"
        ) from error


def checker(part: Any) -> Callable[..., str | None] | None:
    """The function `options_problem` of the module that defines a part, if it has one."""
    while isinstance(part, functools.partial):
        part = part.func
    module = sys.modules.get(getattr(inspect.unwrap(part), "__module__", ""))
    return getattr(module, "options_problem", None)
