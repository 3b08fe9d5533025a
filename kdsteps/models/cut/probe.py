"""What one run of a network says of the places where it can be cut: shapes, and what is lasting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import Layout
from kdsteps.models.cut.layers import Spot
from kdsteps.models.cut.pieces import PROBE_BATCHES, SizeReader, Sizes
from kdsteps.models.cut.taps import tapped
from kdsteps.models.cut.tracing import Traced, main_output
from kdsteps.models.evaluating import evaluating

ImageShape = tuple[int, int, int]


def visit(network: nn.Module, found: Sequence[Spot], image_shape: ImageShape) -> list[Spot]:
    """The spots with the shapes of their outputs for two images, and whether these last.

    Left out are those whose output is no tensor, or has another first dimension than the images.

    Raises:
        KdstepsError: The network does not run on such images.
    """
    versions: dict[str, int] = {}

    def note_version(spot: Spot, output: object) -> None:
        main = main_output(output)
        if isinstance(main, Tensor) and (main is not output) == spot.is_first:
            versions[spot.path] = main._version

    images = _noise(network, image_shape, 2)
    handles = [
        spot.module.register_forward_hook(
            lambda _module, _inputs, output, spot=spot: note_version(spot, output)
        )
        for spot in found
    ]
    try:
        with tapped({spot.path: spot.module for spot in found}, {}) as taken:
            network(images)
    # what a foreign forward makes of images that do not suit it cannot be foreseen
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KdstepsError(
            f"models: {type(network).__name__} does not run on images of "
            f"{' x '.join(map(str, image_shape))} ({reason}); choose another image size or network"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [
        replace(
            spot,
            shape=tuple(taken[spot.path].shape),
            is_lasting=taken[spot.path]._version == versions[spot.path],
        )
        for spot in found
        if spot.path in versions and len(taken[spot.path]) == len(images)
    ]


def measure_sizes(
    network: nn.Module, traced: Traced, wanted: set[fx.Node], image_shape: ImageShape
) -> Sizes:
    """What the nodes give for each of the probe batches, if it is no tensor.

    A graph of training mode may run here: on a copy, whose statistics then move instead.
    """
    twin = copy.deepcopy(network) if network.training else network
    found = []
    with evaluating(twin), torch.random.fork_rng(devices=[]):
        for batch in PROBE_BATCHES:
            reader = SizeReader(twin, traced, wanted)
            reader.run(_noise(twin, image_shape, batch))
            found.append(reader.found)
    return {node: tuple(sizes[node] for sizes in found) for node in found[0]}


def layouts(shapes: Sequence[tuple[int, ...]]) -> list[Layout]:
    """How outputs of these shapes lie, images being square.

    Where the channels are as many as the map is wide, the shape leaves it open, and the other maps
    of the network decide.
    """
    decided = [_layout(shape) for shape in shapes]
    usual: Layout = "map_last" if "map_last" in decided else "map"
    return [layout or usual for layout in decided]


def same_by_parts(
    network: nn.Module, front: nn.Module, tail: nn.Module, image_shape: ImageShape
) -> bool:
    """Whether `tail` after `front` gives what `network` gives, on images of noise."""
    noise = _noise(network, image_shape, 1)  # a number of images that no size was measured with
    whole, parts = network(noise), tail(front(noise))
    return torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


def _layout(shape: tuple[int, ...]) -> Layout | None:
    if len(shape) == 4:
        if shape[1] == shape[2] != shape[3]:
            return "map_last"
        return "map" if shape[2] == shape[3] != shape[1] else None
    return "tokens" if len(shape) == 3 else "vector"


def _noise(network: nn.Module, image_shape: ImageShape, batch: int) -> Tensor:
    """Images that differ from each other; nothing here may hang on their content."""
    weight = next(network.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, *image_shape, generator=generator).to(weight.device, weight.dtype)
