"""Damaged image files: each is read, or named with a reason; none ends or stops a run."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _pictures import as_bytes, color, prepared
from PIL import Image, features

from kdsteps.data.decoding import MAX_PIXELS, decode
from kdsteps.data.form import Form
from kdsteps.data.source import Broken, Picture

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
FAULTS = Path(__file__).parents[2] / "shared" / "faults"
FORM = Form(channels=3, store=16)
FUZZED = 1500
SECONDS, MEMORY_MIB = 300, 512  # of one format: time, and memory beyond that of the imports
OPTIONS = {
    "AVIF": {},
    "BMP": {},
    "GIF": {"save_all": True},
    "JPEG": {"quality": 90},
    "JPEG2000": {},
    "PNG": {},
    "PPM": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
}
ORIENTATION = 0x0112


def whole(kind: str) -> bytes:
    """A file with every kind of metadata that the format can have."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "maker"
    if kind != "TIFF":  # which Pillow cannot write with more
        exif.get_ifd(0x8769)[0x9003] = "2026:11:25 10:00:00"
    image = color(3, 20, 30)
    if kind in ("BMP", "GIF", "PPM", "JPEG2000"):
        return as_bytes(image, kind, **OPTIONS[kind])
    return as_bytes(image, kind, exif=exif.tobytes(), **OPTIONS[kind])


def fuzzed(content: bytes, random: np.random.Generator, span: int | None = None) -> bytes:
    """A few bytes changed, set to extremes, removed or repeated, in the first `span` of them."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(min(span or len(changed), len(changed))))
        action = random.integers(4)
        if action == 0:
            changed[at] = random.integers(256)
        elif action == 1:
            changed[at] = random.choice([0, 1, 127, 128, 255])
        elif action == 2:
            del changed[at : at + int(random.integers(1, 9))]
        else:
            changed[at:at] = changed[at : at + int(random.integers(1, 9))]
        if not changed:
            break
    return bytes(changed)


def child(kind: str, start: int) -> None:
    """Decode the fuzzed files of one format in this process and print what became of them."""
    random = np.random.default_rng(start)
    content = whole(kind)
    counts = {"read": 0, "broken": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FUZZED):
        span = 400 if number % 2 else None  # half of them in headers and metadata
        found = decode(fuzzed(content, random, span), FORM)
        if isinstance(found, Picture):
            assert found.pixels.shape == (3, 16, 16)
            counts["read"] += 1
        else:
            assert isinstance(found, Broken) and found.reason and "\n" not in found.reason
            counts["broken"] += 1
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert more < MEMORY_MIB * 1024, f"{more} KiB"
    print(json.dumps(counts))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_fuzzed_files_are_read_or_have_a_reason(kind):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"Pillow was built without {kind}")
    done = subprocess.run(
        [sys.executable, __file__, kind, "20261125"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["read"] + counts["broken"] == FUZZED
    assert min(counts.values()) > 0  # the damage is neither harmless nor always fatal


def exif_blocks() -> list[bytes]:
    """EXIF with every kind of damage to the orientation, and bytes that are not EXIF at all."""
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    good = exif.tobytes()
    at = good.index(b"\x12\x01" if good[6:8] == b"II" else b"\x01\x12")
    kinds = [good[: at + 2] + bytes([0, kind]) + good[at + 4 :] for kind in range(1, 14)]
    kinds += [good[: at + 2] + bytes([kind, 0]) + good[at + 4 :] for kind in range(1, 14)]
    cut = [good[:length] for length in range(6, len(good), 3)]
    random = np.random.default_rng(0)
    noise = [b"Exif\0\0" + random.bytes(40) for _ in range(20)]
    return [*kinds, *cut, *noise, *(fuzzed(good, random) for _ in range(200))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_costs_the_pixels(kind):
    image = color(5, 12, 12)
    for block in exif_blocks():
        found = decode(as_bytes(image, kind, exif=block), Form(channels=3))
        assert isinstance(found, Picture), (found, block)
        assert found.pixels.shape == (3, 12, 12)


@pytest.mark.skipif(not FAULTS.is_dir(), reason="needs shared/faults")
def test_a_photo_whose_orientation_is_a_text_is_read_upright():
    path = FAULTS / "exif-orientation-as-text.jpg"
    found = decode(path, Form(channels=3))
    assert isinstance(found, Picture)
    with Image.open(path) as image:
        assert np.array_equal(found.pixels, np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_rotated_tiff_is_rotated_back_before_it_is_resized(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    wide = color(1, 20, 40)
    turned = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]
    content = as_bytes(wide.rotate(turned, expand=True), "TIFF", exif=exif.tobytes())
    found = decode(content, Form(channels=3, resize=10))
    assert isinstance(found, Picture)
    assert found.size == (20, 40)
    assert found.pixels.shape == (3, 10, 20)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 1
    content = as_bytes(Image.new("1", (side, side)), "PNG")
    assert len(content) < 100_000
    found = decode(content, FORM)
    assert isinstance(found, Broken)
    assert f"{side} x {side}" in found.reason


def test_a_thin_image_that_would_grow_too_large_is_refused():
    found = decode(as_bytes(Image.new("L", (20_000, 1))), Form(channels=1, store=256))
    assert isinstance(found, Broken)
    assert "is 1 x 20000 and would be resized to 256 x 5120000" in found.reason


def test_formats_that_start_programs_are_not_read():
    """Encapsulated PostScript would be drawn by Ghostscript."""
    file = io.BytesIO()
    color(0).save(file, "EPS")
    assert decode(file.getvalue(), FORM) == Broken("is not an image in a known format")


def test_a_folder_of_damaged_files_is_prepared_without_them(tmp_path):
    random = np.random.default_rng(1)
    for number in range(40):
        name = tmp_path / "set" / "ab"[number % 2]
        name.mkdir(parents=True, exist_ok=True)
        content = as_bytes(color(number), "JPEG")
        (name / f"{number}.jpg").write_bytes(fuzzed(content, random) if number < 20 else content)
    (tmp_path / "set" / "a" / "empty.jpg").touch()
    options = {"path": str(tmp_path / "set"), "store": 8}
    data, summary = prepared(tmp_path / "out", "folder", options, broken="skip")
    assert len(data.images) + len(summary["broken"]) == 41
    assert "a/empty.jpg: is not an image in a known format" in summary["broken"]


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
