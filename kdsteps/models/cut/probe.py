"""Run a network once to learn about its possible cuts: shapes, and which outputs last."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from kdsteps.errors import KdstepsError
from kdsteps.models.cut.layers import Spot
from kdsteps.models.cut.outputs import OutputRule
from kdsteps.models.cut.pieces import SizeReader, Sizes
from kdsteps.models.cut.taps import tapped
from kdsteps.models.cut.tracing import PROBE_BATCHES, ImageShape, Traced, main_output, noise
from kdsteps.models.evaluating import evaluating
from kdsteps.models.image_size import as_text
from kdsteps.models.memory_format import has_convolutions

_ROUNDING = 1e-3


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
            identified, or those of an image depend on the other images.
    """
    _check_arguments(network)
    images = noise(network, image_shape, 2)
    evaluated = replace(rule, averages=False)
    with evaluating(network), torch.random.fork_rng(devices=[]):
        logits = evaluated.logits(_run(network, images))
        if logits.ndim != 2:
            raise KdstepsError(
                f"models: {rule.network} returns the shape {tuple(logits.shape)} for 2 images; "
                "it should return logits (N, K), not feature maps"
            )
        _check_alone(network, evaluated, logits[0], image_shape)
        _check_single(network, evaluated, logits, image_shape)
        fresh = noise(network, image_shape, 2)
        ordered = has_convolutions(network) and _needs_order(network, evaluated, logits, fresh)
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in network.parameters()}).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            returned = twin(images)
        except Exception:  # see above
            return Behavior(images._version > 0, ordered)
    rule.logits(returned)
    return Behavior(images._version > 0, ordered)


def _check_arguments(network: nn.Module) -> None:
    """Refuse a network that has to be called with more than images."""
    for other in list(inspect.signature(network.forward).parameters.values())[1:]:
        if other.default is other.empty and other.kind not in (
            other.VAR_POSITIONAL,
            other.VAR_KEYWORD,
        ):
            raise KdstepsError(
                f"models: {type(network).__name__} is called with images alone, and its forward "
                f"needs {other.name!r} too; give it a default"
            )


def _check_single(
    network: nn.Module, rule: OutputRule, logits: Tensor, image_shape: ImageShape
) -> None:
    """Refuse a network that returns another shape for one image than for each of several."""
    alone = rule.logits(_run(network, noise(network, image_shape, 1)))
    if alone.shape != logits[:1].shape:
        raise KdstepsError(
            f"models: {rule.network} returns the shape {tuple(alone.shape)} for one image; it "
            f"should be {tuple(logits[:1].shape)}, as with `.flatten(1)` in place of `.squeeze()`"
        )


def _needs_order(network: nn.Module, rule: OutputRule, logits: Tensor, images: Tensor) -> bool:
    """Whether a network fails, or computes something else, on images with the channels last."""
    try:
        found = rule.logits(network(images.contiguous(memory_format=torch.channels_last)))
    except RuntimeError:  # as `x.view(len(x), -1)` raises it
        return True
    return _has_values(images) and _differ(found, logits)


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


def visit(
    network: nn.Module, found: Sequence[Spot], image_shape: ImageShape
) -> tuple[list[Spot], list[tuple[int, int]]]:
    """One run of a network on two images of noise.

    Args:
        network: In eval mode.
        found: Its possible cuts.
        image_shape: (C, H, W).

    Returns:
        The spots with the shapes of their outputs, and whether these last; without those whose
        output is no tensor, or has another first dimension than the images. Then the sizes of all
        maps that its convolutions make, the largest first.
    """
    versions: dict[str, int] = {}

    def note_version(spot: Spot, output: object) -> None:
        main = main_output(output)
        if isinstance(main, Tensor) and (main is not output) == spot.is_first:
            versions[spot.path] = main._version

    images = noise(network, image_shape, 2)
    handles = [
        spot.module.register_forward_hook(
            lambda _module, _inputs, output, spot=spot: note_version(spot, output)
        )
        for spot in found
    ]
    try:
        with (
            tapped({spot.path: spot.module for spot in found}, {}) as taken,
            _map_sizes(network) as sizes,
        ):
            _run(network, images)
    finally:
        for handle in handles:
            handle.remove()
    spots = [
        replace(
            spot,
            shape=tuple(taken[spot.path].shape),
            is_lasting=taken[spot.path]._version == versions[spot.path],
        )
        for spot in found
        if spot.path in versions and len(taken[spot.path]) == len(images)
    ]
    return spots, sorted(set(sizes), reverse=True)


def measure_sizes(
    network: nn.Module, traced: Traced, wanted: set[fx.Node], image_shape: ImageShape
) -> Sizes:
    """The values of nodes for each of the probe batches, if they are no tensors.

    A graph of training mode may run here: on a copy, whose statistics then move instead.
    """
    twin = copy.deepcopy(network) if network.training else network
    found = []
    with evaluating(twin), torch.random.fork_rng(devices=[]):
        for batch in PROBE_BATCHES:
            reader = SizeReader(twin, traced, wanted)
            reader.run(noise(twin, image_shape, batch))
            found.append(reader.found)
    return {node: tuple(sizes[node] for sizes in found) for node in found[0]}


def same_in_parts(network: nn.Module, parts: Sequence[nn.Module], image_shape: ImageShape) -> bool:
    """Whether parts in a row compute the same as `network`, on an image of noise.

    On the device `meta`, where there are no values, whether it returns the same shape.
    """
    images = noise(network, image_shape, 1)  # a number of images that no size was measured with
    whole, joined = network(images), nn.Sequential(*parts)(images)
    if whole.is_meta:
        return bool(whole.shape == joined.shape)
    return torch.allclose(whole, joined, rtol=1e-3, atol=1e-4)


def _run(network: nn.Module, images: Tensor) -> Any:
    try:
        return network(images)
    # third-party code may raise anything on unsuitable images
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        size = " x ".join(map(str, images.shape[1:]))
        raise KdstepsError(
            f"models: {type(network).__name__} does not run on images of {size} ({reason}); "
            f"set image_size of the model to {_taken_size(network)}, and images are resized"
        ) from error


def _taken_size(network: nn.Module) -> str:
    """The size that a network of timm was made for; for others, in words."""
    config = getattr(network, "pretrained_cfg", None) or {}
    _, *size = config.get("input_size") or (None,)
    return as_text(size) if size else "a size that it takes"


@contextmanager
def _map_sizes(network: nn.Module) -> Iterator[Collection[tuple[int, int]]]:
    """Heights and widths of the maps that convolutions make while a network runs."""
    sizes: list[tuple[int, int]] = []

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        sizes.append((output.shape[2], output.shape[3]))

    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
