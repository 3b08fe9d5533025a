"""Any classifier of torchvision: `family: torchvision` with `name:` and its factory's options."""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Chain
from kdsteps.models.checkpoints import put_weights
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.families._download import no_weights, reachable
from kdsteps.models.families._options import unknown_name, unknown_option
from kdsteps.models.families._stems import fit_channels, shrink_stem
from kdsteps.models.image_size import ImageSize, as_text, height_width
from kdsteps.models.input_contract import InputContract, Published, known_interpolation

_MADE_FOR = 224  # pixels, height and width
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    name: str,
    pretrained: bool = False,
    small_stem: bool = False,
    prefix_tokens: NonNegativeInt | None = None,
    **options: Any,
) -> Chain:
    """A network of torchvision as a chain.

    Args:
        num_classes: Width of the logits. A pretrained network has 1,000 classes; with another
            number its classifier has new weights (`chain.new_weights`).
        in_channels: Channels of an image; with other than three the first convolution is refitted,
            its weights summed or repeated, as timm does.
        image_size: In pixels, one number or (height, width); passed to networks that must know it
            (MaxViT, and ViT, which takes only squares of whole patches). None: 224.
        name: As `torchvision.models.list_models()` has it.
        pretrained: Whether to start from torchvision's default weights, fetched from the network or
            its cache.
        small_stem: Whether an ImageNet network gets a stem for small images: the first convolution
            3x3 with stride 1, no max-pooling after it. ResNet and its kin, DenseNet, ShuffleNet,
            SqueezeNet, AlexNet: maps four times as wide (AlexNet eight); EfficientNet, MobileNet,
            MNASNet, RegNet: two times; ConvNeXt: the 4x4 patches become 3x3, maps four times as
            wide; VGG: as it is. ViT, Swin and MaxViT: refused.
        prefix_tokens: Number of class and register tokens before those of the patches; None: as the
            lengths of the token sequences show.
        options: Of torchvision's factory, such as `dropout`. Auxiliary heads (GoogLeNet,
            Inception) are left out, since nothing would train them, unless `aux_logits: true`.

    Raises:
        KdstepsError: torchvision has no such network or option, it does not take such images, or
            its weights are not available.
    """
    if name in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": True} | options
    size = height_width(image_size or _MADE_FOR)
    network = _create(name, num_classes, _sized(name, size) | options)
    new = _load_published(network, name, num_classes) if pretrained else ()
    fit_channels(network, in_channels)
    if small_stem:
        shrink_stem(network, f"torchvision's {name}")
    chain = CutChain(network, image_shape=(in_channels, *size), prefix_tokens=prefix_tokens)
    chain.published = _published(name, transforms=bool(options.get("transform_input")))
    if new:
        chain.new_weights = new
        chain.notes.append(
            f"models: {name} was trained for other classes; {', '.join(new)} start with new weights"
        )
    return chain


def options_problem(*, name: str, **options: Any) -> str | None:
    """What is wrong with a name or options of torchvision, as far as it is known without data."""
    from torchvision import models

    for own in set(signature(build).parameters) & set(options):
        del options[own]
    create = partial(models.get_model, name, weights=None)
    return _name_problem(name) or unknown_option(create, options)


def _name_problem(name: str) -> str | None:
    from torchvision import models

    names = models.list_models(module=models)
    return None if name in names else unknown_name(name, "torchvision", names)


def _sized(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """The option that tells networks the size of the images, for those that must know."""
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])  # vit_b_16 has patches of 16 pixels
        side = -(-max(size) // patch) * patch
        if size != (side, side):
            raise KdstepsError(
                f"models: torchvision's {name} takes square images of a multiple of {patch} "
                f"pixels, not {as_text(size)}; set `image_size: {side}`, and images are resized "
                "(timm's ViTs take other proportions)"
            )
        return {"image_size": side}
    return {"input_size": size} if name.startswith("maxvit") else {}


def _create(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if problem := _name_problem(name):
        raise KdstepsError(f"models: {problem}")
    try:
        network: nn.Module = models.get_model(
            name, weights=None, num_classes=num_classes, **options
        )
        return network
    # third-party constructors may raise anything
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KdstepsError(
            f"models: torchvision's {name} cannot be built ({reason}); see its options, and "
            "image_size if it does not take images of this size"
        ) from error


def _load_published(network: nn.Module, name: str, num_classes: int) -> tuple[str, ...]:
    """Load torchvision's weights, without a classifier of another width; the names without weights.

    Raises:
        KdstepsError: More than the classifier does not fit, such as positions of another size.
    """
    state = _published_state(name)
    own = network.state_dict()
    fitting = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    missing = tuple(key for key in own if key not in fitting)
    inner = [
        key
        for key in missing
        if key in state
        and (own[key].shape[1:] != state[key].shape[1:] or len(own[key]) != num_classes)
    ]
    if inner:
        raise KdstepsError(
            f"models: the pretrained weights of torchvision's {name} are for another image size "
            f"({', '.join(inner[:3])} differ); set `image_size: {_published_size(name)}`, and "
            "images are resized"
        )
    put_weights(network, fitting)
    return missing


def _published_size(name: str) -> int:
    """Height and width in pixels that torchvision's weights of a ViT or MaxViT are for."""
    side: int = _default_weights(name).meta["min_size"][0]
    return side


def _default_weights(name: str) -> Any:
    """What torchvision knows about the weights that it recommends for a network."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _published_state(name: str) -> dict[str, Tensor]:
    """The published weights, by the names that torchvision gives them as it loads them.

    Those in the files of DenseNet and ViT are older.
    """
    from torchvision.models import get_model

    weights = _default_weights(name)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not cached.exists() and not reachable(weights.url):
        raise KdstepsError(no_weights(f"torchvision's {name}", f"no connection to {weights.url}"))
    with_heads = {"aux_logits": True} if name in _WITH_AUXILIARY_HEADS else {}
    try:
        with torch.random.fork_rng(devices=[]):
            network = get_model(name, weights=weights, progress=False, **with_heads)
    except (OSError, RuntimeError) as error:  # no connection; not the right file
        raise KdstepsError(no_weights(f"torchvision's {name}", error)) from error
    return dict(network.state_dict())


def _published(name: str, *, transforms: bool) -> Published:
    """What torchvision states about its default weights of a network.

    Those of GoogLeNet and Inception are for pixels from -1 to 1, and torchvision lets the networks
    compute these from images that are normalized as for its other networks.

    Args:
        transforms: Whether the network was built to do so.
    """
    weights = _default_weights(name)
    preset = weights.transforms()
    how = known_interpolation(preset.interpolation.value)
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in _WITH_AUXILIARY_HEADS and not transforms:
        mean = std = (0.5, 0.5, 0.5)
    contract = InputContract(mean, std, None, how)
    return Published(contract, len(weights.meta["categories"]))
