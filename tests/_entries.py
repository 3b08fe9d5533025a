"""Entries of `models` and a data set, as far as stages build networks from them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from kdsteps.data.prepared import Prepared
from kdsteps.study.entries import ModelEntry
from kdsteps.study.resolving import resolve_model
from kdsteps.study.settings import Model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def data_of(height: int, width: int, class_names: tuple[str, ...] = ("a", "b", "c")) -> Prepared:
    """A data set as far as networks are made for it."""
    nothing = np.empty(0)
    return Prepared(
        class_names=class_names,
        image_shape=(3, height, width),
        mean=torch.tensor(MEAN),
        std=torch.tensor(STD),
        images=nothing,
        labels=nothing,
        split=nothing,
        hashes=cast(Any, None),
        device=torch.device("cpu"),
    )


def model(**entry: Any) -> Model:
    return resolve_model(ModelEntry.model_validate(entry), "params.yaml: models.big")
