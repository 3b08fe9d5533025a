"""Digests of inputs: they change with names and contents, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pictures import color, write_folder

from kdsteps.errors import KdstepsError
from kdsteps.files import input_digests as digests
from kdsteps.files.input_digests import MANIFESTS, file_digest
from kdsteps.files.manifest import source_digest, source_paths

PACKAGE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    """A folder to work in, with a data set."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    rows = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(3)]
    (tmp_path / "set" / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    paths = [row.split(",")[0] for row in rows]
    pq.write_table(
        pa.table({"path": paths, "label": [0, 1] * 3}), tmp_path / "set" / "list.parquet"
    )
    return tmp_path


SOURCES = {
    "folder": {"path": "set"},
    "table": {"path": "set/list.csv"},
    "parquet list": {"path": "set/list.parquet"},
    "own": {"images": "set", "size": 3},
}


def digest(name: str) -> str:
    return source_digest({"parquet list": "table"}.get(name, name), SOURCES[name])


def age(root: Path) -> None:
    """Let files be older than the moment in which a change can go unnoticed."""
    for file in root.rglob("*"):
        os.utime(file, ns=(1_600_000_000 * 10**9,) * 2)


@pytest.mark.parametrize("name", SOURCES)
def test_an_exchanged_image_of_the_same_name_size_and_time_is_noticed(name):
    before = digest(name)
    assert digest(name) == before
    image = Path("set/cat/1.png")
    status, content = image.stat(), bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert image.stat().st_size == status.st_size
    assert digest(name) != before
    content[-1] ^= 1
    image.write_bytes(content)
    assert digest(name) == before


@pytest.mark.parametrize("name", ["folder", "own"])
def test_added_removed_and_renamed_images_are_noticed(name):
    before = digest(name)
    color(99).save("set/cat/9.png")
    added = digest(name)
    Path("set/cat/9.png").rename("set/dog/9.png")
    renamed = digest(name)
    Path("set/dog/9.png").unlink()
    assert len({before, added, renamed}) == 3
    assert digest(name) == before


def test_a_list_counts_with_the_images_that_it_names():
    before = digest("table")
    color(99).save("set/cat/9.png")
    assert digest("table") == before
    with Path("set/list.csv").open("a") as table:
        table.write("cat/9.png,cat\n")
    assert digest("table") != before


@pytest.mark.parametrize("name", SOURCES)
def test_times_places_and_debris_do_not_count(name, study, monkeypatch):
    before = digest(name)
    age(study / "set")
    (study / "set" / ".DS_Store").write_bytes(b"debris")
    assert digest(name) == before
    shutil.copytree(study, study.parent / f"copy {name}", ignore=lambda *_: {".kdsteps"})
    monkeypatch.chdir(study.parent / f"copy {name}")
    assert digest(name) == before
    shutil.rmtree(Path.cwd())


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, and not only two seconds after they were written."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**18))


def test_only_changed_files_are_read_again(settled, monkeypatch):
    before = digest("folder")
    read: list[str] = []
    find = digests._hash
    monkeypatch.setattr(digests, "_hash", lambda file: (read.append(file), find(file))[1])
    assert digest("folder") == before
    assert read == []
    color(99).save("set/cat/1.png")
    assert digest("folder") != before
    assert [Path(file).name for file in read] == ["1.png"]


@pytest.mark.parametrize("damage", [b"", b"no manifest", b"\xff\xfe", b"0\n{}", None])
def test_a_damaged_or_missing_manifest_is_made_again(settled, damage):
    before = digest("folder")
    (manifest,) = MANIFESTS.iterdir()
    whole = manifest.read_bytes()
    if damage is None:
        shutil.rmtree(MANIFESTS)
    else:
        manifest.write_bytes(damage)
    assert digest("folder") == before
    assert manifest.read_bytes() == whole


def test_a_changed_hash_in_a_manifest_is_not_believed(settled):
    before = digest("folder")
    (manifest,) = MANIFESTS.iterdir()
    manifest.write_text(manifest.read_text().replace("a", "b"))
    assert digest("folder") == before


def test_without_a_place_for_manifests_the_digest_is_the_same():
    before = digest("folder")
    shutil.rmtree(".kdsteps", ignore_errors=True)
    Path(".kdsteps").touch()
    assert digest("folder") == before


def test_missing_images_say_nothing():
    for name, options in SOURCES.items():
        kind = {"parquet list": "table"}.get(name, name)
        missing = {key: f"no {value}" for key, value in options.items() if isinstance(value, str)}
        assert source_digest(kind, missing) == ""
    assert file_digest("no file") == ""


def test_published_data_sets_are_known_by_their_names():
    assert source_digest("digits", {"size": 8}) == source_digest("digits", {"size": 16}) != ""
    options = {"name": "CIFAR10", "root": "nowhere", "download": True}
    assert source_digest("torchvision", options)


def test_parquet_files_count_by_pattern():
    for number in range(2):
        pq.write_table(pa.table({"image": [b"x"], "label": [number]}), f"train-{number}.parquet")
    options = {"train": "train-*.parquet", "validation": None, "test": None}
    before = source_digest("parquet", options)
    pq.write_table(pa.table({"image": [b"x"], "label": [2]}), "train-2.parquet")
    assert source_digest("parquet", options) not in ("", before)


def test_a_home_folder_is_found(monkeypatch, study):
    before = digest("folder")
    monkeypatch.setenv("HOME", str(study))
    assert source_digest("folder", {"path": "~/set"}) == before


def test_links_out_of_a_folder_are_refused_while_planning():
    Path("outside").mkdir()
    Path("set/cat/link").symlink_to("../../outside")
    with pytest.raises(KdstepsError, match="follow_links: true"):
        digest("folder")
    assert source_digest("folder", {"path": "set", "follow_links": True})


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_list_without_the_column_is_refused_with_the_columns_that_it_has(ending):
    list_file, said = f"set/list.{ending}", "has no column '{}' for the option `image`; {}"
    for column, right in {"pth": "did you mean 'path'", "file": "there are path, label"}.items():
        with pytest.raises(KdstepsError, match=f"{list_file}: " + said.format(column, right)):
            source_digest("table", {"path": list_file, "image": column})


# DVC


def test_the_hash_of_a_dvc_file_is_used_and_nothing_is_scanned(monkeypatch):
    tracked = {"outs": [{"md5": "0123.dir", "path": "set", "nfiles": 8, "hash": "md5"}]}
    Path("set.dvc").write_text(json.dumps(tracked))
    Path("weights.pt.dvc").write_text("outs:\n- md5: 4567\n  path: weights.pt\n")
    monkeypatch.setattr(digests, "content_hashes", lambda *_: pytest.fail("scanned"))
    assert digest("folder") == "0123.dir"
    assert source_digest("folder", {"path": "set/cat"}) == "0123.dir/cat"
    assert file_digest("weights.pt") == "4567"
    shutil.rmtree("set")  # as for a colleague who has no raw images
    assert digest("folder") == "0123.dir"


@pytest.mark.parametrize("text", ["", "[]", "outs: 3", "outs: [{path: other, md5: 1}]", "\t"])
def test_a_dvc_file_that_says_nothing_of_the_folder_is_passed_over(text):
    before = digest("folder")
    Path("set.dvc").write_text(text)
    assert digest("folder") == before


@pytest.mark.slow
def test_the_digest_is_the_one_that_dvc_computes():
    """So `dvc add` of a folder that is already used makes nothing run again."""
    pytest.importorskip("dvc")
    by_us = digest("folder"), file_digest("set/list.csv")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True)
    subprocess.run([*dvc, "add", "-q", "set"], check=True)
    assert by_us[0] in Path("set.dvc").read_text()
    assert digest("folder") == by_us[0]
    shutil.copy("set/list.csv", "list.csv")
    subprocess.run([*dvc, "add", "-q", "list.csv"], check=True)
    assert file_digest("list.csv") == by_us[1]


# cost


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; from kdsteps.files.manifest import source_digest\n"
        "source_digest('folder', {'path': 'set'})\n"
        "source_digest('table', {'path': 'set/list.csv'})\n"
        "assert not {'numpy', 'pandas', 'torch', 'pyarrow', 'PIL'} & sys.modules.keys()"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# what DVC has to follow


@pytest.mark.parametrize(
    ("kind", "options", "paths"),
    [
        ("digits", {"size": 8}, []),
        ("torchvision", {"name": "CIFAR10", "root": "data"}, []),
        ("folder", {"path": "set"}, ["set"]),
        ("folder", {"path": ["set", "more"]}, ["set", "more"]),
        ("folder", {"path": "set", "test": "held-out.txt"}, ["set"]),
        ("table", {"path": "set/list.csv"}, ["set/list.csv", "set"]),
        ("table", {"path": "absent.csv"}, ["absent.csv"]),
        (
            "parquet",
            {"train": "flowers/train-*.parquet", "test": ["a.parquet"]},
            ["flowers", "a.parquet"],
        ),
        ("own", {"images": "set", "size": 3, "mode": "fast"}, ["set"]),
        ("own", {"parts": {"one": "set/cat", "more": ["set/dog", 3]}}, ["set/cat", "set/dog"]),
    ],
)
def test_the_paths_to_follow_need_no_images(kind, options, paths):
    assert [str(path) for path in source_paths(kind, options)] == paths
