"""What a network is like before any job: layers, cost, and whether weights are for its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.checkpoints import size_problem
from kdsteps.models.cost import activations, multiply_adds, num_parameters
from kdsteps.study import registry
from kdsteps.study.part_imports import shipped
from kdsteps.study.part_options import signature_of

_NUM_CLASSES = 10  # any number: layers do not depend on it


def outline(
    family: str, options: Mapping[str, Any], image_shape: Sequence[int]
) -> dict[str, Any] | None:
    """The layers and the cost of a network: the fields of `kdsteps.study.joints.Outline`.

    It is built on the device `meta`, which takes neither memory nor time for weights: about a
    second for a large network of timm. One whose forward pass depends on values is built on the
    CPU.

    Args:
        family, options: As in the settings of a model.
        image_shape: (C, H, W).

    Returns:
        None if it cannot be built, or is fetched from elsewhere (a name such as `hf-hub:...`).
    """
    chain = _built(family, options, image_shape)
    if chain is None:
        return None
    return {"layers": chain.layers, "stages": chain.stages} | _cost(chain, image_shape)


def weights_problem(
    family: str, options: Mapping[str, Any], image_shape: Sequence[int], weights: Mapping[str, Any]
) -> str | None:
    """Why a network cannot start from the weights in a file, as far as sizes of images decide it.

    Args:
        family, options, image_shape: As for `outline`.
        weights: `path` of the file, and maybe `key` and `prefix` of the weights in it.

    Returns:
        A sentence; None for weights that fit, or do not for another reason, which the job that
        loads them says.
    """
    chain = _built(family, options, image_shape)
    if chain is None:
        return None
    path, key, prefix = (weights.get(name) for name in ("path", "key", "prefix"))
    try:
        return size_problem(chain, str(path), num_classes=_NUM_CLASSES, key=key, prefix=prefix)
    except Exception:  # third-party code, or a file that the job refuses
        return None


def _built(family: str, options: Mapping[str, Any], image_shape: Sequence[int]) -> Chain | None:
    """A network without weights; None if it cannot be built, or is fetched from elsewhere."""
    if ":" in str(options.get("name", "")):
        return None
    for device in (torch.device("meta"), nullcontext()):
        try:
            with device, torch.random.fork_rng(devices=[]):
                return build_model(
                    family,
                    num_classes=_NUM_CLASSES if _takes_num_classes(family) else None,
                    in_channels=image_shape[0],
                    image_size=(image_shape[1], image_shape[2]),
                    **architecture(options),
                )
        except Exception:  # third-party code; the job that builds it says what is wrong
            continue
    return None


def _cost(chain: Chain, image_shape: Sequence[int]) -> dict[str, int]:
    """Parameters, and multiply-adds and activations of one image; nothing if that fails."""
    try:
        images = torch.zeros(1, *image_shape, device=next(chain.parameters()).device)
        return {
            "parameters": num_parameters(chain),
            "multiply_adds": multiply_adds(chain, images),
            "activations": activations(chain, images),
        }
    except Exception:  # third-party code
        return {}


def _takes_num_classes(family: str) -> bool:
    if family in shipped("models"):
        return True
    return "num_classes" in signature_of("models", registry.load("models", family)).parameters
