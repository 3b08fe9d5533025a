"""Small versions of test images in one picture per data set, for a page that loads nothing.

A picture for all images of a data set takes fewer bytes than one for each, and an image that is
shown in several places is stored once.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdsteps.data.hashes import Hashes
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import read_array
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table

SIDE = 112  # pixels of the longer side on the page
_GRID = 8  # a cell has a multiple of this, so that JPEG does not mix neighbors
_LOSSLESS = 48  # images up to this side are stored as they are, if that fits


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of one data set.

    Attributes:
        uri: The picture with all of them, as a data URI.
        width, height: Of one on the page, in CSS pixels.
        sheet: Width and height of the picture on the page.
        places: {row of images.npy: (left, top)} in the picture, in CSS pixels.
        names: {row: where the image came from}.
        pixelated: Whether they are enlarged without smoothing.
    """

    uri: str
    width: int
    height: int
    sheet: tuple[int, int]
    places: dict[int, tuple[int, int]]
    names: dict[int, str]
    pixelated: bool


def thumbnails(
    images: str | Path, index: str | Path, rows: Sequence[int], budget: int
) -> Thumbnails:
    """The thumbnails of some images of a data set.

    Args:
        images, index: images.npy and index.parquet of the stage prepare.
        rows: Of images.npy; at least one. Only these are read.
        budget: Largest size of the picture in bytes, before base64. If needed, the thumbnails
            become coarser and smaller.

    Raises:
        KdstepsError: A file is damaged, or an image differs from what was prepared.
    """
    chosen = np.unique(np.asarray(rows, dtype=np.int64))
    pictures, names, size = _read(Path(images), Path(index), chosen)
    for side, quality in _forms(size):
        shape = _fit(size, side)
        sheet, columns, cell = _sheet(pictures, shape)
        content = _encoded(sheet, quality)
        if len(content) <= budget:
            break
    height, width = shape
    scale = max(1, SIDE // max(shape))
    kind = "png" if quality is None else "jpeg"
    return Thumbnails(
        uri=f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        width=width * scale,
        height=height * scale,
        sheet=(sheet.width * scale, sheet.height * scale),
        places={
            int(row): (place % columns * cell[1] * scale, place // columns * cell[0] * scale)
            for place, row in enumerate(chosen)
        },
        names=dict(zip(chosen.tolist(), names, strict=True)),
        pixelated=scale > 1,
    )


def _read(
    images: Path, index: Path, rows: np.ndarray
) -> tuple[list[Image.Image], list[str], tuple[int, int]]:
    """The images of some rows, shrunk to `SIDE`, where they came from, and the stored size."""
    mapped = read_array(images)
    table = read_table(index, INDEX)
    if mapped.ndim != 4 or mapped.dtype != np.uint8 or len(mapped) != len(table):
        raise KdstepsError(
            f"{images}: has {mapped.dtype} of shape {mapped.shape} for {len(table)} rows of "
            f"{index}; run `kdsteps prepare` again"
        )
    if rows.max() >= len(mapped):
        raise KdstepsError(
            f"{images}: has {len(mapped)} images, and image {rows.max()} was evaluated; run "
            "`kdsteps prepare` again"
        )
    known = table.take(rows)
    hashes, names = np.empty(len(mapped), "S32"), [""] * len(mapped)
    sources = known["source"].to_pylist()
    for row, each, name in zip(rows.tolist(), known["hash"].to_pylist(), sources, strict=True):
        hashes[row], names[row] = each.encode(), name
    prepared = Hashes(str(images), hashes, names)
    size = mapped.shape[2], mapped.shape[3]
    pictures = []
    for row in rows.tolist():  # one at a time: they may be large
        pixels = mapped[row]
        if prepared.damaged(pixels[None], np.array([row])) is not None:
            raise prepared.refuse(row)
        pictures.append(_resized(_picture(pixels), _fit(size, SIDE)))
    return pictures, sources, size


def _forms(size: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """Longest side and JPEG quality to try, the best first; None: lossless."""
    if max(size) <= _LOSSLESS:
        yield SIDE, None
    yield from ((SIDE, 82), (SIDE, 65), (80, 65), (64, 50), (48, 40), (32, 30), (16, 20))


def _fit(size: Sequence[int], side: int) -> tuple[int, int]:
    """Height and width with the longer side at most `side`."""
    factor = min(1.0, side / max(size))
    height, width = (max(1, round(each * factor)) for each in size)
    return height, width


def _sheet(
    pictures: Sequence[Image.Image], shape: tuple[int, int]
) -> tuple[Image.Image, int, tuple[int, int]]:
    """All images in a grid, the number of its columns, and the height and width of a cell."""
    cell = math.ceil(shape[0] / _GRID) * _GRID, math.ceil(shape[1] / _GRID) * _GRID
    count = len(pictures)
    columns = max(1, min(count, round(math.sqrt(count * cell[0] / cell[1]))))
    lines = math.ceil(count / columns)
    sheet = Image.new(pictures[0].mode, (columns * cell[1], lines * cell[0]))
    for place, picture in enumerate(pictures):
        pixels = np.asarray(_resized(picture, shape))
        room = (0, cell[0] - shape[0]), (0, cell[1] - shape[1]), (0, 0)
        filled = np.pad(pixels, room[: pixels.ndim], mode="edge")
        at = place % columns * cell[1], place // columns * cell[0]
        sheet.paste(Image.fromarray(filled), at)
    return sheet, columns, cell


def _resized(picture: Image.Image, shape: tuple[int, int]) -> Image.Image:
    return picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS)


def _picture(image: np.ndarray) -> Image.Image:
    """An image (C, H, W) in color if it has three channels, else the mean of them in gray."""
    if len(image) == 3:
        return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    gray = image[0] if len(image) == 1 else image.mean(axis=0).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(gray))


def _encoded(sheet: Image.Image, quality: int | None) -> bytes:
    content = io.BytesIO()
    if quality is None:
        sheet.save(content, "PNG", optimize=True)
    else:
        sheet.save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()
