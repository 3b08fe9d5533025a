"""Run a network of anybody, whose errors become a sentence."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.image_size import as_text

_LONGEST = 160  # characters of another program's error


def run(network: nn.Module, images: Tensor) -> Any:
    try:
        return network(images)
    # third-party code may raise anything on unsuitable images
    except Exception as error:
        size = " x ".join(map(str, images.shape[1:]))
        raise KdstepsError(
            f"models: {type(network).__name__} does not run on images of {size} "
            f"({reason(error)}); set image_size of the model to {_taken_size(network)}, and "
            "images are resized"
        ) from error


def reason(error: Exception) -> str:
    """The first line of an error, shortened."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return shorten(line, _LONGEST, placeholder=" ...")


def _taken_size(network: nn.Module) -> str:
    """The size that a network of timm was made for; for others, in words."""
    config = getattr(network, "pretrained_cfg", None) or {}
    _, *size = config.get("input_size") or (None,)
    return as_text(size) if size else "a size that it takes"
