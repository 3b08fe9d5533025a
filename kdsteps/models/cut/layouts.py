"""Layouts of a network's outputs, and how its tokens cover the image, read from their shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kdsteps.models.chain import Layout, TokenGrid

_MOST_PREFIX_TOKENS = 16  # that are recognized without being named; DINOv3 has 5

Size = tuple[int, int]


def layouts(
    shapes: Sequence[tuple[int, ...]], image: Size, maps: Collection[tuple[int, ...]]
) -> list[Layout]:
    """The layout of outputs of these shapes (N, ...).

    What has the shape of a map that a convolution made is one, unless its channels, height and
    width are equal. Any other map has the proportions of the image. Where the shape fits both
    orders, as with as many channels as the map is wide, the other maps of the network decide.

    Args:
        shapes: In forward order.
        image: Height and width.
        maps: Shapes (C, H, W) of maps that convolutions made.
    """
    made = {shape for shape in maps if len(set(shape)) > 1}
    decided = ["map" if shape[1:] in made else _layout(shape, image) for shape in shapes]
    usual: Layout = "map_last" if "map_last" in decided else "map"
    return [layout or usual for layout in decided]


def token_grid(tokens: int, seen: Collection[Size], image: Size, prefix: int | None) -> TokenGrid:
    """How a sequence of tokens covers the image.

    Grids are those of the network's own maps, such as that of its patch embedding, or else what
    has the proportions of the image. A sequence without any is one column, without prefix tokens.

    Args:
        tokens: Length of the sequence.
        seen: Sizes of the maps inside the network.
        image: Height and width.
        prefix: Number of class and register tokens where it is known. Layers without them are
            recognized, since a network may add them midway.
    """
    counts = range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1)
    likely = list(counts) if prefix is None else [prefix, *counts]
    for count in likely:
        for height, width in seen:
            if height * width == tokens - count > 0:
                return TokenGrid(count, height, width)
    for count in likely:
        grid = _proportional(tokens - count, image)
        if grid is not None:
            return TokenGrid(count, *grid)
    return TokenGrid(0, tokens, 1)


def _layout(shape: tuple[int, ...], image: Size) -> Layout | None:
    if len(shape) == 4:
        first, last = _fits(shape[2:4], image), _fits(shape[1:3], image)
        if first == last:
            return None
        return "map" if first else "map_last"
    return "tokens" if len(shape) == 3 else "vector"


def _fits(size: Sequence[int], image: Size) -> bool:
    """Whether a size is that of the image divided by one number, rounded up or down."""
    (height, width), (image_height, image_width) = size, image
    if image_height == image_width:
        return height == width
    return abs(height * image_width - width * image_height) < max(image)


def _proportional(tokens: int, image: Size) -> Size | None:
    """Height and width of the grid with so many tokens and the proportions of the image."""
    height, width = image
    for rows in range(1, tokens + 1):
        columns, rest = divmod(tokens, rows)
        if not rest and rows * width == columns * height:
            return rows, columns
    return None
