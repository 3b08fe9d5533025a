"""Preparing a large data set: it goes on after a kill, and says before it starts what it takes."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from _pictures import FILES, as_bytes, color, prepare, prepared, settings_of, write_folder

from kdsteps.data import encoded, image_store, storing
from kdsteps.errors import KdstepsError
from kdsteps.study.part_checks import options_problem

COUNT, CHUNK = 96, 8
# Prepares slowly, in small pieces that are all recorded; killed by the test.
SLOW = """
import json, sys, time
from pathlib import Path
from kdsteps.data import image_store, storing
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.stages.prepare import run
image_store.SAVE_SECONDS, storing._CHUNK = 0, {chunk}
add = image_store.ImageStore.add
image_store.ImageStore.add = lambda *args: (add(*args), time.sleep(0.03))
settings, outputs = PrepareSettings.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])
run(Job(settings, {{}}, {{name: Path(path) for name, path in outputs.items()}}))
"""


@pytest.fixture
def options(tmp_path):
    """A folder of 96 images, two of them broken."""
    root = write_folder(tmp_path / "set", {"a": COUNT // 2, "b": COUNT // 2})
    for name in ("a/3.png", "b/40.png"):
        (root / name).write_bytes(b"broken")
    return {"path": str(root)}


def killed(out: Path, options: dict, lines: int) -> None:
    """Prepare into `out` in a process that is killed once its journal has so many lines."""
    settings = settings_of("folder", options, broken="skip").as_text()
    outputs = json.dumps({name: str(out / file) for name, file in FILES.items()})
    journal = out / ".images.npy.unfinished.jsonl"
    code = SLOW.format(chunk=CHUNK)
    child = subprocess.Popen([sys.executable, "-c", code, settings, outputs])
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert child.poll() is None, "the child ended before it was killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "images.npy").exists()


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / file).read_bytes() for name, file in FILES.items()}


def decoded_again(monkeypatch) -> list:
    """Collects what is decoded from now on."""
    found: list = []
    decode = encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda *args: (found.append(args[0]), decode(*args))[1])
    return found


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, options, monkeypatch, caplog):
    prepare(tmp_path / "whole", "folder", options, broken="skip")
    again = decoded_again(monkeypatch)
    for lines in (4, 8):  # the first line is the key, the second is empty
        killed(tmp_path / "out", options, lines)
    with caplog.at_level(logging.INFO):
        prepare(tmp_path / "out", "folder", options, broken="skip")
    assert "resuming after" in caplog.text
    assert len(again) <= COUNT - 6 * CHUNK
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(FILES.values())


@pytest.mark.parametrize("change", ["image", "name", "settings", "code", "torn", "lost"])
def test_what_a_killed_run_left_is_used_only_where_it_fits(tmp_path, options, monkeypatch, change):
    killed(tmp_path / "out", options, 6)
    root, section = Path(options["path"]), {}
    if change == "image":
        color(1234).save(root / "a" / "0.png")
    elif change == "name":
        (root / "a" / "0.png").rename(root / "a" / "new.png")
    elif change == "settings":
        section = {"seed": 3}
    elif change == "code":
        from kdsteps.jobs import code_identity

        monkeypatch.setattr(code_identity, "digest", lambda modules: "another")
    elif change == "torn":
        with (tmp_path / "out" / ".images.npy.unfinished.jsonl").open("a") as journal:
            journal.write('{"stored": [1, 2')
    else:
        (tmp_path / "out" / ".images.npy.unfinished").write_bytes(b"short")
    again = decoded_again(monkeypatch)
    prepare(tmp_path / "out", "folder", options, broken="skip", **section)
    assert (len(again) < COUNT) == (change == "torn")
    prepare(tmp_path / "whole", "folder", options, broken="skip", **section)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_line_of_the_journal_is_not_used_nor_those_after_it(
    tmp_path, options, monkeypatch
):
    prepare(tmp_path / "whole", "folder", options, broken="skip")
    killed(tmp_path / "killed", options, 5)
    name = ".images.npy.unfinished.jsonl"
    key, nothing, *entries = (tmp_path / "killed" / name).read_text().splitlines(keepends=True)
    for number, entry in enumerate(entries):
        out = shutil.copytree(tmp_path / "killed", tmp_path / str(number))
        last = entry.index("]", entry.index('"stored"')) - 1
        other = str(int(entry[last]) ^ 1)  # by one bit another image, which may have another label
        lines = [key, nothing, *entries[:number], entry[:last] + other + entry[last + 1 :]]
        (out / name).write_text("".join([*lines, *entries[number + 1 :]]))
        again = decoded_again(monkeypatch)
        prepare(out, "folder", options, broken="skip")
        used = [json.loads(line.partition(" ")[2]) for line in entries[:number]]
        assert len(again) == COUNT - sum(len(e["stored"]) + len(e["broken"]) for e in used)
        assert contents(out) == contents(tmp_path / "whole")


def test_an_array_source_is_resumed_as_well(tmp_path, monkeypatch):
    """Its rows are skipped, as encoded images are."""
    store = image_store.ImageStore
    with monkeypatch.context() as patch:
        patch.setattr(image_store, "SAVE_SECONDS", 0)
        patch.setattr(storing, "_CHUNK", 500)
        patch.setattr(store, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "out", "digits", {})
    prepare(tmp_path / "out", "digits", {})
    prepare(tmp_path / "whole", "digits", {})
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_error_leaves_nothing_to_resume(tmp_path, options):
    with pytest.raises(KdstepsError, match="2 of 96 images cannot be read"):
        prepare(tmp_path / "out", "folder", options)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_space_is_said_before_anything_is_decoded_twice(tmp_path, options, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 5000))
    with pytest.raises(KdstepsError, match=r"96 images of \(3, 6, 6\) need 10.2 KiB.*4.9 KiB free"):
        prepare(tmp_path / "out", "folder", options, broken="skip")
    assert list((tmp_path / "out").iterdir()) == []


def test_large_images_are_stored_piece_by_piece(tmp_path, monkeypatch):
    """A piece is limited by its bytes, so that memory does not grow with the size of images."""
    monkeypatch.setattr(storing, "_CHUNK_BYTES", 3 * 6 * 6 * 10)
    sizes = []
    add = image_store.ImageStore.add
    monkeypatch.setattr(
        image_store.ImageStore,
        "add",
        lambda self, images: (sizes.append(len(images)), add(self, images)),
    )
    root = write_folder(tmp_path / "set", {"a": 12, "b": 12})
    prepare(tmp_path / "out", "folder", {"path": str(root)})
    assert sizes == [10, 10, 4]


# the size that is stored and the one that is seen


def sized(tmp_path, **options):
    for number in range(12):
        (tmp_path / "set" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = color(number, 20 + number, 44 - 2 * number)
        (tmp_path / "set" / "ab"[number % 2] / f"{number}.jpg").write_bytes(as_bytes(image, "JPEG"))
    return prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "set")} | options)


@pytest.mark.parametrize(
    ("given", "stored", "seen"),
    [
        ({"store": 16}, (16, 16), (16, 16)),
        ({"image_size": 12}, (12, 12), (12, 12)),
        ({"store": 16, "image_size": 12}, (16, 16), (12, 12)),
        ({"store": [10, 16], "image_size": [8, 12]}, (10, 16), (8, 12)),
        ({"resize": [9, 14]}, (9, 14), (9, 14)),
        ({"resize": 20, "crop": [18, 16]}, (18, 16), (18, 16)),
        ({"resize": 20, "crop": 18, "image_size": [10, 14]}, (18, 18), (10, 14)),
    ],
)
def test_images_are_stored_in_one_size_and_seen_in_another(tmp_path, given, stored, seen):
    data, summary = sized(tmp_path, **given)
    assert data.images.shape[2:] == stored
    assert data.image_shape == tuple(summary["image_shape"]) == (3, *seen)
    batch = next(data.part("test").in_order(4))
    assert batch.images.shape[2:] == seen


def test_store_is_resize_and_crop_in_one(tmp_path):
    one, _ = sized(tmp_path, store=16)
    other, _ = sized(tmp_path, resize=16, crop=16)
    assert (one.images == other.images).all()


def test_sizes_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(KdstepsError, match="store and crop both set the stored size"):
        sized(tmp_path, store=16, crop=12)
    sizes = {"store": 16, "resize": None, "crop": 12}
    others = {"split": None, "train": None, "validation": None, "test": None, "name": "CIFAR10"}
    for kind in ("folder", "table", "parquet", "torchvision"):
        found = options_problem("data", kind, sizes | others)
        assert found is not None and "both set the stored size" in found, kind
    with pytest.raises(KdstepsError, match=r"image_size is 20 x 20, images are stored with 16"):
        sized(tmp_path, store=16, image_size=20)
