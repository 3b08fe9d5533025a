"""The layers of a chain as the table that `kdsteps layers` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from kdsteps.models.chain import HEAD, Chain, Layout
from kdsteps.models.cost import multiply_adds
from kdsteps.models.evaluating import evaluating
from kdsteps.models.input_type import zeros_for


class LayerRow(NamedTuple):
    """One block of a network and the layer after it.

    Attributes:
        layer: Its name; the last is `head`, whose output is the logits.
        shape: Of the output for one image, without the images' dimension.
        layout: Order of the output's dimensions.
        parameters: Of the block, without those of earlier blocks.
        multiply_adds: Of the block for one image.
        is_stage: Whether it is a default cut.
    """

    layer: str
    shape: tuple[int, ...]
    layout: Layout
    parameters: int
    multiply_adds: int
    is_stage: bool


def list_layers(chain: Chain, image_shape: tuple[int, int, int]) -> list[LayerRow]:
    """A row for each layer in forward order and one for `head`.

    Args:
        chain: Any network; left unchanged.
        image_shape: (C, H, W).
    """
    features = zeros_for(chain, 1, *image_shape)
    rows: list[LayerRow] = []
    met: set[nn.Parameter] = set()
    start: str | None = None
    with evaluating(chain):
        for name in (*chain.layers, HEAD):
            block = chain.span(start, name)
            new = set(block.parameters()) - met
            cost = multiply_adds(block, features)
            features = block(features)
            rows.append(
                LayerRow(
                    layer=name,
                    shape=tuple(features.shape[1:]),
                    layout="vector" if name == HEAD else chain.layout(name),
                    parameters=sum(parameter.numel() for parameter in new),
                    multiply_adds=cost,
                    is_stage=name in chain.stages,
                )
            )
            met |= new
            start = name
    return rows


def render_layers(rows: Sequence[LayerRow], notes: Sequence[str] = ()) -> str:
    """The rows as text, with a sum and the stages marked.

    Args:
        rows: Of one network.
        notes: Sentences to end with, such as a chain's notes.
    """
    table = [("layer", "shape", "layout", "parameters", "MACs", "stage")]
    table += [
        (
            row.layer,
            " x ".join(map(str, row.shape)),
            row.layout,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            "*" if row.is_stage else "",
        )
        for row in rows
    ]
    parameters = sum(row.parameters for row in rows)
    products = sum(row.multiply_adds for row in rows)
    table.append(("sum", "", "", f"{parameters:,}", f"{products:,}", ""))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [_line(line, widths) for line in table]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.insert(-1, lines[1])
    lines += ["* a stage: where the network is cut unless params.yaml names other layers"]
    return "\n".join([*lines, *notes])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line: words aligned left, numbers right."""
    numbers = (3, 4)
    placed = [
        cell.rjust(width) if index in numbers else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(placed).rstrip()
