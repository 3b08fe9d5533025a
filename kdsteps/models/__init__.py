"""Networks by name: a family is a module of this folder with a function `build`."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.models._chain import Chain

__all__ = ["Chain", "build_model", "family_names"]


def build_model(
    family: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    checkpoint: str | None = None,
    **options: Any,
) -> Chain:
    """A network of `family`, with fresh weights or with those of a file.

    Args:
        family: Name of a module of this folder, such as `cifar_resnet`.
        num_classes: Width of the logits.
        in_channels: Channels of an image.
        image_size: Height and width in pixels; None where the family can do without.
        checkpoint: Weights for the plain module: kdsteps' own file or a foreign one.
        options: The family's own, named in its `build`.

    Raises:
        KdstepsError: There is no such family or option, an option's value cannot be built, or the
            checkpoint does not fit.
    """
    build = _build_of(family)
    _refuse_unknown(family, options, inspect.signature(build))
    chain: Chain = build(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )
    if checkpoint is not None:
        from kdsteps.models._checkpoint import load_weights, read_weights

        load_weights(chain.plain(), read_weights(checkpoint), where=f"checkpoint {checkpoint}")
    return chain


def family_names() -> tuple[str, ...]:
    """The families there are, in alphabetical order."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return tuple(sorted(file.stem for file in files))


def _build_of(family: str) -> Any:
    if family not in family_names():
        raise KdstepsError(
            f"models: family {family!r} is not there; there are {', '.join(family_names())}"
        )
    return import_module(f"kdsteps.models.{family}").build


def _refuse_unknown(family: str, options: dict[str, Any], signature: inspect.Signature) -> None:
    """Say which options `build` does not take, unless it takes any."""
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    given_by_us = {"num_classes", "in_channels", "image_size"}
    known = [parameter.name for parameter in parameters if parameter.name not in given_by_us]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise KdstepsError(
            f"models: family {family!r} has no option {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(known) or 'none'}"
        )
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name not in (*given_by_us, *options)
    ]
    if missing:
        raise KdstepsError(
            f"models: family {family!r} needs {', '.join(missing)}, which is not given"
        )
