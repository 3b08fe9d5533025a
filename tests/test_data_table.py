"""Lists of images: CSV, TSV and Parquet files with a path and a label per row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pictures import color, prepared, write_folder

from kdsteps.data.kinds import table
from kdsteps.errors import KdstepsError

ROWS = [("a/0.png", "cat", "train"), ("a/1.png", "dog", "train"), ("b/0.png", "cat", "test")]


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", {"a": 2, "b": 1})


def write(root, rows, ending=".csv", header=("path", "label", "split"), separator=None):
    file = root / f"list{ending}"
    if ending == ".parquet":
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), file)
    else:
        separator = separator or {".csv": ",", ".tsv": "\t"}[ending]
        lines = [separator.join(map(str, row)) for row in (header, *rows)]
        file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_list_is_read_in_its_order_with_paths_relative_to_it(root, ending):
    source = table.load(path=write(root, ROWS, ending), split="split")
    assert source.names == ("a/0.png", "a/1.png", "b/0.png")
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.split.tolist() == ["train", "train", "test"]
    found = [picture.pixels.transpose(1, 2, 0).tolist() for picture in source.images.pictures(1)]
    assert found == [np.asarray(color(seed)).tolist() for seed in (0, 1, 2)]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_labels_may_be_numbers(root, ending):
    rows = [("a/0.png", 0), ("a/1.png", 2), ("b/0.png", 1)]
    source = table.load(path=write(root, rows, ending, header=("path", "label")))
    assert source.labels.tolist() == [0, 2, 1]
    assert source.class_names == ("0", "1", "2")
    assert set(source.split) == {""}


@pytest.mark.parametrize("labels", [("007", "010"), ("1.5", "2"), ("9" * 5000, "1")])
def test_labels_that_are_not_plain_numbers_are_names(root, labels):
    rows = list(zip(("a/0.png", "a/1.png"), labels, strict=True))
    source = table.load(path=write(root, rows, header=("path", "label")))
    assert source.class_names == tuple(sorted(labels))


def test_numbers_with_large_gaps_are_refused_at_once(root):
    rows = [("a/0.png", 0), ("a/1.png", 10**15)]
    with pytest.raises(KdstepsError, match="go up to 1000000000000000, and there are 2 images"):
        table.load(path=write(root, rows, header=("path", "label")))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_a_byte_order_mark_are_no_obstacle(root, separator):
    path = write(root, ROWS, separator=separator)
    (root / "list.csv").write_bytes(b"\xef\xbb\xbf" + (root / "list.csv").read_bytes())
    assert table.load(path=path).names == ("a/0.png", "a/1.png", "b/0.png")


def test_columns_and_splits_have_the_names_that_params_say(root):
    rows = [*ROWS[:2], ("b/0.png", "cat", "fold 3"), ("b/0.png", "cat", "unused")]
    path = write(root, rows, header=("file", "kind", "fold"))
    source = table.load(path=path, image="file", label="kind", split="fold", test="fold 3")
    assert source.split.tolist() == ["train", "train", "test"]


def test_a_list_is_prepared_as_the_folder_that_it_lists(tmp_path):
    root = write_folder(tmp_path / "set", {"a": 10, "b": 10})
    rows = [(f"{name}/{number}.png", name) for name in "ab" for number in range(10)]
    listed = {"path": write(root, rows, header=("path", "label"))}
    one, _ = prepared(tmp_path / "one", "table", listed)
    other, _ = prepared(tmp_path / "other", "folder", {"path": str(root)})
    assert (one.images == other.images).all()
    assert (one.split == other.split).all()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"image": "file"}, "no column 'file' for the option `image`"),
        (ROWS, {"split": "fold"}, "no column 'fold' for the option `split`"),
        (ROWS, {"test": "fold"}, "test needs `split`"),
        (ROWS, {"split": "split", "test": "exam"}, "no row has the split 'exam'"),
        (ROWS, {"split": "split", "test": "train"}, "train and test are both 'train'; an image is"),
        ([*ROWS, ("a/0.png", "cat", "dev set")], {"split": "split"}, "row 3 has the split 'dev"),
        ([*ROWS, ("", "cat", "train")], {}, "row 3 has no 'path'"),
        ([*ROWS, ("a/0.png", "", "train")], {}, "row 3 has no 'label'"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(root, rows, options, message):
    with pytest.raises(KdstepsError, match=message):
        table.load(path=write(root, rows), **options)


def test_a_list_that_is_none_is_refused(root):
    with pytest.raises(KdstepsError, match=r"none.csv' does not exist"):
        table.load(path=str(root / "none.csv"))
    (root / "list.xlsx").touch()
    with pytest.raises(KdstepsError, match=r"ends in '.xlsx'; use .csv"):
        table.load(path=str(root / "list.xlsx"))
    (root / "list.csv").write_text("path,label\na/0.png,cat,more\n")
    with pytest.raises(KdstepsError, match=r"list.csv: the row .a/0.png,cat,more. does not have"):
        table.load(path=str(root / "list.csv"))
    (root / "list.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(KdstepsError, match=r"list.parquet: cannot be read"):
        table.load(path=str(root / "list.parquet"))


def test_a_row_with_a_value_too_many_or_too_few_is_shown(root):
    for row in (("a/0.png", "cat, large"), ("a/0.png",)):
        path = write(root, [("a/1.png", "dog"), row], header=("path", "label"))
        with pytest.raises(KdstepsError) as refused:
            table.load(path=path)
        assert f"the row {','.join(row)!r} does not have 2 values; put quotes" in str(refused.value)


def test_a_column_that_is_there_twice_is_not_chosen(root):
    path = write(root, [("a/0.png", "cat", "x")], header=("path", "label", "label"))
    with pytest.raises(KdstepsError, match="has two columns 'label'; rename one of them"):
        table.load(path=path)


def test_images_that_the_list_names_and_that_do_not_exist_are_named(tmp_path, root):
    path = write(root, [*ROWS, ("a/9.png", "dog", "test")])
    with pytest.raises(KdstepsError, match=r"1 of 4 images cannot be read: a/9.png: does"):
        prepared(tmp_path / "out", "table", {"path": path})


def test_images_inside_of_a_parquet_file_are_for_another_kind(root):
    pq.write_table(pa.table({"path": [b"png"], "label": [0]}), root / "list.parquet")
    with pytest.raises(KdstepsError, match=r"type binary; .*kind `parquet`"):
        table.load(path=str(root / "list.parquet"))
