"""What a network returns and what it needs, from a few runs on noise before anything is cut."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from kdsteps.errors import KdstepsError
from kdsteps.models.cut.outputs import OutputRule
from kdsteps.models.cut.running import run
from kdsteps.models.cut.tracing import ImageShape, noise
from kdsteps.models.evaluating import evaluating
from kdsteps.models.memory_format import has_convolutions, set_format

_ROUNDING = 1e-3  # difference of logits that is rounding, of the largest one


class Behavior(NamedTuple):
    """What a network does with its images.

    Attributes:
        writes: Whether it writes into them.
        needs_contiguous: Whether it fails, or computes something else, with the channels last.
    """

    writes: bool
    needs_contiguous: bool


def check_logits(network: nn.Module, rule: OutputRule, image_shape: ImageShape) -> Behavior:
    """Run a network in both modes and look for its logits, which many return differently.

    Training mode runs on copies of the buffers; a network that cannot run in it (images too small
    for its auxiliary heads, say) fails only once it is trained. Two outputs are averaged in
    training mode only, by a network that returns one tensor in eval mode.

    Raises:
        KdstepsError: It takes more than images, does not run on such images, its logits cannot be
            identified, those of an image depend on the other images or have another shape without
            them, or a copy of it computes something else.
    """
    _check_arguments(network)
    images = noise(network, image_shape, 2)
    evaluated = replace(rule, averages=False)
    with evaluating(network), torch.random.fork_rng(devices=[]):
        logits = evaluated.logits(run(network, images))
        if logits.ndim != 2:
            raise KdstepsError(
                f"models: {rule.network} returns the shape {tuple(logits.shape)} for 2 images; "
                "it should return logits (N, K), not feature maps"
            )
        twin = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()})
        _check_alone(network, evaluated, logits[0], image_shape)
        _check_single(network, twin, evaluated, logits, image_shape)
        ordered = _needs_order(network, image_shape, evaluated, logits)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            returned = twin.train()(images)
        except Exception:  # see above
            return Behavior(images._version > 0, ordered)
        rule.logits(returned)
        return Behavior(images._version > 0, ordered or _needs_order(twin, image_shape))


def _check_arguments(network: nn.Module) -> None:
    """Refuse a network that has to be called with more than images."""
    try:
        taken = list(inspect.signature(network.forward).parameters.values())
    except ValueError:  # compiled by TorchScript
        return
    for other in taken[1:]:
        if other.default is other.empty and other.kind not in (
            other.VAR_POSITIONAL,
            other.VAR_KEYWORD,
        ):
            raise KdstepsError(
                f"models: {type(network).__name__} is called with images alone, and its forward "
                f"needs {other.name!r} too; give it a default"
            )


def _check_single(
    network: nn.Module, twin: nn.Module, rule: OutputRule, logits: Tensor, image_shape: ImageShape
) -> None:
    """Refuse a network that returns another shape for one image, or is not the same once copied.

    Args:
        twin: A copy of it, made after it ran on two images.
        logits: (2, K) of these.
    """
    alone = rule.logits(run(network, noise(network, image_shape, 1)))
    if alone.shape != logits[:1].shape:
        raise KdstepsError(
            f"models: {rule.network} returns the shape {tuple(alone.shape)} for one image; it "
            f"should be {tuple(logits[:1].shape)}, as with `.flatten(1)` in place of `.squeeze()`"
        )
    try:
        copied = rule.logits(twin(noise(network, image_shape, 1)))
        same = copied.shape == alone.shape and not (_has_values(alone) and _differ(copied, alone))
    except RuntimeError:
        same = False
    if not same:
        raise KdstepsError(
            f"models: {rule.network} does not compute the same once it is copied, as kdsteps does "
            "with networks: a hook or function that it keeps refers to the original by its name; "
            "let it use its arguments instead"
        )


def _needs_order(
    network: nn.Module,
    image_shape: ImageShape,
    rule: OutputRule | None = None,
    logits: Tensor | None = None,
) -> bool:
    """Whether a network fails, or computes something else, with the channels last.

    Args:
        network: In any mode.
        rule: Where its logits are.
        logits: (2, K) of two images of noise; None: they are not compared.
    """
    if not has_convolutions(network):
        return False
    images = noise(network, image_shape, 2)
    set_format(network, torch.channels_last)
    try:
        found = network(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # as `x.view(len(x), -1)` raises it
        return True
    finally:
        set_format(network, torch.contiguous_format)
    if rule is None or logits is None or not _has_values(images):
        return False
    return _differ(rule.logits(found), logits)


def _check_alone(
    network: nn.Module, rule: OutputRule, logits: Tensor, image_shape: ImageShape
) -> None:
    """Refuse a network whose logits of an image in eval mode depend on more than the image.

    Then no accuracy would be its own: in another pass, or in batches of another size, it would be
    another one.

    Args:
        logits: (K,) of the first of two images of noise, beside the second one.
    """
    images = noise(network, image_shape, 2)
    if not _has_values(images):
        return

    def differ(given: Tensor) -> bool:
        return _differ(rule.logits(network(given))[0], logits)

    if not differ(torch.cat([images[:1], torch.zeros_like(images[1:])])):
        return
    if differ(images):
        raise KdstepsError(
            f"models: {rule.network} returns other logits for the same images in another pass, as "
            "with dropout that stays on in eval mode; let it depend on the network's mode "
            "(`training=self.training`)"
        )
    raise KdstepsError(
        f"models: {rule.network} returns other logits for an image if another image is beside it, "
        "as with batch normalization that uses the batch's statistics in eval mode; let it use "
        "running ones (`track_running_stats=True`)"
    )


def _has_values(images: Tensor) -> bool:
    return not images.is_meta and not isinstance(images, FakeTensor)


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether values differ by more than rounding."""
    return bool((found - expected).abs().max() > _ROUNDING * expected.abs().max())
