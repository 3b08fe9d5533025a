"""The command `layers`: list the layers at which a network can be cut."""

from __future__ import annotations

import argparse

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study.entries import ModelEntry
from kdsteps.study.loading import load_study
from kdsteps.study.resolving import parse, resolve_model
from kdsteps.study.settings import Model


def show_layers(given: argparse.Namespace) -> None:
    """Print the layers of a network of params.yaml, of a library or of the user's own."""
    from kdsteps.models import architecture, build_model
    from kdsteps.models.listing import list_layers, render_layers

    model = _model(given)
    channels, *size = _image_shape(given.image)
    height, width = model.image_size or size
    chain = build_model(
        model.family,
        num_classes=given.classes,
        in_channels=channels,
        image_size=(height, width),
        **architecture(model.options),
    )
    rows = list_layers(chain, (channels, height, width))
    print(render_layers(rows, chain.notes))


def _model(given: argparse.Namespace) -> Model:
    """The network that the command line names."""
    family, colon, name = given.model.partition(":")
    if colon:
        is_own = "." in family or "/" in family  # ./file.py:Name, package.module:Name
        content = {"family": given.model if is_own else family}
        content |= {"name": name} if name and not is_own else {}
        return resolve_model(parse(ModelEntry, content, given.model), given.model)
    study = load_study(given.params)
    if family not in study.models:
        hint = nearest(family, study.models)
        raise KdstepsError(f"{given.params}: {family!r} is not under models{hint}")
    return study.models[family]


def _image_shape(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise KdstepsError(f"--image: {text!r} should read C,H,W, such as 3,32,32")
    channels, height, width = map(int, numbers)
    if min(channels, height, width) < 1:
        raise KdstepsError(f"--image: {text!r} has a 0; every number should be above 0")
    return channels, height, width
