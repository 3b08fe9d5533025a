"""What planning knows of the networks of a study before any of them is built."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kdsteps.study.image_size import ImageShape
from kdsteps.study.joints import Outline
from kdsteps.study.part_cache import known_outlines, outlines
from kdsteps.study.resolving import WEIGHTS
from kdsteps.study.settings import Model
from kdsteps.study.study import Study


def network_outlines(
    study: Study,
    datasets: Collection[str],
    shapes: Mapping[str, ImageShape | None],
    *,
    build: bool = True,
) -> dict[tuple[str, str], Outline | None]:
    """The layers and the cost of each network for the images of each data set.

    Args:
        datasets: Those whose pairs are looked at.
        shapes: (C, H, W) of the images of each data set; None where it is not known yet.
        build: Whether networks that were not looked at before are built to know them.

    Returns:
        By data set and model; None where it is not known.
    """
    found: dict[tuple[str, str], Outline | None] = {}
    asked: dict[tuple[str, str], tuple[str, Mapping[str, Any], ImageShape]] = {}
    for pair in study.pairs.values():
        if pair.dataset not in datasets:
            continue
        for name in (*pair.teacher_names, pair.student):
            model = study.models[name]
            shape = built_for(model, shapes[pair.dataset])
            found[pair.dataset, name] = None
            if shape is not None:
                asked[pair.dataset, name] = model.family, without_weights(model), shape
    look = outlines if build else known_outlines
    return found | dict(zip(asked, look(list(asked.values())), strict=True))


def built_for(model: Model, shape: ImageShape | None) -> ImageShape | None:
    """The shape (C, H, W) of the images that a network is built for; None if it is not known yet.

    Args:
        shape: Of the images of the data set.
    """
    if model.image_size is None:
        return shape
    return (shape[0] if shape is not None else 3, *model.image_size)


def without_weights(model: Model) -> dict[str, Any]:
    """The options of a network without those for the weights that it starts from."""
    return {key: value for key, value in model.options.items() if key not in WEIGHTS}
