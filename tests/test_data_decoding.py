"""Every kind of image file becomes the pixels one expects, or a reason why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from _pictures import as_bytes, color
from PIL import Image

from kdsteps.data.decoding import all_gray, decode
from kdsteps.data.encoded import EncodedImages
from kdsteps.data.form import Form
from kdsteps.data.source import Broken, Picture

RGB, GRAY = Form(channels=3), Form(channels=1)


def pixels(content, form: Form = RGB) -> np.ndarray:
    picture = decode(content, form)
    assert isinstance(picture, Picture), picture
    return picture.pixels


def reason(content, form: Form = RGB) -> str:
    picture = decode(content, form)
    assert isinstance(picture, Broken)
    return picture.reason


def gray(values) -> Image.Image:
    return Image.fromarray(np.asarray(values))


def test_rgb_keeps_its_values_channels_first():
    image = color(1, 5, 4)
    found = pixels(as_bytes(image))
    assert found.shape == (3, 5, 4)
    assert np.array_equal(found, np.asarray(image).transpose(2, 0, 1))


def test_a_file_is_read_by_its_path(tmp_path):
    color(1).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(as_bytes(color(1))))


def test_gray_becomes_three_equal_channels_where_color_is_asked_for():
    found = pixels(as_bytes(gray(np.arange(12, dtype=np.uint8).reshape(3, 4))))
    assert found.shape == (3, 3, 4)
    assert (found == np.arange(12).reshape(3, 4)).all()


def test_color_becomes_gray_by_its_luma():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert pixels(as_bytes(red), GRAY).tolist() == [[[60, 60], [60, 60]]]  # 0.299 x 200


def test_transparent_parts_become_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert pixels(as_bytes(image))[:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]


def test_a_transparent_palette_color_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    found = pixels(as_bytes(image, transparency=1))
    assert found[:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]


def test_a_palette_gives_its_colors():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(as_bytes(image))[:, 0].tolist() == [[10, 40], [20, 50], [30, 60]]


def test_16_bits_become_8():
    found = pixels(as_bytes(gray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))), GRAY)
    assert found.tolist() == [[[0, 1, 128, 255]]]


def test_a_transparent_gray_of_16_bits_becomes_white():
    image = gray(np.array([[0, 500, 501]], dtype=np.uint16))
    assert pixels(as_bytes(image, transparency=500), GRAY).tolist() == [[[0, 255, 2]]]


def test_lab_colors_become_gray_as_well():
    image = as_bytes(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF")
    assert pixels(image, GRAY).tolist() == [[[255]]]


def test_floats_from_0_to_1_are_spread():
    found = pixels(as_bytes(gray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), "TIFF"), GRAY)
    assert found.tolist() == [[[0, 51, 255]]]


def test_black_and_white_are_0_and_255():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(as_bytes(image), GRAY).tolist() == [[[0, 255]]]


def test_cmyk_becomes_rgb():
    found = pixels(as_bytes(Image.new("CMYK", (8, 8)), "JPEG"))
    assert found.shape == (3, 8, 8)
    assert found.min() > 250  # no ink


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_that_was_turned_is_turned_back(orientation):
    upright = Image.new("L", (6, 4), 0)
    upright.paste(255, (0, 0, 3, 2))  # the upper left corner
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation])
    picture = decode(as_bytes(stored, exif=exif.tobytes()), GRAY)
    assert isinstance(picture, Picture)
    assert picture.size == (4, 6)
    assert np.array_equal(picture.pixels[0], np.asarray(upright))


def test_the_first_picture_of_an_animation_counts():
    frames = [Image.new("L", (4, 4), value) for value in (7, 200)]
    content = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(content, GRAY) == 7).all()


def test_resize_sets_the_shorter_side_and_crop_takes_the_center():
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 200
    form = Form(channels=1, resize=20, crop=20)
    found = pixels(as_bytes(gray(wide)), form)
    assert found.shape == (1, 20, 20)
    assert (found[0, :, 1:-1] == 200).all()  # its borders are blurred by resizing


def test_resize_without_crop_keeps_the_shape():
    assert pixels(as_bytes(color(1, 10, 30)), Form(3, resize=5)).shape == (3, 5, 15)


@pytest.mark.parametrize(("height", "width"), [(400, 600), (603, 401)])
def test_a_large_jpeg_is_resized_to_the_size_asked_for(height, width):
    found = pixels(as_bytes(color(1, height, width), "JPEG"), Form(3, resize=32, crop=32))
    assert found.shape == (3, 32, 32)


def test_a_resized_jpeg_looks_as_one_that_was_decoded_whole():
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    content = as_bytes(gray(np.tile(ramp, (480, 1))), "JPEG", quality=95)
    found = pixels(content, Form(1, resize=48))[0].astype(int)
    expected = np.asarray(gray(np.tile(ramp, (480, 1))).resize((64, 48))).astype(int)
    assert abs(found - expected).max() <= 4


def noise(seed: int) -> tuple[Image.Image, Form]:
    """Color or gray noise and a size to store it at, smaller or larger."""
    height, width, *size = np.random.default_rng(seed).integers(2, 300, 4).tolist()
    image = color(seed, height, width)
    return (image, Form(3, resize=size)) if seed % 2 else (image.convert("L"), Form(1, resize=size))


def test_resized_pixels_differ_from_those_of_pillow_by_one_at_most():
    for seed in range(40):
        image, form = noise(seed)
        height, width = form.resized(image.height, image.width)
        expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        found = pixels(as_bytes(image), form).transpose(1, 2, 0).reshape(expected.shape)
        assert abs(found.astype(int) - expected).max() <= 1


def resized_noise() -> str:
    """One hash of many resized images."""
    content = sha256()
    for seed in range(60):
        image, form = noise(seed)
        content.update(pixels(as_bytes(image), form))
    return content.hexdigest()


def test_a_processor_without_vector_instructions_resizes_to_the_same_pixels():
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch uses no vector instructions here")
    code = "from test_data_decoding import resized_noise; print(resized_noise())"
    plain = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.strip() == resized_noise()


def test_the_size_before_resizing_is_reported():
    picture = decode(as_bytes(color(1, 100, 60), "JPEG"), Form(3, resize=10))
    assert isinstance(picture, Picture)
    assert picture.size == (100, 60)


def test_what_cannot_be_read_has_a_reason(tmp_path):
    whole = as_bytes(color(1, 40, 40))
    assert "truncated" in reason(whole[: len(whole) // 2])
    assert reason(b"not an image") == "is not an image in a known format"
    assert reason(b"") == "is not an image in a known format"
    assert reason(None) == "has no image"
    assert reason(tmp_path / "gone.png") == "does not exist"
    damaged = bytearray(whole)
    damaged[60:90] = bytes(30)
    assert reason(bytes(damaged))


def test_pixels_that_are_not_numbers_or_out_of_range_have_a_reason():
    nan = gray(np.array([[0.5, np.nan]], dtype=np.float32))
    assert "NaN" in reason(as_bytes(nan, "TIFF"), GRAY)
    large = gray(np.array([[0.5, 3.0]], dtype=np.float32))
    assert "from 0.5 to 3.0" in reason(as_bytes(large, "TIFF"), GRAY)


def test_an_image_smaller_than_the_crop_has_a_reason():
    assert "is 6 x 6, too small for crop 8 x 8" in reason(as_bytes(color(1)), Form(3, crop=8))


def test_images_are_gray_only_if_all_are():
    gray_ones = [as_bytes(Image.new(mode, (2, 2))) for mode in ("L", "1", "LA", "I;16")]
    assert all_gray(gray_ones)
    assert all_gray([*gray_ones, b"broken", None])
    assert not all_gray([*gray_ones, as_bytes(color(1))])


@pytest.mark.parametrize("form", [RGB, Form(3, store=48)], ids=["as it is", "resized"])
def test_threads_change_neither_order_nor_pixels(form):
    contents = [as_bytes(color(seed, 64, 80)) for seed in range(50)]
    images = EncodedImages(lambda: contents, len(contents), form)
    one, four = (list(images.pictures(threads)) for threads in (1, 4))
    assert len(images) == len(one) == len(four) == 50
    for content, ours, theirs in zip(contents, one, four, strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert np.array_equal(ours.pixels, pixels(content, form))
