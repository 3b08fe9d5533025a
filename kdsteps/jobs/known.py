"""What planning knows of the networks of a study before any of them is built."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kdsteps.study.image_size import ImageShape
from kdsteps.study.joints import Outline
from kdsteps.study.part_cache import known_outlines, outlines
from kdsteps.study.resolving import WEIGHTS
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
            model, shape = study.models[name], shapes[pair.dataset]
            if model.image_size is not None:
                shape = (shape[0] if shape is not None else 3, *model.image_size)
            found[pair.dataset, name] = None
            if shape is not None:
                options = {key: v for key, v in model.options.items() if key not in WEIGHTS}
                asked[pair.dataset, name] = model.family, options, shape
    look = outlines if build else known_outlines
    return found | dict(zip(asked, look(list(asked.values())), strict=True))
