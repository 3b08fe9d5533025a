"""The command `layers`: list the layers at which a network can be cut."""

from __future__ import annotations

import argparse
from typing import Any

from kdsteps.cli.whole_numbers import count
from kdsteps.errors import KdstepsError, nearest
from kdsteps.jobs.early_checks import image_shape
from kdsteps.study.entries import ModelEntry
from kdsteps.study.image_size import ImageShape
from kdsteps.study.loading import load_study
from kdsteps.study.resolving import parse, resolve_model
from kdsteps.study.settings import Model

_SHAPE: ImageShape = (3, 32, 32)
"""Of images that nothing is known of."""
_ASSUMED = "; set --image to the shape of yours"


def add_commands(commands: Any) -> None:
    """Add `layers` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "layers",
        help="list the layers at which a network can be cut",
        description="Build a network and list the layers at which it can be cut, with the shape "
        "of each. These names can be used in params.yaml.",
    )
    parser.add_argument(
        "model",
        help="a name under `models` in params.yaml, FAMILY:NAME such as timm:resnet18, or your own "
        "./file.py:Name",
    )
    parser.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    parser.add_argument(
        "--image",
        metavar="C,H,W",
        help="image shape (default: that of the study's images, or 3,32,32 where it is not known)",
    )
    parser.add_argument(
        "--classes", type=count, default=10, metavar="K", help="number of classes (%(default)s)"
    )
    parser.set_defaults(run=show_layers)


def show_layers(given: argparse.Namespace) -> None:
    """Print the layers of a network of params.yaml, of a library or of the user's own."""
    from kdsteps.models import architecture, build_model
    from kdsteps.models.listing import list_layers, render_layers

    model, shape, of_whom = _asked(given)
    channels, *own_size = shape if given.image is None else _image_shape(given.image)
    height, width = model.image_size or own_size
    chain = build_model(
        model.family,
        num_classes=given.classes,
        in_channels=channels,
        image_size=(height, width),
        **architecture(model.options),
    )
    rows = list_layers(chain, (channels, height, width))
    if given.image is None:
        size = "" if model.image_size is None else f", resized to {height} x {width}"
        print(f"for images of {' x '.join(map(str, shape))}{of_whom}{size}")
    print(render_layers(rows, chain.notes))


def _asked(given: argparse.Namespace) -> tuple[Model, ImageShape, str]:
    """The network that the command line names, the shape of its images, and whose that is."""
    family, colon, name = given.model.partition(":")
    if colon:
        is_own = "." in family or "/" in family  # ./file.py:Name, package.module:Name
        content = {"family": given.model if is_own else family}
        content |= {"name": name} if name and not is_own else {}
        model = resolve_model(parse(ModelEntry, content, given.model), given.model)
        return model, _SHAPE, _ASSUMED
    study = load_study(given.params)
    if family not in study.models:
        hint = nearest(family, study.models)
        raise KdstepsError(f"{given.params}: {family!r} is not under models{hint}")
    pairs = study.pairs.values()
    names = [pair.dataset for pair in pairs if family in (pair.student, *pair.teacher_names)]
    for dataset in dict.fromkeys(names):
        if (shape := image_shape(study, dataset)) is not None:
            return study.models[family], shape, f", as in the data set {dataset}"
    return study.models[family], _SHAPE, _ASSUMED


def _image_shape(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
        raise KdstepsError(f"--image: {text!r} should read C,H,W, such as 3,32,32")
    channels, height, width = map(int, numbers)
    if min(channels, height, width) < 1:
        raise KdstepsError(f"--image: {text!r} has a 0; every number should be above 0")
    return channels, height, width
