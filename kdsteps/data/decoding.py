"""Image files as pixels: any kind that Pillow reads becomes grey or colour, of the size asked for.

What is made of what: 16 bits become 8; transparent parts become white; palettes, CMYK and the rest
become grey or RGB; a photo that its camera marked as turned is turned back; of an animation the
first picture counts. What cannot be read is reported, never guessed.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from kdsteps.data.source import Broken, Picture, as_uint8

Content = bytes | Path | Callable[[], Image.Image] | None
"""An image before decoding: a file's bytes or path, or what opens it; None where it is missing."""

_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = 1
# what Pillow raises for files that are cut off, damaged, or no images
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Form:
    """What every image of a dataset is made into.

    Attributes:
        channels: 1 for grey, 3 for colour.
        resize: Pixels of the shorter side afterwards; None: as it is.
        crop: Height and width of the middle that is kept, after resizing; None: all of it.
    """

    channels: Literal[1, 3]
    resize: int | None = None
    crop: int | None = None


class EncodedImages:
    """Images that are decoded when asked for, in order, on several threads."""

    def __init__(self, contents: Callable[[], Iterable[Content]], count: int, form: Form) -> None:
        """Args:
        contents: Gives the images before decoding, from the first one at each call.
        count: How many there are.
        form: What each is made into.
        """
        self._contents, self._count, self._form = contents, count, form

    def __len__(self) -> int:
        return self._count

    def pictures(self, threads: int) -> Iterator[Picture | Broken]:
        """Every image in order; a few for each thread are under way at a time."""
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Picture | Broken]] = deque()
            for content in self._contents():
                waiting.append(pool.submit(decode, content, self._form))
                if len(waiting) >= 16 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def decode(content: Content, form: Form) -> Picture | Broken:
    """One image as `form` wants it, or why that cannot be."""
    if content is None:
        return Broken("has no image")
    try:
        with _opened(content) as image:
            mode, (width, height) = image.mode, image.size
            if form.resize is not None:  # a JPEG decodes faster at half its size or less
                image.draft(None, (2 * form.resize, 2 * form.resize))
            upright = _turned(image)
            turned = image.getexif().get(_ORIENTATION, _UPRIGHT) > 4  # by a quarter
            size = (width, height) if turned else (height, width)
            pixels = np.asarray(_shaped(_plain(upright, form.channels), size, form))
    except _DAMAGE as error:
        return Broken(_reason(error))
    pixels = pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)
    return Picture(np.ascontiguousarray(pixels), size, mode)


def all_grey(contents: Iterable[Content]) -> bool:
    """Whether every image that can be opened is grey; only the heads of files are read."""
    for content in contents:
        try:
            if content is None:
                continue
            with _opened(content) as image:
                if image.mode not in _GREY:
                    return False
        except _DAMAGE:
            continue  # it is reported when it is decoded
    return True


def form_of(
    contents: Callable[[], Iterable[Content]],
    channels: Literal[1, 3] | None,
    resize: int | None,
    crop: int | None,
) -> Form:
    """The form that a dataset's options ask for; None channels: grey if every image is."""
    if channels is None:
        channels = 1 if all_grey(contents()) else 3
    return Form(channels, resize, crop)


def _opened(content: bytes | Path | Callable[[], Image.Image]) -> Image.Image:
    if callable(content):
        return content()
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)


def _turned(image: Image.Image) -> Image.Image:
    """The image the way up that its EXIF entry says, if it has one."""
    if image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT:
        return image
    return ImageOps.exif_transpose(image)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """8 bits, without transparency, grey or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _plain(Image.fromarray(_eight_bits(np.asarray(image))), channels)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        image = Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey pixels of 16 bits, or floats from 0 to 1, as uint8."""
    if np.issubdtype(grey.dtype, np.floating):
        return as_uint8(grey)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"has values from {grey.min()} to {grey.max()}; 16 bits end at 65535")
    return (grey / 257).round().astype(np.uint8)


def _shaped(image: Image.Image, size: tuple[int, int], form: Form) -> Image.Image:
    """Resized and cropped; `size` is the height and width it had in its file, upright."""
    height, width = size
    if form.resize is not None:
        scale = form.resize / min(height, width)
        height, width = round(height * scale), round(width * scale)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if form.crop is None:
        return image
    if min(height, width) < form.crop:
        raise ValueError(f"is {height} x {width}, too small for crop {form.crop}; give `resize`")
    top, left = (height - form.crop) // 2, (width - form.crop) // 2
    return image.crop((left, top, left + form.crop, top + form.crop))


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is no image of a known kind"
    return " ".join(str(error).split()) or type(error).__name__
