"""`config.json` next to `model.safetensors`, with which timm loads the exported folder.

`timm.create_model("local-dir:FOLDER", pretrained=True)`; without `pretrained=True`, timm leaves the
weights random and says nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from kdsteps.export.onnx_files import first_line
from kdsteps.export.record import FILES, FormatError, check_space

_OWN = ("name", "pretrained", "small_stem", "output", "prefix_tokens")
"""Options of the family timm that timm's factory does not have."""


def timm_config(
    network: nn.Module,
    weights: Path,
    images: Tensor,
    *,
    options: Mapping[str, Any],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> str:
    """The text of `config.json` for a network of timm.

    It is tried: timm has to load a network from it that returns the same logits.

    Args:
        network: timm's module, in eval mode, on the CPU.
        weights: Its `model.safetensors`.
        images: A few of its inputs, (N, C, H, W), resized and normalized.
        options: Of the family timm, with `name`.
        class_names: Of its outputs.
        mean, std: Of each channel, on the scale 0 to 1.
        interpolation: How images are resized.

    Raises:
        FormatError: timm's arguments do not describe this network.
    """
    if options.get("small_stem"):
        raise FormatError(
            "timm has no argument for the small stem of this network, and would load another one"
        )
    config = _config(network, images, options, class_names, mean, std, interpolation)
    size = list(images.shape[2:])
    reasons = []
    for sized in ({"img_size": size}, {}):  # the first for networks that must know the size
        text = json.dumps(config | {"model_args": sized | config["model_args"]}, indent=2) + "\n"
        try:
            with TemporaryDirectory() as folder:
                put_folder(folder, weights, text)
                _check_reload(load_timm(folder), network, images)
        except Exception as error:  # a network of timm refuses options in its own way
            check_space(error)
            reasons.append(first_line(error))
        else:
            return text
    raise FormatError(f"timm does not load this network from its arguments ({reasons[-1]})")


def put_folder(folder: str | Path, weights: Path, config: str) -> None:
    """Write the two files that timm reads into a folder."""
    shutil.copyfile(weights, Path(folder, FILES["safetensors"]))
    Path(folder, FILES["timm"]).write_text(config)


def load_timm(folder: str | Path) -> nn.Module:
    """The network in a folder, in eval mode."""
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()


def _config(
    network: nn.Module,
    images: Tensor,
    options: Mapping[str, Any],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> dict[str, Any]:
    published: Any = network.pretrained_cfg
    channels = images.shape[1]
    own = {key: value for key, value in options.items() if key not in _OWN}
    return {
        "architecture": published["architecture"],
        "num_classes": len(class_names),
        "num_features": network.num_features,
        "label_names": list(class_names),
        "model_args": {"in_chans": channels, **own},
        "pretrained_cfg": {
            "num_classes": len(class_names),
            "input_size": list(images.shape[1:]),
            "fixed_input_size": bool(published.get("fixed_input_size", False)),
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "first_conv": published.get("first_conv"),
            "classifier": published.get("classifier"),
            "pool_size": None,
            "custom_load": False,
        },
    }


def _check_reload(loaded: nn.Module, network: nn.Module, images: Tensor) -> None:
    """Raise ValueError if a loaded network returns other logits, or expects other pixels."""
    with torch.inference_mode():
        if not torch.equal(loaded(images), network(images)):
            raise ValueError("the loaded network returns other logits")
