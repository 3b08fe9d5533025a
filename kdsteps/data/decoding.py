"""Image files as pixels: common formats become gray or color, of the requested size.

16 bits become 8; transparent pixels become white; palettes, CMYK and other modes become gray or
RGB; photos are rotated according to their EXIF orientation; of an animation, the first frame is
used. What cannot be read is reported, never guessed. Damaged metadata does not prevent reading.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdsteps.data.form import Form
from kdsteps.data.resizing import Resizing, resized_by_torch
from kdsteps.data.source import Broken, Picture, as_uint8

Content = bytes | Path | Callable[[], Image.Image] | None
"""An image before decoding: a file's bytes or path, or what opens it; None where it is missing."""

MAX_PIXELS = 100_000_000  # of one image; decoding a larger one takes about 1 GB
SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)  # fmt: skip  (of files with images, in lower case)
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
GRAY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's warnings of damaged metadata name no file; whatever costs pixels becomes `Broken`.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(content: Content, form: Form, resizing: Resizing = resized_by_torch) -> Picture | Broken:
    """One image as `form` describes it, or the reason why it cannot be read."""
    if content is None:
        return Broken("has no image")
    try:
        with _open(content) as image:
            return _picture(image, form, resizing)
    except Exception as error:  # decoders raise anything on damaged files
        return Broken(_reason(error))


def all_gray(contents: Iterable[Content]) -> bool:
    """Whether every image that can be opened is gray; only the headers of files are read."""
    for content in contents:
        if content is None:
            continue
        try:
            with _open(content) as image:
                if image.mode not in GRAY_MODES:
                    return False
        except Exception:  # it is reported when it is decoded
            continue
    return True


def _open(content: bytes | Path | Callable[[], Image.Image]) -> Image.Image:
    if callable(content):
        return content()
    if isinstance(content, Path) and not stat.S_ISREG(content.stat().st_mode):
        raise ValueError("is not a regular file")  # opening a named pipe would wait forever
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    return Image.open(
        io.BytesIO(content) if isinstance(content, bytes) else content, formats=formats
    )


def _picture(image: Image.Image, form: Form, resizing: Resizing) -> Picture:
    mode, (width, height) = image.mode, image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"is {height} x {width}; images of over {MAX_PIXELS:,} pixels are refused")
    if (side := form.decoded_side(height, width)) is not None:
        image.draft(None, (side, side))  # a JPEG decodes faster at half its size or less
    reduced = image.size != (width, height)
    image.load()
    orientation = _orientation(image)
    upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    if not reduced:
        width, height = upright.size  # a TIFF is rotated as it is loaded
    elif orientation > 4:  # rotated by a quarter
        width, height = height, width
    pixels = np.array(_plain(upright, form.channels))  # a copy: torch needs to be able to write it
    pixels = pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)
    pixels = _shaped(pixels, (height, width), form, resizing)
    return Picture(np.ascontiguousarray(pixels), (height, width), mode)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; upright if it cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """8 bits, without transparency, gray or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        gray = _eight_bits(pixels)
        if (transparent := image.info.get("transparency")) is not None:
            gray[pixels == transparent] = 255
        return _plain(Image.fromarray(gray), channels)
    if image.has_transparency_data:
        color = image.convert("RGBA")
        white = Image.new("RGBA", color.size, "white")
        image = Image.alpha_composite(white, color).convert("RGB")
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow cannot convert it to gray
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _eight_bits(gray: np.ndarray) -> np.ndarray:
    """Gray pixels of 16 bits, or floats from 0 to 1, as uint8."""
    if np.issubdtype(gray.dtype, np.floating):
        return as_uint8(gray)
    if gray.min() < 0 or gray.max() > 65535:
        raise ValueError(
            f"has values from {gray.min()} to {gray.max()}; 16 bits go from 0 to 65535"
        )
    return (gray / 257).round().astype(np.uint8)


def _shaped(
    pixels: np.ndarray, size: tuple[int, int], form: Form, resizing: Resizing
) -> np.ndarray:
    """Pixels (C, H, W), resized and cropped.

    Args:
        size: Height and width of the image in its file, upright.
    """
    height, width = form.resized(*size)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"is {size[0]} x {size[1]} and would be resized to {height} x {width}; images of over "
            f"{MAX_PIXELS:,} pixels are refused"
        )
    if form.cropped is None:
        return resizing(pixels, height, width)
    crop_height, crop_width = form.cropped
    if height < crop_height or width < crop_width:
        raise ValueError(
            f"is {height} x {width}, too small for crop {crop_height} x {crop_width}; set "
            "`store`, which also resizes"
        )
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    pixels = resizing(pixels, height, width)
    return pixels[:, top : top + crop_height, left : left + crop_width]


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)"
    if isinstance(error, MemoryError):
        return "needs more memory than available"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a known format"
    return " ".join(str(error).split())[:200] or type(error).__name__
