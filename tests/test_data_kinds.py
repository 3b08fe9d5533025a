"""The kinds of data: what each reads, and what it says of what it cannot read."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pictures import REAL, as_bytes, color, prepared, write_folder

from kdsteps.data.kinds import digits, folder, parquet, torchvision
from kdsteps.data.source import Broken
from kdsteps.data.split_names import split_of_folder
from kdsteps.errors import KdstepsError
from kdsteps.study.part_checks import options_problem


def pixels(source) -> list[np.ndarray]:
    found = list(source.images.pictures(1))
    assert [picture for picture in found if isinstance(picture, Broken)] == []
    return [picture.pixels for picture in found]


def of_seed(seed: int) -> np.ndarray:
    return np.asarray(color(seed)).transpose(2, 0, 1)


def write_parquet(path: Path, labels, *, first: int = 0, metadata=None, **columns) -> Path:
    contents = [as_bytes(color(first + row)) for row in range(len(labels))]
    table = pa.table({"image": contents, "label": labels} | columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


# digits


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_are_all_there_at_the_size_asked_for(size):
    source = digits.load(size=size)
    assert source.images.shape == (1797, 1, size, size)
    assert source.images.dtype == np.uint8
    assert source.images.max() == 255
    assert set(source.labels) == set(range(10))


def test_larger_digits_repeat_the_pixels_of_the_small_ones():
    assert np.array_equal(digits.load(size=32).images[:, :, ::4, ::4], digits.load().images)


# folder


def test_class_folders_become_classes_in_alphabetical_order(tmp_path):
    source = folder.load(path=str(write_folder(tmp_path, {"dog": 2, "cat": 3})))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.names[3] == "dog/0.png"
    assert set(source.split) == {""}
    assert np.array_equal(pixels(source)[0], of_seed(2))


@pytest.mark.parametrize(
    ("training", "validation", "testing"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("train", "validation", "test"),
        ("training_set", "val-set", "test_set"),
        ("seg_train", "seg_val", "seg_test"),
        ("TrainSet", "ValSet", "TestSet"),
        ("train images", "val2017", "test.data"),
    ],
)
def test_folders_of_parts_are_known_by_their_usual_names(tmp_path, training, validation, testing):
    for start, name in enumerate((training, validation, testing)):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    source = folder.load(path=str(tmp_path))
    assert source.split.tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert source.class_names == ("a", "b")


def test_named_folders_replace_the_usual_ones(tmp_path):
    for start, name in enumerate(("train", "val", "test")):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    source = folder.load(path=str(tmp_path), test="val")
    assert source.split.tolist() == ["train"] * 2 + ["test"] * 2
    assert source.names[2] == "val/a/0.png"


def test_two_folders_for_one_split_are_refused_and_others_are_told_of(tmp_path, caplog):
    for start, name in enumerate(("train", "val", "extra")):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    with caplog.at_level("INFO", "kdsteps"):
        assert len(folder.load(path=str(tmp_path)).labels) == 4
    assert "skipped 1 folders that are not those of splits" in caplog.text
    write_folder(tmp_path / "dev", {"a": 1, "b": 1})
    with pytest.raises(KdstepsError, match="several folders for validation, dev and val; name"):
        folder.load(path=str(tmp_path))


def test_an_image_counts_once_or_is_refused(tmp_path):
    for start, name in enumerate(("train", "val")):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    with pytest.raises(KdstepsError, match=r"val/a/0\.png is in validation and in test"):
        folder.load(path=str(tmp_path), validation="val", test="val")
    (tmp_path / "link").symlink_to("train")
    with pytest.raises(KdstepsError, match=r"link/a/0\.png is named twice"):
        folder.load(path=(f"{tmp_path}/train", f"{tmp_path}/link"))


@pytest.mark.parametrize("name", ["test tube", "trainer", "developed", "testset b", "set", "1"])
def test_other_names_that_begin_so_are_no_splits(name):
    assert split_of_folder(name) is None


def test_folders_with_the_same_folders_inside_may_be_splits_and_that_is_said(tmp_path, caplog):
    for start, name in enumerate(("fold1", "fold2")):
        write_folder(tmp_path / name, {"a": 1, "b": 1}, start=10 * start)
    with caplog.at_level("WARNING", "kdsteps"):
        assert folder.load(path=str(tmp_path)).class_names == ("fold1", "fold2")
    said = "fold1, fold2 and so on count as classes, but all have the same folders (a, b)"
    assert said in caplog.text
    assert "`train: fold1` and `test: fold2`" in caplog.text
    caplog.clear()
    write_folder(tmp_path / "fold2", {"c": 1}, start=30)
    with caplog.at_level("WARNING", "kdsteps"):
        folder.load(path=str(tmp_path))
    assert not caplog.messages


def test_a_class_may_be_called_train(tmp_path):
    source = folder.load(path=str(write_folder(tmp_path, {"car": 1, "plane": 1, "train": 1})))
    assert source.class_names == ("car", "plane", "train")


def test_deeper_folders_belong_to_their_class_and_other_files_are_passed_over(tmp_path):
    write_folder(tmp_path, {"a/images": 2, "b": 1})
    (tmp_path / "a" / "boxes.txt").write_text("0 0 1 1")
    (tmp_path / ".cache").mkdir()
    source = folder.load(path=str(tmp_path))
    assert source.names == ("a/images/0.png", "a/images/1.png", "b/0.png")


def test_tiny_imagenets_validation_part_is_read_by_its_list(tmp_path):
    write_folder(tmp_path / "train", {"n01": 1, "n02": 1})
    write_folder(tmp_path / "val", {"images": 2}, start=5)
    rows = ["0.png\tn02\t0\t0\t9\t9", "1.png\tn01\t0\t0\t9\t9"]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    source = folder.load(path=str(tmp_path), test="val")
    assert source.labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(pixels(source)[2], of_seed(5))


def test_some_of_each_class_are_spread_over_its_images(tmp_path):
    source = folder.load(path=str(write_folder(tmp_path, {"a": 9, "b": 2})), per_class=3)
    assert source.names == ("a/0.png", "a/3.png", "a/6.png", "b/0.png", "b/1.png")


def test_what_is_wrong_with_folders_is_said(tmp_path):
    with pytest.raises(KdstepsError, match="does not exist; name a folder with"):
        folder.load(path=str(tmp_path / "nothing"))
    (tmp_path / "loose").mkdir()
    color(0).save(tmp_path / "loose" / "0.png")
    with pytest.raises(KdstepsError, match="has no images in class folders"):
        folder.load(path=str(tmp_path / "loose"))
    parts = tmp_path / "parts"
    write_folder(parts / "train", {"a": 1, "b": 1})
    write_folder(parts / "test", {"a": 1, "c": 1})
    with pytest.raises(KdstepsError, match=r"test images have a class 'c' that the training"):
        folder.load(path=str(parts))
    with pytest.raises(KdstepsError, match=r"test: .*exam does not exist; name a folder, or"):
        folder.load(path=str(parts), test="exam")


# parquet


def test_numbers_and_bytes_are_read_from_all_files_in_order(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [1, 0, 2])
    write_parquet(tmp_path / "train-1.parquet", [0, 1], first=3)
    write_parquet(tmp_path / "test.parquet", [2], first=5)
    source = parquet.load(train=f"{tmp_path}/train-*.parquet", test=f"{tmp_path}/test.parquet")
    assert source.labels.tolist() == [1, 0, 2, 0, 1, 2]
    assert source.split.tolist() == ["train"] * 5 + ["test"]
    assert source.class_names == ("0", "1", "2")
    assert source.names[3] == "train-1.parquet row 0"
    for seed, image in enumerate(pixels(source)):
        assert np.array_equal(image, of_seed(seed))


def test_a_folder_or_a_list_of_files_will_do_as_well(tmp_path):
    one = write_parquet(tmp_path / "a.parquet", [0, 1])
    other = write_parquet(tmp_path / "b.parquet", [1, 0], first=2)
    assert (
        parquet.load(train=str(tmp_path)).names == parquet.load(train=[str(one), str(other)]).names
    )


def test_a_file_of_two_splits_is_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", [0, 1])
    write_parquet(tmp_path / "train.parquet", [0, 1])
    every, test = f"{tmp_path}/*.parquet", f"{tmp_path}/test.parquet"
    with pytest.raises(KdstepsError, match=r"test\.parquet is in train and in test; name files"):
        parquet.load(train=every, test=test)
    with pytest.raises(KdstepsError, match=r"test\.parquet is named twice"):
        parquet.load(train=(every, test))


def test_hugging_faces_struct_and_class_names_are_read(tmp_path):
    color(1).save(tmp_path / "one.png")
    images = [{"bytes": as_bytes(color(0)), "path": None}, {"bytes": None, "path": "one.png"}]
    features = {
        "img": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    table = pa.table({"img": images, "label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    source = parquet.load(train=str(tmp_path / "a.parquet"), image="img")
    assert source.class_names == ("cat", "dog")
    assert [np.array_equal(image, of_seed(seed)) for seed, image in enumerate(pixels(source))] == [
        True,
        True,
    ]


def test_names_beside_the_label_in_the_metadata_are_read(tmp_path):
    metadata = {"kind_names": '["fish", "bird"]', "label_names": '["x", "y"]'}
    path = write_parquet(tmp_path / "a.parquet", [0, 1], metadata=metadata, kind=[1, 0])
    assert parquet.load(train=str(path), label="kind").class_names == ("fish", "bird")


def test_labels_may_be_names(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["dog", "cat", "dog"])
    source = parquet.load(train=str(path))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, 1]
    coded = write_parquet(tmp_path / "b.parquet", pa.array(["dog", "cat"]).dictionary_encode())
    assert parquet.load(train=str(coded)).labels.tolist() == [1, 0]


def test_a_subset_takes_the_right_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 0, 1, 0, 1, 0])
    source = parquet.load(train=str(path), per_class=2)
    assert source.names == tuple(f"a.parquet row {row}" for row in (0, 1, 3, 4))
    for row, image in zip((0, 1, 3, 4), pixels(source), strict=True):
        assert np.array_equal(image, of_seed(row))


def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, 1], extra=[0.5, 1.5], gap=[None, 1])
    with pytest.raises(KdstepsError, match=r"no column 'imag' .*did you mean 'image'"):
        parquet.load(train=str(path), image="imag")
    with pytest.raises(KdstepsError, match="'extra' has the type double; it should hold the bytes"):
        parquet.load(train=str(path), image="extra")
    with pytest.raises(KdstepsError, match="'extra' has the type double; labels are whole"):
        parquet.load(train=str(path), label="extra")
    with pytest.raises(KdstepsError, match="row 0 has no 'gap'"):
        parquet.load(train=str(path), label="gap")
    with pytest.raises(KdstepsError, match="no file matches"):
        parquet.load(train=f"{tmp_path}/none-*.parquet")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:100])
    with pytest.raises(KdstepsError, match=r"cut.parquet: is not a readable Parquet file"):
        parquet.load(train=str(tmp_path / "cut.parquet"))
    named = write_parquet(tmp_path / "names.parquet", ["a", "b"])
    with pytest.raises(KdstepsError, match="has names in some files and numbers in others"):
        parquet.load(train=str(path), test=str(named))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(KdstepsError, match=r"pipe.parquet is not a regular file"):
        parquet.load(train=str(tmp_path / "pipe.parquet"))
    damaged = write_parquet(tmp_path / "d.parquet", [0, 1], metadata={"label_names": "[oops"})
    with pytest.raises(KdstepsError, match="class names in its metadata cannot be read"):
        parquet.load(train=str(damaged))


# torchvision


def write_idx(root: Path, name: str, *, packed: bool) -> Path:
    """Four idx files as MNIST has them: 3 training images and 2 test images of 2 x 2."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 3), ("t10k", 2)):
        images = struct.pack(">IIII", 0x803, count, 2, 2) + bytes(range(4 * count))
        labels = struct.pack(">II", 0x801, count) + bytes(range(count))
        for suffix, content in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            path = raw / f"{stem}-{suffix}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return raw


@pytest.mark.parametrize("packed", [True, False])
def test_mnists_kin_are_read_as_they_lie_and_nothing_is_written(tmp_path, packed):
    raw = write_idx(tmp_path, "MNIST", packed=packed)
    before = sorted(raw.iterdir())
    source = torchvision.load(name="MNIST", root=str(tmp_path))
    assert [image.tolist() for image in pixels(source)][:2] == [
        [[[0, 1], [2, 3]]],
        [[[4, 5], [6, 7]]],
    ]
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.split.tolist() == ["train"] * 3 + ["test"] * 2
    assert source.class_names == tuple("0123456789")
    assert sorted(raw.iterdir()) == before


def test_a_damaged_idx_file_is_named(tmp_path):
    raw = write_idx(tmp_path, "MNIST", packed=True)
    file = raw / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-12])
    with pytest.raises(KdstepsError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        torchvision.load(name="MNIST", root=str(tmp_path))
    file.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(KdstepsError, match=r"has 11 values for the shape \(3, 2, 2\)"):
        torchvision.load(name="MNIST", root=str(tmp_path))
    file.write_bytes(gzip.compress(b"\x89PNG is something else"))
    with pytest.raises(KdstepsError, match="is not an idx file"):
        torchvision.load(name="MNIST", root=str(tmp_path))


def test_a_data_set_in_torchvisions_own_format_is_read(tmp_path):
    """SVHN keeps a MATLAB file a part; its digit 0 has the label 10."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = {part: np.stack([np.asarray(color(seed)) for seed in seeds], axis=-1)
              for part, seeds in {"train": (0, 1), "test": (2, 3)}.items()}  # fmt: skip
    savemat(tmp_path / "train_32x32.mat", {"X": images["train"], "y": [[10], [3]]})
    savemat(tmp_path / "test_32x32.mat", {"X": images["test"], "y": [[1], [2]]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SVHN, "_check_integrity", lambda self: True)
        source = torchvision.load(name="SVHN", root=str(tmp_path))
    assert source.labels.tolist() == [0, 3, 1, 2]
    assert source.split.tolist() == ["train", "train", "test", "test"]
    for seed, image in enumerate(pixels(source)):
        assert np.array_equal(image, of_seed(seed))


def test_qmnists_first_label_is_the_class(tmp_path):
    """Its labels are eight numbers an image, from the class to the sheet of paper."""
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        sizes = struct.pack(">3I", 2, 28, 28)
        images = b"\0\0\x08\x03" + sizes + bytes(2 * 28 * 28)
        (raw / f"qmnist-{part}-images-idx3-ubyte").write_bytes(images)
        labels = np.array([[7] + [99] * 7, [3] + [99] * 7], dtype=">i4")
        content = b"\0\0\x0c\x02" + struct.pack(">2I", 2, 8) + labels.tobytes()
        (raw / f"qmnist-{part}-labels-idx2-int").write_bytes(content)
    source = torchvision.load(name="QMNIST", root=str(tmp_path))
    assert source.labels.tolist() == [7, 3, 7, 3]
    assert len(pixels(source)) == 4


def test_a_class_with_synonyms_has_the_name_that_comes_first():
    """As in Imagenette."""
    dataset = SimpleNamespace(classes=[("tench", "Tinca tinca"), ("church", "church building")])
    assert torchvision._class_names(dataset, 2) == ("tench", "church")


def test_files_that_are_not_there_and_may_not_be_fetched_are_asked_for(tmp_path):
    with pytest.raises(KdstepsError, match=r"CIFAR10 is not complete in .*download: true"):
        torchvision.load(name="CIFAR10", root=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_download_without_a_network_is_said(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def no_network(*args, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(KdstepsError, match=r"SVHN cannot be downloaded .*without a connection"):
        torchvision.load(name="SVHN", root=str(tmp_path), download=True)


def test_a_name_that_torchvision_has_not_gets_the_nearest():
    said = "name is 'CIFAR1000', .* torchvision; did you mean 'CIFAR100'"
    with pytest.raises(KdstepsError, match=f"datasets: {said}"):
        torchvision.load(name="CIFAR1000")
    while_planning = options_problem("data", "torchvision", {"name": "CIFAR1000", "root": "data"})
    assert re.match(said, while_planning or "")


# real images, where they are


@pytest.mark.skipif(not (REAL / "FashionMNIST").is_dir(), reason="needs shared/data/FashionMNIST")
def test_fashion_mnist_is_whole():
    source = torchvision.load(name="FashionMNIST", root=str(REAL))
    for part, count in (("train", 6000), ("test", 1000)):
        assert np.bincount(source.labels[source.split == part]).tolist() == [count] * 10
    assert source.class_names[9] == "Ankle boot"


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar100").is_dir(), reason="needs shared/data/cifar100")
def test_cifar_100_has_the_counts_names_and_statistics_of_its_description(tmp_path):
    options = {
        "train": str(REAL / "cifar100" / "train-*.parquet"),
        "test": str(REAL / "cifar100" / "test-*.parquet"),
        "label": "fine_label",
    }
    data, summary = prepared(tmp_path, "parquet", options, validation=0)
    assert summary["images_of_class"]["train"] == [500] * 100
    assert summary["images_of_class"]["test"] == [100] * 100
    assert (data.class_names[0], data.class_names[99]) == ("apple", "worm")
    assert summary["mean"] == pytest.approx([0.507075, 0.486549, 0.440918], abs=5e-7)
    assert summary["std"] == pytest.approx([0.267334, 0.256438, 0.276150], abs=5e-7)
    assert data.image_shape == (3, 32, 32)
    between = {tuple(entry["splits"]): entry["images"] for entry in summary["duplicates"]}
    assert between["train", "test"] > 0  # the set is known for them
