"""How many outputs a network has whose settings name some of them by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdsteps.errors import KdstepsError
from kdsteps.models import architecture, build_model
from kdsteps.models.checkpoints import classes_in_checkpoint
from kdsteps.models.evaluating import evaluating
from kdsteps.models.image_size import ImageSize, height_width
from kdsteps.study import registry
from kdsteps.study.part_options import signature_of

_PROBED = 13  # outputs of a network whose classifier is then compared with that of the weights


def num_outputs(
    family: str,
    options: Mapping[str, Any],
    image_shape: Sequence[int],
    image_size: ImageSize | None = None,
) -> int:
    """The number of outputs of the weights that a network starts from.

    A factory of the user without the argument `num_classes` decides for itself.

    Args:
        options: Of the family, those for weights among them.
        image_shape: (C, H, W).
        image_size: That the network is built for, if it differs.

    Raises:
        KdstepsError: The network cannot be built, or the weights do not say.
    """
    channels, *size = image_shape
    given = {"in_channels": channels, "image_size": image_size or size, **architecture(options)}
    if "num_classes" not in signature_of("models", registry.load("models", family)).parameters:
        chain = build_model(family, num_classes=None, **given)
        images = torch.zeros(2, channels, *height_width(image_size or size))
        with evaluating(chain):
            return int(chain(images).shape[1])
    chain = build_model(family, num_classes=_PROBED, **given)
    if "checkpoint" in options:
        return classes_in_checkpoint(
            chain,
            options["checkpoint"],
            num_classes=_PROBED,
            key=options.get("checkpoint_key"),
            prefix=options.get("checkpoint_prefix"),
        )
    if not options.get("pretrained") or chain.published is None:
        raise KdstepsError(
            f"classes: are numbers, and the number of outputs of {family} is not known without a "
            "checkpoint; list the names of its outputs"
        )
    return chain.published.num_classes
