"""Any network of timm: `family: timm` with `name:` and the options of its factory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from pydantic import NonNegativeInt
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.models.chain import Chain
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.cut.tracing import Rules
from kdsteps.models.families._download import no_weights, reachable
from kdsteps.models.families._options import unknown_name, unknown_option
from kdsteps.models.families._stems import shrink_stem
from kdsteps.models.image_size import ImageSize, as_text, height_width, plain_size
from kdsteps.models.input_contract import InputContract, Published, known_interpolation

_HUB, _FOLDER = ("hf-hub:", "hf_hub:"), ("local-dir:", "local_dir:")
_OF_SQUARES = "mvitv2"
_BY_WINDOWS = ("Hiera", "Nest")  # their tokens are in the order of attention windows


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    name: str,
    pretrained: bool = False,
    small_stem: bool = False,
    output: str | int | None = None,
    prefix_tokens: NonNegativeInt | None = None,
    **options: Any,
) -> Chain:
    """A network of timm as a chain.

    Args:
        num_classes: Width of the logits. A pretrained network with another number of classes gets
            a new classifier (`chain.new_weights`).
        in_channels: Channels of an image. Pretrained weights for three are summed or repeated, as
            timm does.
        image_size: In pixels, one number or (height, width); passed to networks that must know it
            (ViT, Swin and the like). None: the size the network was made for.
        name: As `timm.list_models()` has it, with a tag for certain weights: `resnet18.a1_in1k`;
            or `hf-hub:ORGANIZATION/NAME` or `local-dir:PATH`.
        pretrained: Whether to start from the network's published weights, from the network or its
            cache.
        small_stem: Whether an ImageNet network gets a stem for small images: the first convolution
            3x3 with stride 1, no max-pooling after it. ResNet and its kin, DenseNet, RegNet, DLA:
            maps four times (two times where there is no pooling) as wide; EfficientNet, MobileNet,
            GhostNet, HRNet: two times; ConvNeXt: the 4x4 patches become 3x3, maps four times as
            wide; VGG: as it is. Networks of patches and positions (ViT, Swin, MaxViT): refused,
            they take `patch_size`.
        output: Key or index of the logits, if the network returns several outputs.
        prefix_tokens: Number of class and register tokens before those of the patches; None: as the
            network declares.
        options: Of timm's factory, such as `drop_path_rate` or `patch_size`.

    Raises:
        KdstepsError: timm has no such network or option, it does not take such images, or its
            weights are not available.
    """
    if problem := _refused_option(options) or _size_problem(image_size, options):
        raise KdstepsError(f"models: {name}: {problem}")
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
    config: Any = network.pretrained_cfg
    made_for = config.get("input_size", (3, 224, 224))[1:]
    size = height_width(image_size or options.get("img_size") or made_for)
    chain = CutChain(
        network,
        image_shape=(in_channels, *size),
        rules=_rules(),
        stages=[entry["module"] for entry in getattr(network, "feature_info", None) or ()],
        output=output,
        prefix_tokens=prefix_tokens,
    )
    chain.published = _published(network, config)
    if type(network).__name__ in _BY_WINDOWS:
        chain.notes.append(
            f"models: the tokens of timm's {name} are in the order of its attention windows, so "
            "maps of its inner layers do not show the image; methods on logits are unaffected"
        )
    if pretrained and config.get("fixed_input_size") and size != tuple(made_for):
        chain.notes.append(
            f"models: the pretrained weights of {name} are for images of {as_text(made_for)} "
            f"pixels, and the network is built for {as_text(size)}, so timm resamples what depends "
            f"on the size; set image_size to {as_text(made_for)} to resize the images instead"
        )
    if pretrained and config.get("num_classes") != num_classes:
        chain.new_weights = _classifier(network, config.get("classifier"))
        chain.notes.append(
            f"models: {name} was trained for {config.get('num_classes')} classes; "
            f"{', '.join(chain.new_weights)} start with new weights"
        )
    return chain


def options_problem(*, name: str, **options: Any) -> str | None:
    """What is wrong with a name or options of timm, as far as it is known without data."""
    if name.startswith(_HUB + _FOLDER):  # whose networks may change: known when they are built
        return None
    import timm

    for own in set(signature(build).parameters) & set(options):
        del options[own]
    create = partial(timm.create_model, name)
    return _name_problem(name) or _refused_option(options) or unknown_option(create, options)


def _refused_option(options: dict[str, Any]) -> str | None:
    """What is wrong with options of timm that kdsteps sets itself or that leave no logits."""
    if options.get("features_only"):
        return (
            "features_only is true, so the network returns feature maps and no logits; leave it "
            "out (inner layers are read by name)"
        )
    if "in_chans" in options:
        return "in_chans follows from the images; leave it out"
    return None


def _size_problem(image_size: ImageSize | None, options: Mapping[str, Any]) -> str | None:
    """What is wrong with timm's own option for the size of the images."""
    own = options.get("img_size")
    if own is None or image_size is None or options.get("dynamic_img_size"):
        return None
    if height_width(own) == height_width(image_size):
        return None
    return (
        f"img_size is {as_text(own)} and images have {as_text(image_size)} pixels; set image_size "
        "instead, to which images are resized"
    )


def _create(name: str, image_size: ImageSize | None, **options: Any) -> nn.Module:
    """The network, with the size of the images if it takes one.

    MViTv2 is made for squares only, because it has tables of relative positions as long as the
    sides: with those of the longer side it takes every image that is not larger.
    """
    import timm

    _check_name(name)
    if image_size is not None and "img_size" not in options:
        is_square = name.startswith(_OF_SQUARES)
        size = max(height_width(image_size)) if is_square else plain_size(image_size)
        sized: dict[str, Any] = {"img_size": size}
    else:
        sized = {}
    fetches = name.startswith(_HUB) or (options["pretrained"] and not name.startswith(_FOLDER))
    with _quick_to_fail(f"timm's {name}", fetches=fetches):
        try:
            return timm.create_model(name, **sized, **options)
        except TypeError as error:
            if "'img_size'" not in str(error) or not sized:
                raise
        return timm.create_model(name, **options)


def _check_name(name: str) -> None:
    """Raises: KdstepsError: timm has no such network, or there is no such folder."""
    if name.startswith(_FOLDER):
        folder = expanded(name.partition(":")[2])
        if not (folder / "config.json").is_file():
            raise KdstepsError(f"models: {name}: there is no {folder / 'config.json'}")
    elif not name.startswith(_HUB) and (problem := _name_problem(name)):
        raise KdstepsError(f"models: {problem}")


def _name_problem(name: str) -> str | None:
    """What is wrong with the name of one of timm's networks, and with its tag if it has one."""
    import timm

    network, dot, _ = name.partition(".")
    if not timm.is_model(network):
        return unknown_name(name, "timm", timm.list_models())
    tagged = timm.list_models(f"{network}.*", include_tags=True)
    return unknown_name(name, "timm", tagged) if dot and name not in tagged else None


@contextmanager
def _quick_to_fail(what: str, *, fetches: bool) -> Iterator[None]:
    """Turn errors of timm into KdstepsError; no retries if the weights' server is unreachable."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    reached = not fetches or reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline or not reached  # then it looks into its cache alone
    try:
        yield
    # downloads and third-party constructors may raise anything
    except Exception as error:
        if "loading state_dict" in str(error):
            raise KdstepsError(
                f"models: the pretrained weights of {what} do not fit ({_reason(error)}); where "
                "sizes of images differ, set image_size to that of the weights"
            ) from error
        if fetches and not isinstance(error, TypeError):
            why = error if reached else f"no connection to {constants.ENDPOINT}"
            raise KdstepsError(no_weights(what, why)) from error
        raise KdstepsError(
            f"models: {what} cannot be built ({_reason(error)}); see its options, and image_size "
            "if it does not take images of this size"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reason(error: Exception) -> str:
    """The first line of a message, with the next one if it ends in a colon."""
    first, _, rest = str(error).strip().partition("\n")
    more = rest.strip().partition("\n")[0] if first.rstrip().endswith(":") else ""
    return f"{first.rstrip()} {more}".strip() or type(error).__name__


def _classifier(network: nn.Module, named: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the classifier's parameters, where timm's config names its modules."""
    modules = (named,) if isinstance(named, str) else named or ()
    return tuple(
        f"{path}.{name}"
        for path in modules
        for name, _ in network.get_submodule(path).named_parameters()
    )


def _rules() -> Rules:
    """timm's list of modules and functions that should not be traced."""
    from timm import layers

    found: Any = layers
    return Rules(tuple(found.get_notrace_modules()), tuple(found.get_notrace_functions()))


def _published(network: nn.Module, config: Mapping[str, Any]) -> Published:
    """What timm's config states about a network's weights."""
    from timm import data

    found: Any = data
    pixels = found.resolve_model_data_config(network)
    how = known_interpolation(pixels["interpolation"])
    contract = InputContract(tuple(pixels["mean"]), tuple(pixels["std"]), None, how)
    return Published(contract, config.get("num_classes", network.num_classes))
