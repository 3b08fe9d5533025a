"""Run a network once to learn about its possible cuts: shapes, and which outputs last."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.cut.layers import Spot
from kdsteps.models.cut.pieces import SizeReader, Sizes
from kdsteps.models.cut.running import reason, run
from kdsteps.models.cut.taps import tapped
from kdsteps.models.cut.tracing import PROBE_BATCHES, ImageShape, Traced, main_output, noise
from kdsteps.models.evaluating import evaluating

_SLOPES = 1e-2  # difference of gradients that is rounding, of the largest one
_OF_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
"""Modules whose output is (N, C, H, W) whatever its sizes."""
_OF_ROWS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)
"""Modules whose output is (N, C, L) where it has three dimensions."""


class Visit(NamedTuple):
    """What one run of a network shows.

    Attributes:
        spots: The possible cuts, with the shapes of their outputs and whether these last; without
            those whose output is no tensor, or has another first dimension than the images.
        unusable: The paths of those whose output is neither a map, nor a sequence of tokens, nor a
            vector, of real numbers.
        maps: Shapes (C, H, W) of all maps that are so by the module that makes them.
        sizes: Heights and widths of all maps that its convolutions make, the largest first.
    """

    spots: list[Spot]
    unusable: list[str]
    maps: set[tuple[int, ...]]
    sizes: list[tuple[int, int]]


def visit(network: nn.Module, found: Sequence[Spot], image_shape: ImageShape) -> Visit:
    """Run a network on two images of noise and note what becomes of its possible cuts.

    Args:
        network: In eval mode.
        found: Its possible cuts.
        image_shape: (C, H, W).
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
            _channels_first(network) as (maps, rows),
        ):
            run(network, images)
    finally:
        for handle in handles:
            handle.remove()
    spots, unusable = [], []
    by_channel = {id(row) for row in rows}
    for spot in found:
        output = taken.get(spot.path)
        if spot.path not in versions or output is None or len(output) != len(images):
            continue
        if not output.is_floating_point() or output.ndim > 4 or id(output) in by_channel:
            unusable.append(spot.path)
            continue
        is_lasting = output._version == versions[spot.path]
        spots.append(replace(spot, shape=tuple(output.shape), is_lasting=is_lasting))
    sizes = {(shape[1], shape[2]) for module, shape in maps if isinstance(module, nn.Conv2d)}
    return Visit(spots, unusable, {shape for _, shape in maps}, sorted(sizes)[::-1])


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
            try:
                reader.run(noise(twin, image_shape, batch))
            except Exception as error:  # as of `fault_of_parts`
                raise KdstepsError(
                    f"models: {type(network).__name__} cannot be cut, because its graph does not "
                    f"run ({reason(error)}); methods that use logits alone can use it"
                ) from error
            found.append(reader.found)
    return {node: tuple(sizes[node] for sizes in found) for node in found[0]}


def fault_of_parts(
    network: nn.Module, parts: Sequence[nn.Module], image_shape: ImageShape
) -> str | None:
    """Why parts in a row are not `network`, by an image of noise; None if they are.

    They have to compute the same logits, and the same gradient of these by the image. On the
    device `meta`, where there are no values, the same shape.
    """
    both = (network, nn.Sequential(*parts))

    def image() -> Tensor:
        return noise(network, image_shape, 1)  # no size was measured with one image

    try:
        with redirect_stderr(StringIO()):  # torch.fx would print a traceback
            slope, other = (_slope(each, image()) for each in both)
            # last, since a network may keep what it computes: nothing that has gradients
            whole, found = (each(image()) for each in both)
    except Exception as error:  # of third-party code: what it keeps between calls, say
        return f"do not run ({reason(error)})"
    if whole.is_meta:
        return None if whole.shape == found.shape else "return another shape than the whole"
    if not torch.allclose(whole, found, rtol=1e-3, atol=1e-4):
        return "compute other logits than the whole"
    if slope is not None and (other is None or not _are_parallel(slope, other)):
        return "have another gradient than the whole"
    return None


def _slope(network: nn.Module, images: Tensor) -> Tensor | None:
    """The gradient of a weighted sum of the logits by the images; None if there cannot be one."""
    if images.is_meta or not images.is_floating_point():
        return None
    try:
        with torch.enable_grad():
            logits = network(images.requires_grad_())
            weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape).to(logits)
            (slope,) = torch.autograd.grad((logits * weights).sum(), images, allow_unused=True)
    except RuntimeError:  # it writes into what the gradient needs, say
        return None
    return torch.zeros_like(images) if slope is None else slope


def _are_parallel(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients are equal up to rounding."""
    return torch.allclose(one, other, rtol=_SLOPES, atol=_SLOPES * float(one.abs().max()))


Maps = list[tuple[nn.Module, tuple[int, ...]]]


@contextmanager
def _channels_first(network: nn.Module) -> Iterator[tuple[Maps, list[Tensor]]]:
    """What has its channels first by the module that makes it, while a network runs.

    Yields:
        Modules and the shapes (C, H, W) of their maps; sequences (N, C, L), among them those that
        an activation or dropout makes of one.
    """
    maps: Maps = []
    rows: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, _OF_MAPS):
            maps.append((module, tuple(output.shape[1:])))
        elif isinstance(module, _OF_ROWS):
            rows.extend([output] if output.ndim == 3 else [])
        elif inputs and any(inputs[0] is row for row in rows):
            rows.append(output)

    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, _OF_MAPS + _OF_ROWS) or _is_elementwise(module)
    ]
    try:
        yield maps, rows
    finally:
        for handle in handles:
            handle.remove()


def _is_elementwise(module: nn.Module) -> bool:
    """Whether it is an activation other than attention, or dropout."""
    kinds = ("torch.nn.modules.activation", "torch.nn.modules.dropout")
    return type(module).__module__ in kinds and not isinstance(module, nn.MultiheadAttention)
