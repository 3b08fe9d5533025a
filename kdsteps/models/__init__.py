"""Networks by name: families that ship with kdsteps, and those of other people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsteps.models.chain import Chain
from kdsteps.study import registry

__all__ = ["Chain", "architecture", "build_model"]


def build_model(
    family: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    checkpoint: str | None = None,
    **options: Any,
) -> Chain:
    """A network of `family`, with fresh weights or with those of a file.

    Args:
        family: A name such as `cifar_resnet`, or a factory such as `./nets.py:Net`.
        num_classes: Width of the logits.
        in_channels: Channels of an image.
        image_size: Height and width in pixels; None where the family can do without.
        checkpoint: Weights for the plain module, from kdsteps or from another project.
        options: The family's own.

    Raises:
        KdstepsError: There is no such family or option, an option's value cannot be built, or the
            checkpoint does not fit.
    """
    part = registry.find("models", family, "build_model")
    part.parse(options, f"build_model: {family}")
    factory = registry.load("models", family)
    given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if part.target.startswith("kdsteps."):
        chain: Chain = factory(**given, **options)
    else:
        from kdsteps.models.foreign import build_foreign

        chain = build_foreign(factory, family, given, options)
    if checkpoint is not None:
        from kdsteps.models.checkpoints import load_weights, read_weights

        load_weights(chain.plain(), read_weights(checkpoint), where=f"checkpoint {checkpoint}")
    return chain


def architecture(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options without those that say where its first weights come from."""
    return {
        name: value for name, value in options.items() if name not in ("checkpoint", "pretrained")
    }
