"""The commands that look around and write nothing: `layers` and `schema`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study.settings import load_study, model_entry


def show_layers(given: argparse.Namespace) -> None:
    """Print the layers of a network: of a model in params.yaml, or of FAMILY:NAME."""
    from kdsteps.models import architecture, build_model
    from kdsteps.models.listing import list_layers, render_layers

    family, options = _model(given)
    channels, height, width = _image_shape(given.image)
    chain = build_model(
        family,
        num_classes=given.classes,
        in_channels=channels,
        image_size=(height, width),
        **architecture(options),
    )
    rows = list_layers(chain, (channels, height, width))
    print(render_layers(rows, chain.notes))


def show_schema(given: argparse.Namespace) -> None:
    """Print the JSON schema of params.yaml."""
    from kdsteps.study.schema import study_schema

    print(json.dumps(study_schema(), indent=2))


def _model(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Family and options of the network that is meant."""
    family, colon, name = given.model.partition(":")
    if colon:
        return model_entry({"family": family} | ({"name": name} if name else {}), given.model)
    study = load_study(given.params)
    if family not in study.models:
        hint = nearest(family, study.models)
        raise KdstepsError(f"{given.params}: {family!r} is not under models{hint}")
    return model_entry(study.models[family], f"{given.params}: models.{family}")


def _image_shape(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise KdstepsError(f"--image: {text!r} should read C,H,W, such as 3,32,32")
    channels, height, width = map(int, numbers)
    if min(channels, height, width) < 1:
        raise KdstepsError(f"--image: {text!r} has a 0; each number should be above 0")
    return channels, height, width
