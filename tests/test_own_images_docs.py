"""The examples of docs/own-images.md are read as they are written there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from _pictures import as_bytes, color, prepared, write_folder

from kdsteps.data.kinds import folder, parquet, table, torchvision
from kdsteps.study import registry
from kdsteps.study.part_options import FILLED_IN

TEXT = (Path(__file__).parents[1] / "docs" / "own-images.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
ENTRIES = [
    (name, entry)
    for block in BLOCKS
    for name, entry in block.get("datasets", {}).items()
    if entry["kind"] != "torchvision"  # which would be downloaded
]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Every folder and file that the examples name."""
    monkeypatch.chdir(tmp_path)
    for start, root in enumerate(("pets", "more-pets", "birds/train", "birds/val", "imagenet")):
        write_folder(tmp_path / root, {"cat": 6, "dog": 6}, start=20 * start)
    Path("pets/held-out.txt").write_text("cat/1\ndog/2.png\n")
    write_folder(tmp_path, {"photos": 12}, start=200)
    rows = [
        f"photos/{n}.png,{'beagle' if n % 2 else 'poodle'},{'test' if n > 8 else 'train'}"
        for n in range(12)
    ]
    Path("dogs.csv").write_text("\n".join(["file,breed,fold", *rows]))
    Path("flowers").mkdir()
    for start, name in enumerate(("train-0", "train-1", "test")):
        contents = [as_bytes(color(300 + 10 * start + n)) for n in range(8)]
        columns = pa.table({"image": contents, "species": [0, 1] * 4})
        pq.write_table(columns, f"flowers/{name}.parquet")


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_an_example_is_prepared(images, tmp_path, name, entry):
    kind = registry.find("data", entry["kind"], name)
    options = kind.parse({key: value for key, value in entry.items() if key != "kind"}, name)
    data, summary = prepared(tmp_path / "out", entry["kind"], options)
    size = entry.get("image_size", entry["store"])
    assert data.image_shape == (3, size, size)
    assert data.num_classes == 2
    assert min(summary["images"].values()) > 0
    if "fold" in entry.values():
        assert summary["images"]["test"] == 3
    if entry.get("test") == "held-out.txt":
        assert summary["images"]["test"] == 2


def test_every_example_is_there():
    assert len(ENTRIES) == 7
    assert {entry["kind"] for block in BLOCKS for entry in block.get("datasets", {}).values()} == {
        *("folder", "table", "parquet", "torchvision")
    }


@pytest.mark.parametrize("kind", [folder, parquet, table, torchvision])
def test_every_option_of_a_kind_is_described(kind):
    described = inspect.getdoc(kind.load).partition("Args:")[2].partition("Raises:")[0]
    names = re.findall(r"^    (\w[\w, ]*): [A-Z0-9]", described, re.MULTILINE)
    known = {name for line in names for name in line.split(", ")}
    options = registry.find("data", kind.__name__.rpartition(".")[2], "datasets").json_schema
    assert known - set(FILLED_IN["data"]) == set(options["properties"])


def test_the_stage_for_dvc_is_the_one_that_comes_with_kdsteps():
    shipped = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
    (shown,) = [block["stages"] for block in BLOCKS if "stages" in block]
    assert shown["resolve"]["cmd"] == shipped["resolve"]["cmd"]
    assert shown["resolve"]["deps"][:1] == shipped["resolve"]["deps"]
