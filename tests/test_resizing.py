"""Resizing without torch returns the bytes that torch returns."""

from __future__ import annotations

import numpy as np
import pytest
from _pictures import as_bytes, color

from kdsteps.data.decoding import decode
from kdsteps.data.form import Form
from kdsteps.data.resizing import resized_by_numpy, resized_by_torch
from kdsteps.data.source import Picture


def random_pixels(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise or black and white, (C, H, W), with channels first or last in memory."""
    channels = int(random.choice([1, 3]))
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if random.random() < 0.3:
        pixels = (pixels > 127) * np.uint8(255)
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(("largest", "count"), [(80, 3000), (1500, 60)])
def test_any_size_becomes_any_other_as_in_torch(largest: int, count: int):
    random = np.random.default_rng(largest)
    for _ in range(count):
        old, new = np.exp(random.uniform(np.log(2), np.log(largest), (2, 2))).astype(int).tolist()
        pixels = random_pixels(random, *old)
        found = resized_by_numpy(pixels, *new)
        assert np.array_equal(found, resized_by_torch(pixels, *new)), (old, new)


@pytest.mark.parametrize("new", [1, 2, 3, 7, 31, 32, 33, 64, 223, 1000])
def test_every_length_of_a_row_up_to_100_becomes_this_one_as_in_torch(new: int):
    random = np.random.default_rng(new)
    for old in range(1, 101):
        pixels = random.integers(0, 256, (1, 3, old), dtype=np.uint8)
        expected = resized_by_torch(pixels, 3, new)
        assert np.array_equal(resized_by_numpy(pixels, 3, new), expected), old


def test_pixels_of_another_size_are_a_copy_and_others_are_left_alone():
    pixels = np.full((3, 5, 7), 200, np.uint8)
    assert resized_by_numpy(pixels, 5, 7) is not None
    assert (resized_by_numpy(pixels, 9, 4) == 200).all()
    assert resized_by_numpy(pixels, 9, 4).shape == (3, 9, 4)


@pytest.mark.parametrize("form", [Form(3, store=24), Form(1, resize=40, crop=24), Form(3, (9, 50))])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_is_decoded_to_the_same_pixels(form: Form, kind: str):
    for size in ((300, 200), (65, 90), (24, 40)):
        content = as_bytes(color(1, *size), kind)
        ours, torchs = decode(content, form, resized_by_numpy), decode(content, form)
        assert isinstance(ours, Picture) and isinstance(torchs, Picture)
        assert np.array_equal(ours.pixels, torchs.pixels)
