"""Networks by name: a family is a module of this folder with a function `build`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Chain
from kdsteps.models.image_size import ImageSize
from kdsteps.study import registry
from kdsteps.study.study import parse

__all__ = ["Chain", "architecture", "build_model"]

_WEIGHTS = ("checkpoint", "checkpoint_key", "checkpoint_prefix", "pretrained")


def build_model(
    family: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize | None = None,
    checkpoint: str | None = None,
    checkpoint_key: str | None = None,
    checkpoint_prefix: str | None = None,
    will_train: bool = False,
    **options: Any,
) -> Chain:
    """A network of `family`, with fresh weights or with those of a file.

    Args:
        family: Name of a module of this folder, such as `cifar_resnet`.
        num_classes: Width of the logits.
        in_channels: Channels of an image.
        image_size: In pixels, one number or (height, width); None where the family does without.
        checkpoint: Weights for the plain module: kdsteps' own file or one from elsewhere.
        checkpoint_key, checkpoint_prefix: Which weights of the file, where several fit.
        will_train: Whether the network will be trained, so that its classifier may start anew where
            the weights are those of other classes.
        options: The family's own, named in its `build`.

    Raises:
        KdstepsError: There is no such family or option, an option's value cannot be built, or the
            checkpoint does not fit.
    """
    registry.known("models", family, "build_model")
    parse(registry.options("models", family), options, f"build_model: {family}")
    build = import_module(registry.module("models", family)).build
    chain: Chain = build(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options
    )
    if checkpoint is not None:
        from kdsteps.models.checkpoints import load_checkpoint

        load_checkpoint(
            chain,
            checkpoint,
            num_classes=num_classes,
            key=checkpoint_key,
            prefix=checkpoint_prefix,
        )
    if chain.new_weights and not will_train:
        raise KdstepsError(
            f"{chain.notes[-1]}, which only training makes useful; set epochs above 0, or name "
            f"weights for {num_classes} classes"
        )
    return chain


def architecture(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options without those that say where its first weights come from."""
    return {name: value for name, value in options.items() if name not in _WEIGHTS}
