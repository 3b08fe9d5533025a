"""Networks by name: families that ship with kdsteps, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kdsteps.errors import KdstepsError
from kdsteps.models.backbone import DUMMY_CLASSES, drop_classifier
from kdsteps.models.chain import Chain
from kdsteps.models.checkpoints import load_checkpoint
from kdsteps.models.foreign import build_foreign
from kdsteps.models.image_size import ImageSize
from kdsteps.study import registry
from kdsteps.study.part_options import signature_of

__all__ = ["Chain", "architecture", "build_model"]

_WEIGHTS = ("checkpoint", "checkpoint_key", "checkpoint_prefix", "pretrained")


@torch.inference_mode(mode=False)  # a network that is cut is tried by its gradient
def build_model(
    family: str,
    *,
    num_classes: int | None,
    in_channels: int = 3,
    image_size: ImageSize | None = None,
    checkpoint: str | None = None,
    checkpoint_key: str | None = None,
    checkpoint_prefix: str | None = None,
    will_train: bool = False,
    **options: Any,
) -> Chain:
    """A network of `family`, with fresh weights or with those of a file.

    It can be trained even if it is built within `torch.inference_mode()`.

    Args:
        family: A name such as `cifar_resnet`, or a factory such as `./nets.py:Net`.
        num_classes: Width of the logits; 0: the network has no classifier, and its output is what
            would enter it; None: as a factory of the user has it, which has no such argument.
        in_channels: Channels of an image.
        image_size: In pixels, one number or (height, width); None if the family does not need it.
        checkpoint: Weights for the plain module: kdsteps' own file or one from elsewhere.
        checkpoint_key, checkpoint_prefix: Which weights of the file, where several fit.
        will_train: Whether the network will be trained, so that its classifier may start with new
            weights where those of the file are for other classes.
        options: The family's own.

    Raises:
        KdstepsError: There is no such family or option, an option's value cannot be built, or the
            checkpoint does not fit.
    """
    part = registry.find("models", family, "build_model")
    part.parse(options, f"build_model: {family}")
    factory = registry.load("models", family)
    own, backbone = part.target.startswith("kdsteps."), num_classes == 0
    has_classes = own or "num_classes" in signature_of("models", factory).parameters
    if backbone:
        num_classes = DUMMY_CLASSES if has_classes else None
    given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if own:
        chain: Chain = factory(**given, **options)
    else:
        chain = build_foreign(factory, family, given, options)
    if checkpoint is not None:
        assert num_classes is not None or backbone, "weights are for a known number of classes"
        load_checkpoint(
            chain,
            checkpoint,
            num_classes=num_classes or 0,
            key=checkpoint_key,
            prefix=checkpoint_prefix,
        )
    if backbone and has_classes:
        drop_classifier(chain, family)
    if chain.new_weights and not will_train:
        raise KdstepsError(
            f"{chain.notes[-1]}, which only training makes useful; set epochs above 0, use weights "
            f"for {num_classes} classes, or name all classes of these weights in `classes`"
        )
    return chain


def architecture(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options without those for its initial weights."""
    return {name: value for name, value in options.items() if name not in _WEIGHTS}
