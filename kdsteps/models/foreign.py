"""Networks from the user's code: any factory of an `nn.Module`, cut by tracing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Chain
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.cut.running import run
from kdsteps.models.evaluating import evaluating
from kdsteps.models.image_size import height_width, plain_size
from kdsteps.models.input_type import zeros_for
from kdsteps.study.part_checks import CUTTING
from kdsteps.study.part_options import signature_of


def build_foreign(
    factory: Callable[..., Any], name: str, given: Mapping[str, Any], options: Mapping[str, Any]
) -> Chain:
    """The network that a factory returns, as a chain.

    Args:
        factory: A function or class; a `Chain` that it returns is used as it is.
        name: As params.yaml has it, for messages.
        given: `num_classes`, `in_channels` and `image_size`, passed as far as the signature names
            them; the size as one number for square images, else as (height, width).
        options: From params.yaml: the factory's own, and those of `CutChain` (`output`,
            `prefix_tokens`) that are not among the factory's.

    Raises:
        KdstepsError: The factory fails, returns no network, or one that does not take such images
            or has another number of classes.
    """
    taken = signature_of("models", factory).parameters
    size = None if given["image_size"] is None else plain_size(given["image_size"])
    given = {**given, "image_size": size}
    cutting = {key: options[key] for key in CUTTING if key in options and key not in taken}
    own = {key: value for key, value in options.items() if key not in cutting}
    try:
        network = factory(**{key: given[key] for key in given if key in taken}, **own)
    except KdstepsError:
        raise
    except Exception as error:  # it is the user's code: anything can happen
        reason = str(error).strip().partition("\n")[0]
        raise KdstepsError(
            f"models: {name} cannot be built ({type(error).__name__}: {reason})"
        ) from error
    if isinstance(network, Chain):
        if cutting:
            raise KdstepsError(
                f"models: {name} returns a chain, which is not cut; leave out {', '.join(cutting)}"
            )
        return network
    if not isinstance(network, nn.Module):
        raise KdstepsError(
            f"models: {name} returns a value of type {type(network).__name__}; it should return an "
            "nn.Module"
        )
    if next(network.parameters(), None) is None:
        raise KdstepsError(
            f"models: {name} has no parameters, as networks have after torch.jit.freeze or "
            "quantization; it should be the network before that"
        )
    if size is None:
        raise KdstepsError(f"models: {name} can only be cut for a known image_size; set one")
    shape = (given["in_channels"], *height_width(size))
    _complete(network, shape)
    chain = CutChain(network, image_shape=shape, **cutting)
    if given["num_classes"] is not None:
        _check_logits(chain, name, shape, given["num_classes"])
    return chain


def _complete(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Give lazy layers, such as `nn.LazyLinear`, their weights, by a run on images."""
    lazy = [each for each in (*network.parameters(), *network.buffers()) if is_lazy(each)]
    if lazy:
        with evaluating(network):
            run(network, torch.zeros(2, *shape, device=lazy[0].device))


def _check_logits(chain: Chain, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    with evaluating(chain):
        logits = chain(zeros_for(chain, 2, *shape))
    if tuple(logits.shape) != (2, num_classes):
        raise KdstepsError(
            f"models: {name} returns {tuple(logits.shape)} for 2 images; the study has "
            f"{num_classes} classes, so it should be (2, {num_classes}); its argument "
            "num_classes, if it has one, is that number"
        )
