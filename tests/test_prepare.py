"""The stage `prepare`: what it stores, how it splits, what it finds, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _pictures import FILES, as_bytes, color, prepare, prepared, write_folder
from PIL import Image

from kdsteps.data import prepared as prepared_module
from kdsteps.data.checks import check_returned, check_source, doubt_of_bits
from kdsteps.data.hashes import Hashes
from kdsteps.data.prepared import load_prepared
from kdsteps.data.source import Source
from kdsteps.data.splitting import complete_split, duplicates
from kdsteps.data.storing import Survey, decoded
from kdsteps.data.streaming import StreamedSplit
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import write_array
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import read_json, write_json
from kdsteps.rehearsal.images import look_at_source
from kdsteps.stages.prepare import load_source
from kdsteps.study.settings import Dataset, Prepare

CPU = torch.device("cpu")


@pytest.fixture
def pets(tmp_path):
    """Ten cats and twenty dogs, all different."""
    return str(write_folder(tmp_path / "pets", {"cat": 10, "dog": 20}))


def source(images, labels=None, split=None, class_names=("a", "b")) -> Source:
    count = len(images)
    return Source(
        images=np.asarray(images),
        labels=np.arange(count) % 2 if labels is None else np.asarray(labels),
        class_names=class_names,
        split=np.full(count, "", "<U10") if split is None else np.asarray(split),
        names=tuple(f"image {number}" for number in range(count)),
    )


# what is stored


def test_the_stored_images_labels_and_sources_are_those_of_the_files(tmp_path, pets):
    files = prepare(tmp_path / "out", "folder", {"path": pets})
    index, images = read_table(files["index"], INDEX).to_pylist(), np.load(files["images"])
    assert images.shape == (30, 3, 6, 6)
    assert images.dtype == np.uint8
    for row in index:
        name, number = row["source"].removesuffix(".png").split("/")
        seed = int(number) + (0 if name == "cat" else 10)  # as `write_folder` drew them
        assert np.array_equal(images[row["image"]], np.asarray(color(seed)).transpose(2, 0, 1))
        assert row["label"] == ("cat", "dog").index(name)


def test_mean_and_std_are_those_of_the_training_images(tmp_path, pets):
    data, summary = prepared(tmp_path / "out", "folder", {"path": pets})
    train = data.images[data.rows("train")] / 255
    assert summary["mean"] == pytest.approx(train.mean(axis=(0, 2, 3)).tolist(), abs=1e-12)
    assert summary["std"] == pytest.approx(train.std(axis=(0, 2, 3)).tolist(), abs=1e-12)
    batches = torch.cat([batch.images for batch in data.part("train").in_order(7)])
    assert torch.allclose(batches.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(batches.std(dim=(0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)


def test_the_same_settings_give_the_same_bytes(tmp_path, pets):
    one = prepare(tmp_path / "one", "folder", {"path": pets}, threads=1)
    other = prepare(tmp_path / "other", "folder", {"path": pets}, threads=3)
    for name in FILES:
        assert one[name].read_bytes() == other[name].read_bytes()


def test_the_summary_counts_what_is_there(tmp_path, pets):
    _, summary = prepared(tmp_path / "out", "folder", {"path": pets})
    assert summary["class_names"] == ["cat", "dog"]
    assert summary["images"] == {"train": 19, "validation": 5, "test": 6}
    assert summary["images_of_class"] == {"train": [6, 13], "validation": [2, 3], "test": [2, 4]}
    assert summary["image_shape"] == [3, 6, 6]
    assert summary["sizes"]["most_frequent"] == [{"height": 6, "width": 6, "images": 30}]
    assert summary["modes"] == {"RGB": 30}
    assert summary["settings"]["kind"] == "folder"


def test_digits_come_stratified_and_whole(tmp_path):
    data, summary = prepared(tmp_path, "digits", {"size": 8}, validation=0.15)
    assert summary["images"] == {"train": 1222, "validation": 216, "test": 359}
    for part in ("train", "validation", "test"):
        shares = np.array(summary["images_of_class"][part]) / summary["images"][part]
        assert abs(shares - 0.1).max() < 0.01
    assert len(data.part("train")) == 1222


def test_images_of_any_size_become_one(tmp_path):
    for number, (height, width) in enumerate([(9, 7), (20, 30), (8, 8), (40, 12)]):
        (tmp_path / "set" / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        image = color(number, height, width)
        image.save(tmp_path / "set" / f"c{number % 2}" / f"{number}.png")
    options = {"path": str(tmp_path / "set"), "resize": 8, "crop": 6}
    data, summary = prepared(tmp_path / "out", "folder", options, validation=0, test=0.5)
    assert data.image_shape == (3, 6, 6)
    assert summary["sizes"]["different"] == 4


def test_gray_and_color_together_become_color(tmp_path):
    root = write_folder(tmp_path / "set", {"a": 3, "b": 3})
    Image.new("L", (6, 6), 9).save(root / "a" / "gray.png")
    data, summary = prepared(tmp_path / "out", "folder", {"path": str(root)})
    assert data.image_shape[0] == 3
    assert summary["modes"] == {"L": 1, "RGB": 6}
    gray, _ = prepared(tmp_path / "gray", "folder", {"path": str(root), "channels": 1})
    assert gray.image_shape[0] == 1


def test_preparing_does_not_wait_for_torch():
    """It costs seconds at the start of a job, and no kind of data but torchvision's needs it."""
    modules = (
        "stages.prepare",
        *(f"data.kinds.{kind}" for kind in ("digits", "folder", "parquet", "torchvision")),
    )
    imports = "; ".join(f"import kdsteps.{module}" for module in modules)
    code = f"{imports}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# how it is split


def split_of(count, *, source_split=None, hashes=None, labels=None, **shares):
    labels = np.arange(count) % 2 if labels is None else labels
    hashes = [str(number) for number in range(count)] if hashes is None else hashes
    given = np.full(count, "") if source_split is None else np.asarray(source_split)
    shares = {"validation": 0.2, "test": 0.2, "seed": 0} | shares
    return complete_split(given, labels, hashes, ("even", "odd"), **shares)


def test_every_class_is_split_in_the_same_shares():
    labels = np.array([0] * 100 + [1] * 50)
    parts = split_of(150, labels=labels)
    found = {part: np.bincount(labels[parts == part]).tolist() for part in np.unique(parts)}
    assert found == {"train": [64, 32], "validation": [16, 8], "test": [20, 10]}


def test_a_seed_decides_the_split_and_the_order_of_the_images_does_not():
    parts = split_of(60)
    turned = np.arange(60)[::-1]
    hashes = [str(number) for number in turned]
    assert np.array_equal(split_of(60, hashes=hashes, labels=turned % 2), parts[turned])
    assert not np.array_equal(split_of(60, seed=1), parts)


@pytest.mark.parametrize("seed", range(10))
def test_copies_of_an_image_never_end_up_in_two_parts(seed):
    hashes = [str(number // 6) for number in range(60)]
    labels = np.zeros(60, int)
    labels[30:] = 1
    parts = split_of(60, hashes=hashes, labels=labels, seed=seed)
    assert set(parts) == {"train", "validation", "test"}
    assert all(len(set(parts[start : start + 6])) == 1 for start in range(0, 60, 6))


def test_copies_of_several_classes_stay_in_training():
    shared = [f"both {number}" for number in range(10)]
    hashes = [*map(str, range(40)), *shared, *(f"odd {number}" for number in range(4)), *shared]
    parts = split_of(64, hashes=hashes, labels=np.array([0] * 50 + [1] * 14))
    assert set(parts[40:50]) == set(parts[54:]) == {"train"}
    assert set(parts[:40]) == {"train", "validation", "test"}
    assert set(parts[50:54]) >= {"validation", "test"}


def test_parts_of_the_source_stay_and_the_missing_one_is_taken_from_train():
    given = ["train"] * 40 + ["test"] * 20
    parts = split_of(60, source_split=given)
    assert Counter(parts[40:]) == {"test": 20}
    assert Counter(parts[:40]) == {"train": 32, "validation": 8}
    given = ["train"] * 40 + ["validation"] * 20
    parts = split_of(60, source_split=given)
    assert Counter(parts[40:]) == {"validation": 20}
    assert Counter(parts[:40]) == {"train": 32, "test": 8}


def test_no_validation_part_is_made_where_none_is_wanted():
    given = ["train"] * 40 + ["test"] * 20
    assert split_of(60, source_split=given, validation=0.0).tolist() == given


def test_no_test_part_at_all_is_refused():
    with pytest.raises(KdstepsError, match=r"prepare.test is 0 and the data set has no test"):
        split_of(10, test=0.0)


def test_a_class_too_small_for_every_part_is_refused():
    labels = np.array([0] * 10 + [1])
    with pytest.raises(KdstepsError, match="class 'odd' has 1 different image for the splits"):
        split_of(11, labels=labels)


# what it finds


def test_copies_are_counted_between_parts_and_within():
    parts = np.array(["train", "test", "test", "train", "validation"])
    found = duplicates(["x", "x", "x", "y", "y"], parts)
    assert found == {
        ("train", "test"): [(0, 1), (0, 2)],
        ("test", "test"): [(1, 2)],
        ("train", "validation"): [(3, 4)],
    }


def test_an_image_in_train_and_test_is_reported_with_both_names(tmp_path):
    write_folder(tmp_path / "set" / "train", {"a": 5, "b": 5})
    write_folder(tmp_path / "set" / "test", {"a": 2, "b": 2}, start=50)
    color(3).save(tmp_path / "set" / "test" / "b" / "copy.png")  # train has it as class a
    _, summary = prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "set")}, validation=0)
    assert summary["duplicates"] == [
        {
            "splits": ["train", "test"],
            "images": 1,
            "of_other_class": 1,
            "examples": [["train/a/3.png", "test/b/copy.png"]],
        }
    ]


def test_copies_of_other_classes_are_named_before_other_copies(tmp_path, caplog):
    folder = tmp_path / "set" / "train"
    write_folder(folder, {"a": 6, "b": 6})
    for original, copy in (("a/1.png", "a/copy.png"), ("a/3.png", "b/copy.png")):
        (folder / copy).write_bytes((folder / original).read_bytes())
    write_folder(tmp_path / "set" / "test", {"a": 2, "b": 2}, start=50)
    with caplog.at_level("WARNING", "kdsteps"):
        _, summary = prepared(
            tmp_path / "out", "folder", {"path": str(tmp_path / "set")}, validation=0
        )
    (entry,) = summary["duplicates"]
    assert (entry["images"], entry["of_other_class"]) == (2, 1)
    assert entry["examples"][0] == ["train/a/3.png", "train/b/copy.png"]
    said = "copies with another label: 1, such as train/a/3.png and train/b/copy.png"
    assert said in caplog.messages


@pytest.mark.parametrize(("bits", "told"), [(12, True), (16, False)])
def test_nearly_black_images_of_16_bits_are_told(tmp_path, caplog, bits, told):
    generator = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 2**bits, (8, 8)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    with caplog.at_level("WARNING", "kdsteps"):
        prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "set")})
    assert any("nearly black" in message for message in caplog.messages) == told
    read = look_at_source(
        Dataset(kind="folder", options={"path": str(tmp_path / "set")}), Prepare(), 1
    ).sample
    assert (doubt_of_bits(read.modes, read.pixels.mean() / 255) is not None) == told


def test_broken_images_are_named_counted_and_refused(tmp_path, pets):
    for name in ("cat/3.png", "dog/7.png"):
        path = tmp_path / "pets" / name
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        KdstepsError, match=r"2 of 30 images cannot be read: cat/3.png: .*dog/7.png"
    ):
        prepare(tmp_path / "out", "folder", {"path": pets})
    assert not list((tmp_path / "out").iterdir())


def test_broken_images_are_left_out_where_told_so(tmp_path, pets):
    (tmp_path / "pets" / "cat" / "3.png").write_bytes(b"not an image")
    data, summary = prepared(tmp_path / "out", "folder", {"path": pets}, broken="skip")
    assert summary["broken"] == ["cat/3.png: is not an image in a known format"]
    assert len(data.images) == 29
    whole, _ = prepared(tmp_path / "again", "folder", {"path": pets}, broken="skip")
    assert np.array_equal(data.images, whole.images)


def test_a_set_of_broken_images_alone_is_refused_even_where_they_may_be_skipped(tmp_path):
    table = pa.table({"image": [b"no", b"nor this"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(KdstepsError, match=r"none of the 2 images can be read: a.parquet row 0"):
        prepare(tmp_path / "out", "parquet", {"train": f"{tmp_path}/a.parquet"}, broken="skip")


# what it refuses


def run_parquet(tmp_path, labels, metadata=None, **section):
    images = [as_bytes(color(seed)) for seed in range(len(labels))]
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    return prepare(tmp_path / "out", "parquet", {"train": f"{tmp_path}/a.parquet"}, **section)


def test_labels_out_of_range_are_refused_by_name(tmp_path):
    names = {"label_names": '["a", "b"]'}
    with pytest.raises(
        KdstepsError, match=r"a.parquet row 2: has the label 5; with 2 classes labels"
    ):
        run_parquet(tmp_path, [0, 1, 5, 0], names)
    with pytest.raises(KdstepsError, match="row 1: has the label -1"):
        run_parquet(tmp_path, [0, -1, 1])


def test_a_class_without_images_is_refused(tmp_path):
    with pytest.raises(KdstepsError, match="class 'c' has no training images"):
        run_parquet(tmp_path, [0, 1] * 6, {"label_names": '["a", "b", "c"]'})
    words = "class '0' has no training images; if labels start at 1, subtract 1 from each"
    with pytest.raises(KdstepsError, match=words):
        run_parquet(tmp_path, [1, 2] * 6)


def test_a_class_that_only_the_test_part_lacks_is_no_reason_to_stop(tmp_path):
    write_folder(tmp_path / "set" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "set" / "test", {"a": 2}, start=50)
    _, summary = prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "set")}, validation=0)
    assert summary["images_of_class"]["test"] == [2, 0]


def test_a_class_that_the_training_part_alone_lacks_is_refused(tmp_path):
    for name, labels, seed in (("train", [0, 0, 0, 0], 0), ("test", [0, 1], 9)):
        images = [as_bytes(color(seed + row)) for row in range(len(labels))]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet")
    options = {part: f"{tmp_path}/{part}.parquet" for part in ("train", "test")}
    with pytest.raises(KdstepsError, match="class '1' has no training images"):
        prepare(tmp_path / "out", "parquet", options, validation=0)


def test_one_class_alone_is_refused(tmp_path):
    with pytest.raises(KdstepsError, match=r"only one class \(0\)"):
        run_parquet(tmp_path, [0, 0, 0])


def test_images_of_different_sizes_are_refused_by_name(tmp_path, pets):
    color(99, 6, 8).save(tmp_path / "pets" / "dog" / "wide.png")
    with pytest.raises(KdstepsError, match=r"cat/0.png is 6 x 6, dog/wide.png is 6 x 8; .*`store`"):
        prepare(tmp_path / "out", "folder", {"path": pets})


def test_a_channel_that_never_changes_is_refused(tmp_path):
    for number in range(8):
        (tmp_path / "set" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 4, 3), np.uint8)
        pixels[:, :, :2] = np.random.default_rng(number).integers(0, 256, (4, 4, 2))
        Image.fromarray(pixels).save(tmp_path / "set" / "ab"[number % 2] / f"{number}.png")
    with pytest.raises(KdstepsError, match="channel 2 has the same value in every pixel"):
        prepare(tmp_path / "out", "folder", {"path": str(tmp_path / "set")})


def test_a_failure_leaves_earlier_results_as_they_were(tmp_path, pets):
    files = prepare(tmp_path / "out", "folder", {"path": pets})
    before = {name: path.read_bytes() for name, path in files.items()}
    (tmp_path / "pets" / "cat" / "3.png").write_bytes(b"damaged since")
    with pytest.raises(KdstepsError, match=r"cat/3.png"):
        prepare(tmp_path / "out", "folder", {"path": pets})
    assert {name: path.read_bytes() for name, path in files.items()} == before
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_floats_become_uint8_and_nan_is_refused():
    images = np.random.default_rng(0).random((4, 1, 3, 3)).astype(np.float32)
    kept = np.concatenate(list(decoded(source(images), Survey(), broken="refuse")))
    assert kept.dtype == np.uint8
    assert abs(kept / 255 - images).max() <= 0.5 / 255 + 1e-6
    images[2, 0, 1, 1] = np.nan
    with pytest.raises(KdstepsError, match=r"1 of 4 images cannot be read: image 2: .*NaN"):
        list(decoded(source(images), Survey(), broken="refuse"))


def test_a_source_that_does_not_fit_together_is_refused():
    images = np.zeros((4, 1, 2, 2), np.uint8)
    with pytest.raises(KdstepsError, match="has no images"):
        check_source(source(images[:0]))
    for character in "\x07\n\u2028\u202e\udce9\ufffe":
        with pytest.raises(KdstepsError) as raised:
            check_source(source(images, class_names=(f"a{character}", "b")))
        assert f"the class name {f'a{character}'!r} has the character" in str(raised.value)
        assert "rename the class" in str(raised.value)
    check_source(
        source(images, class_names=("\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f467"))
    )
    with pytest.raises(KdstepsError, match="class name ' ' is empty"):
        check_source(source(images, class_names=(" ", "b")))
    with pytest.raises(KdstepsError, match="classes 'a' and 'a ' differ in spaces alone; write"):
        check_source(source(np.zeros((4, 1, 2, 2)), class_names=("a", "a ")))
    with pytest.raises(KdstepsError, match="two classes are called 'a'"):
        check_source(source(images, class_names=("a", "a")))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"images": np.zeros((4, 9, 9, 3))}, r"images of the shape \(4, 9, 9, 3\); it should be "),
        ({"images": np.zeros((4, 9, 9))}, r"images of the shape \(4, 9, 9\); it should be \(N, c"),
        ({"images": [np.zeros((1, 9, 9))] * 4}, "images of type list; they should be an array"),
        ({"labels": [0, 1, 0, 1]}, "labels of type list; it should be an array"),
        ({"labels": np.zeros(4)}, "labels of float64; they should be whole numbers from 0"),
        ({"labels": np.array([0, 1])}, "labels of length 2 for 4 images; each image needs one"),
        ({"names": ("a",)}, "names of length 1 for 4 images"),
        ({"split": None}, "split of type NoneType; it should be an array"),
        ({"split": np.array(["dev"] * 4)}, "the split 'dev'; use train, validation and test"),
        ({"class_names": (0, 1)}, r"the class names \(0, 1\); they should be text"),
        ({"image_size": 8}, r"image_size 8; it should be \(height, width\)"),
    ],
)
def test_what_a_kind_of_data_should_not_return_is_said(given, found):
    whole = source(np.zeros((4, 1, 9, 9), np.uint8))
    assert check_returned(whole, "./own.py:load") is whole
    said = rf"datasets: ./own.py:load returned a Source with {found}"
    with pytest.raises(KdstepsError, match=said):
        check_returned(replace(whole, **given), "./own.py:load")


def test_a_kind_of_data_that_returns_no_source_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def load():\n    return 5\n")
    said = "datasets: ./own.py:load returned a value of type int; it should be a kdsteps.data"
    for entry in ({}, {"labels": "none"}):
        with pytest.raises(KdstepsError, match=said):
            load_source(Dataset(kind="./own.py:load", options={}, **entry))


# what other stages read


@pytest.fixture
def files(tmp_path, pets):
    return prepare(tmp_path / "out", "folder", {"path": pets})


def test_parts_are_the_rows_of_the_index(files):
    data = load_prepared(**files, device=CPU)
    every = np.concatenate([data.rows(part) for part in ("train", "validation", "test")])
    assert sorted(every) == list(range(30))
    part = data.part("validation")
    assert np.array_equal(part.images.numpy(), data.images[data.rows("validation")])
    assert np.array_equal(part.labels.numpy(), data.labels[data.rows("validation")])


def test_a_part_too_large_for_the_device_streams_and_gives_the_same(files, monkeypatch):
    data = load_prepared(**files, device=CPU)
    small = data.part("train")
    monkeypatch.setattr(prepared_module, "RESIDENT_BYTES", 100)
    large = data.part("train")
    assert isinstance(large, StreamedSplit)
    for ours, theirs in zip(small.in_order(4), large.in_order(4), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("stream", [False, True])
def test_one_flipped_bit_is_noticed_and_names_the_file(files, stream):
    before = files["images"].read_bytes()
    for at in np.random.default_rng(0).integers(128, len(before), 20):
        damaged = bytearray(before)
        damaged[at] ^= 1 << int(at % 8)
        files["images"].write_bytes(damaged)
        data = load_prepared(**files, device=CPU)
        row = (at - 128) // (3 * 6 * 6)
        name = read_table(files["index"], INDEX)["source"][int(row)].as_py()
        with pytest.raises(KdstepsError, match=rf"npy: image {row} \({name}\) does not match"):
            list(data.part(data.split[row], stream=stream).in_order(4))


def test_an_image_that_is_not_used_is_not_checked(files):
    data = load_prepared(**files, device=CPU)
    damaged = bytearray(files["images"].read_bytes())
    damaged[128 + 3 * 6 * 6 * int(data.rows("test")[0])] ^= 1
    files["images"].write_bytes(damaged)
    assert len(list(load_prepared(**files, device=CPU).part("train").in_order(4)))


def test_streamed_images_are_checked_once(files, monkeypatch):
    data = load_prepared(**files, device=CPU)
    part, checked = data.part("train", stream=True), []
    find = Hashes.damaged
    monkeypatch.setattr(
        Hashes,
        "damaged",
        lambda *args: (checked.extend(args[2]), find(*args))[1],
    )
    for _ in range(2):
        list(part.in_order(4))
    assert sorted(checked) == data.rows("train").tolist()


def test_damage_found_by_a_worker_is_the_same_sentence(files):
    damaged = bytearray(files["images"].read_bytes())
    damaged[128:] = bytes(len(damaged) - 128)
    files["images"].write_bytes(damaged)
    part = load_prepared(**files, device=CPU).part("train", stream=True)
    part.workers = 2
    with pytest.raises(KdstepsError, match=r"not match its hash.*snakemake makes the file"):
        list(part.in_order(4))


def test_an_empty_validation_part_has_no_batches(tmp_path):
    write_folder(tmp_path / "set" / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "set" / "test", {"a": 2, "b": 2}, start=50)
    data, _ = prepared(tmp_path / "out", "folder", {"path": str(tmp_path / "set")}, validation=0)
    assert len(data.part("validation")) == 0
    assert list(data.part("validation").in_order(4)) == []


def rewrite_index(files, **columns):
    rows = read_table(files["index"], INDEX).to_pydict()
    write_table(files["index"], rows | columns, INDEX)


def refused(files) -> str:
    with pytest.raises(KdstepsError) as error:
        load_prepared(**files, device=CPU)
    return str(error.value)


def test_files_that_do_not_fit_each_other_are_refused(files):
    rows = read_table(files["index"], INDEX)
    write_table(files["index"], rows.slice(0, 29).to_pydict(), INDEX)
    assert "has 29 rows for 30 images" in refused(files)


def test_a_missing_column_of_the_index_is_named(files):
    pq.write_table(read_table(files["index"], INDEX).drop_columns(["label"]), files["index"])
    assert "has no column 'label'" in refused(files)


def test_labels_of_the_index_that_are_no_class_are_refused(files):
    rewrite_index(files, label=[7, *[0] * 29])
    assert "row 0 has the label 7; with 2 classes labels go from 0 to 1" in refused(files)


def test_a_class_of_the_index_without_training_images_is_refused(files):
    rewrite_index(files, label=[0] * 30)
    assert "class 'dog' has no training images" in refused(files)


def test_an_unknown_part_in_the_index_is_refused(files):
    rewrite_index(files, split=["exam", *["train"] * 29])
    assert "the split 'exam'; there are train, validation, test" in refused(files)


def test_stored_images_of_another_type_or_shape_are_refused(files):
    images = np.load(files["images"])
    write_array(files["images"], images / np.float32(255))
    assert "has float32 of shape (30, 3, 6, 6); images are uint8" in refused(files)
    write_array(files["images"], images[:, :, :4])
    assert "has images of (3, 4, 6)" in refused(files)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_missing_is_named(files, name):
    whole = files[name].read_bytes()
    files[name].write_bytes(whole[: len(whole) // 2])
    assert str(files[name]) in refused(files)
    files[name].unlink()
    assert str(files[name]) in refused(files)


def test_results_from_before_stored_and_seen_sizes_differed_are_read(files):
    summary = read_json(files["summary"])
    del summary["stored_shape"]
    write_json(files["summary"], summary)
    assert load_prepared(**files, device=CPU).image_shape == (3, 6, 6)


def test_a_summary_without_what_stages_need_is_refused(files):
    summary = read_json(files["summary"])
    del summary["mean"]
    write_json(files["summary"], summary)
    assert "summary.json: mean: field required" in refused(files)
    write_json(files["summary"], summary | {"mean": ["x", 0, 0]})
    assert "summary.json: mean.0: input should be a valid number" in refused(files)
    write_json(files["summary"], summary | {"mean": [0.5]})
    assert "has 1 means and 3 standard deviations for 3 channels" in refused(files)
