"""Weights with positions for images of another size than those that a network is built for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt

from torch import Tensor, nn

from kdsteps.models.chain import Chain, TokenGrid
from kdsteps.models.image_size import as_text, plain_size

_LEARNED = ("pos_embed", "pos_embedding", "position_embedding", "positions.table")
_RELATIVE = ("relative_position", "rel_pos_h", "rel_pos_w")
_RIGHT = "set `image_size` to the size that the weights were trained for, and images are resized"


def other_size(
    chain: Chain, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], wrong: Sequence[str]
) -> str | None:
    """Why weights do not fit a network, if only their positions are for images of another size.

    Args:
        chain: The network.
        weights: From a file, by the names of the network.
        own: The network's state dict.
        wrong: Names of weights that do not fit.

    Returns:
        What follows the name of the file in a sentence, with both sizes; None if something else is
        wrong.
    """
    if not wrong or not all(_is_position(name, weights, own) for name in wrong):
        return None
    for name in wrong:
        if (grid := _grid(chain, own[name])) is not None:
            return _learned(chain.plain(), name, weights[name], own[name], grid)
    name = wrong[0]
    shapes = f"{tuple(weights[name].shape)}, the network's {tuple(own[name].shape)}"
    return (
        f"has positions for images or windows of another size ({name} {shapes}); {_RIGHT}, or use "
        "the network with windows of their size"
    )


def _is_position(name: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether weights of a name are positions that differ in number alone."""
    if name not in weights or name not in own:
        return False
    there, here = weights[name].shape, own[name].shape
    if any(word in name for word in _RELATIVE):
        heads = -1 if len(there) == 2 else 0  # (P, heads) or (heads, H, W)
        is_index = not own[name].is_floating_point()
        return len(there) == len(here) and (is_index or there[heads] == here[heads])
    learned = any(word in name for word in _LEARNED)
    return learned and len(there) == len(here) == 3 and (there[0], there[2]) == (here[0], here[2])


def _grid(chain: Chain, table: Tensor) -> TokenGrid | None:
    """The grid of a table of positions (1, T, D), with as many prefix tokens as it has."""
    if table.ndim != 3:
        return None
    for grid in _grids(chain):
        prefix = table.shape[1] - grid.height * grid.width
        if prefix in (0, grid.prefix):
            return grid._replace(prefix=prefix)
    return None


def _grids(chain: Chain) -> Iterator[TokenGrid]:
    for layer in chain.layers:
        if (grid := chain.token_grid(layer)) is not None:
            yield grid


def _learned(network: nn.Module, name: str, there: Tensor, here: Tensor, grid: TokenGrid) -> str:
    patches, patch = there.shape[1] - grid.prefix, _patch(network)
    side, own = isqrt(max(0, patches)), f"{grid.height} x {grid.width}"
    if not side or side**2 != patches:
        numbers = f"{there.shape[1]} positions ({name}), the network's {here.shape[1]}"
        return f"has {numbers} for {own} patches; {_RIGHT}"
    if patch is None:
        return f"has positions of {side} x {side} patches ({name}), the network's {own}; {_RIGHT}"
    made_for, built_for = (
        plain_size((rows * patch[0], columns * patch[1]))
        for rows, columns in ((side, side), (grid.height, grid.width))
    )
    right = made_for if isinstance(made_for, int) else list(made_for)
    resampled = (
        f"; or `img_size: {right}` and `dynamic_img_size: true`, and positions are resampled"
    )
    return (
        f"is for images of {as_text(made_for)} pixels ({name} has {side} x {side} patches), and "
        f"the network for {as_text(built_for)} ({own}); set `image_size: {right}` for this model, "
        f"and images are resized{resampled * hasattr(network, 'dynamic_img_size')}"
    )


def _patch(network: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch in pixels; None if the network does not begin with patches."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.stride[0], module.stride[1]
            return (height, width) if module.kernel_size == (height, width) else None
    return None
