"""Any network of timm: `family: timm` with `name:` and whatever options its factory takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Chain
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.cut.tracing import Rules
from kdsteps.models.families._download import no_weights, reachable
from kdsteps.models.families._stems import shrink_stem
from kdsteps.models.image_size import ImageSize, height_width


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    name: str,
    pretrained: bool = False,
    small_stem: bool = False,
    **options: Any,
) -> Chain:
    """A network of timm as a chain.

    Args:
        num_classes: Width of the logits. A pretrained network with another number of classes gets
            a new classifier, as timm does; the chain's `note` says so.
        in_channels: Channels of an image. Pretrained weights for three are summed or repeated, as
            timm does.
        image_size: Height and width in pixels; handed to networks that must know it (ViT and its
            kin). None: the size the network was made for.
        name: As `timm.list_models()` has it, with a tag for certain weights: `resnet18.a1_in1k`.
        pretrained: Whether to start from timm's weights, fetched from the network or its cache.
        small_stem: Whether an ImageNet network gets a stem for small images: the first convolution
            3x3 with stride 1, no max-pooling behind it. ResNet and its kin, DenseNet, RegNet, DLA:
            maps four times (two times where there is no pooling) as wide; EfficientNet, MobileNet,
            GhostNet, HRNet: two times; ConvNeXt: the 4x4 patches become 3x3, maps four times as
            wide; VGG: as it is. Networks of patches and positions (ViT, Swin, MaxViT): refused,
            they take `patch_size` or `img_size`.
        options: Of timm's factory, such as `drop_path_rate` or `patch_size`.

    Raises:
        KdstepsError: timm has no such network or option, it does not take such images, or its
            weights cannot be had.
    """
    network = _create(
        name,
        image_size,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_channels,
        **options,
    )
    if small_stem:
        shrink_stem(network, f"timm's {name}")
    made_for = network.pretrained_cfg.get("input_size", (3, 224, 224))[1:]  # type: ignore[union-attr,operator]
    size = height_width(options.get("img_size") or image_size or made_for)
    chain = CutChain(
        network,
        image_shape=(in_channels, *size),
        rules=_rules(),
        stages=[entry["module"] for entry in getattr(network, "feature_info", None) or ()],
    )
    published = network.pretrained_cfg.get("num_classes")  # type: ignore[union-attr,operator]
    if pretrained and published != num_classes:
        new = f"{name} was trained for {published} classes; its classifier starts anew"
        chain.note = f"{chain.note}; {new}" if chain.note else f"models: {new}"
    return chain


def _create(name: str, image_size: ImageSize | None, **options: Any) -> nn.Module:
    """The network, told the size of the images if it wants to know."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; near are {', '.join(near)}" if near else "; timm.list_models() has the names"
        raise KdstepsError(f"models: timm has no network {name!r}{hint}")
    sized = {} if image_size is None else {"img_size": _size_option(image_size)}
    with _quick_to_fail(f"timm's {name}", fetches=options["pretrained"]):
        try:
            return timm.create_model(name, **sized | options)
        except TypeError as error:
            if not sized or "'img_size'" not in str(error) or "img_size" in options:
                raise
        return timm.create_model(name, **options)


@contextmanager
def _quick_to_fail(what: str, *, fetches: bool) -> Iterator[None]:
    """Errors of timm as sentences; no retries where the weights' server is out of reach."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    reached = not fetches or reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline or not reached  # then its cache is all it looks into
    try:
        yield
    # which errors a download or a foreign constructor raises is not for us to list
    except Exception as error:
        if fetches and not isinstance(error, TypeError):
            why = error if reached else f"no connection to {constants.ENDPOINT}"
            raise KdstepsError(no_weights(what, why)) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KdstepsError(
            f"models: {what} cannot be built ({reason}); see its options and image_size"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _rules() -> Rules:
    """timm's own list of what tracing is not to go into."""
    from timm import layers

    found: Any = layers
    return Rules(tuple(found.get_notrace_modules()), tuple(found.get_notrace_functions()))


def _size_option(size: ImageSize) -> int | tuple[int, int]:
    """A size as timm's factories take it: a number for square images, which all of them take."""
    height, width = height_width(size)
    return height if height == width else (height, width)
