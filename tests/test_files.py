"""Files of results: whole or not there, the same bytes for the same content, damage always told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import read_array, write_array
from kdsteps.files.atomic import all_or_none, atomic, check_places, remove_stale_drafts
from kdsteps.files.checkpoints import (
    load_state,
    read_checkpoint,
    read_checkpoint_header,
    save_state,
    write_checkpoint,
)
from kdsteps.files.columns import HISTORY
from kdsteps.files.digests import file_digest, write_digests
from kdsteps.files.tables import read_table, table_metadata, write_table
from kdsteps.files.text import read_json, write_json

ROWS = {"epoch": [1, 2], "name": ["labels", "labels"], "value": [0.5, 0.25]}
WEIGHTS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}
WRITERS = {
    "json": lambda path: write_json(path, {"a": 1}),
    "table": lambda path: write_table(path, ROWS, HISTORY),
    "array": lambda path: write_array(path, np.zeros((2, 3))),
    "checkpoint": lambda path: write_checkpoint(path, WEIGHTS, {"a": 1}),
    "state": lambda path: save_state(path, {"a": torch.zeros(3)}),
}


def raise_full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after(times: int) -> Callable[[int], None]:
    """An fsync that finds the disk full, but for the first few times."""
    left = iter([None] * times)
    return lambda handle: next(left, ...) and raise_full()


# whole or not there


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_appears_whole_and_alone(tmp_path, kind):
    WRITERS[kind](tmp_path / "deep" / "file")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_content_gives_the_same_bytes(tmp_path, kind):
    for name in ("one", "two"):
        WRITERS[kind](tmp_path / name / "file")
    assert (tmp_path / "one/file").read_bytes() == (tmp_path / "two/file").read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, kind):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", raise_full)
    with pytest.raises(KdstepsError, match=r"file: the disk is full; free some space"):
        WRITERS[kind](path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_an_error_of_ours_leaves_the_old_file_and_goes_on(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as part:
        part.write_text(f"new {1 / 0}")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EDQUOT, "the disk is full; free some space and run again"),
        (errno.EACCES, r"cannot be written \(Permission denied\); make .* writable"),
        (errno.EROFS, r"cannot be written \(Read-only file system\); make .* writable"),
        (errno.EFBIG, r"exceeds the limit on file sizes; raise it"),
    ],
)
def test_each_way_a_disk_refuses_has_its_sentence(tmp_path, monkeypatch, code, sentence):
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KdstepsError, match=sentence):
        write_json(tmp_path / "a.json", {})


def test_files_written_together_appear_when_all_are_written(tmp_path):
    final = {"one": tmp_path / "one", "two": tmp_path / "deep" / "two"}
    with all_or_none(final) as drafts:
        write_json(drafts["one"], {})
        write_json(drafts["two"], {})
        assert not any(path.exists() for path in final.values())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "one", "two"]
    assert read_json(final["two"]) == {}


def test_files_written_together_stay_as_they_were_if_one_fails(tmp_path, monkeypatch):
    final = {name: tmp_path / name for name in ("one", "two")}
    final["one"].write_text("old")
    monkeypatch.setattr(os, "fsync", full_after(1))
    with (
        pytest.raises(KdstepsError, match=rf"^{final['two']}: the disk is full"),
        all_or_none(final) as drafts,
    ):
        [write_json(path, {}) for path in drafts.values()]
    monkeypatch.undo()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_file_that_was_not_written_leaves_the_others_as_they_were(tmp_path):
    final = {name: tmp_path / name for name in ("one", "two")}
    with pytest.raises(FileNotFoundError), all_or_none(final) as drafts:
        write_json(drafts["one"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_between_the_files_is_said_with_the_final_path(tmp_path, monkeypatch):
    final = {name: tmp_path / name for name in ("one", "two")}

    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_and_fill(drafts: dict[str, Path]) -> None:
        [write_json(path, {}) for path in drafts.values()]
        monkeypatch.setattr(os, "replace", refuse)

    message = rf"^{final['one']}: the disk is full"
    with pytest.raises(KdstepsError, match=message), all_or_none(final) as drafts:
        write_and_fill(drafts)
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_dead_processes_are_removed_and_those_of_the_living_left(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    stale = tmp_path / f".one.{ended.pid}.part"
    stale_inner = tmp_path / f"..one.{ended.pid}.part.{ended.pid}.part"
    living = tmp_path / f".one.{os.getppid()}.part"
    for path in (stale, stale_inner, living):
        path.write_text("half")
    with all_or_none({"one": tmp_path / "one"}) as drafts:
        write_json(drafts["one"], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "one"]
    (tmp_path / f".{ended.pid}.part").write_text("half of a copy that a link is replaced by")
    remove_stale_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "one"]


def test_the_digests_of_a_jobs_files_go_by_their_final_names(tmp_path):
    final = {name: tmp_path / f"{name}.json" for name in ("a", "digest", "b")}
    with all_or_none(final) as drafts:
        write_json(drafts["a"], {"x": 1})
        write_json(drafts["b"], {"x": 2})
        write_digests(drafts, final)
    digests = read_json(final["digest"])
    assert digests == {f"{name}.json": file_digest(final[name]) for name in ("a", "b")}
    assert digests["a.json"] != digests["b.json"]


def test_places_that_can_be_written_pass_and_nothing_is_made(tmp_path):
    check_places([tmp_path / "a/b/c.json", tmp_path / "d.json"])
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KdstepsError, match=r"a file has the name of its folder .*/file; move"):
        check_places([tmp_path / "file/deep/a.json"])
    with pytest.raises(KdstepsError, match="a folder has this name; move it away"):
        check_places([tmp_path / "folder"])
    with pytest.raises(KdstepsError, match="pipe: is not a regular file; move it away"):
        check_places([tmp_path / "pipe"])


# what is written reads back


def test_a_table_reads_back_with_what_it_was_made_with(tmp_path):
    path = tmp_path / "history.parquet"
    write_table(path, ROWS, HISTORY, settings={"epochs": 2}, provenance={"seconds": 1.5})
    assert read_table(path, HISTORY).to_pydict() == ROWS
    assert table_metadata(path) == {"settings": {"epochs": 2}, "provenance": {"seconds": 1.5}}


def test_a_table_whose_provenance_cannot_be_read_is_damaged(tmp_path):
    path = tmp_path / "history.parquet"
    write_table(path, ROWS, HISTORY)
    damaged = pq.read_table(path).replace_schema_metadata({"kdsteps.provenance": '{"seconds": 1'})
    pq.write_table(damaged, path)
    with pytest.raises(KdstepsError, match=f"{path}: is not a complete Parquet file"):
        table_metadata(path)


def test_weights_read_back_to_the_byte_with_their_header(tmp_path):
    path = tmp_path / "net.safetensors"
    write_checkpoint(path, WEIGHTS, {"classes": ["a", "b"]})
    weights, header = read_checkpoint(path)
    assert header == read_checkpoint_header(path) == {"classes": ["a", "b"]}
    assert weights.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_state_reads_back_and_a_damaged_one_counts_as_none(tmp_path, caplog):
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    save_state(path, {"step": 3, "weight": torch.ones(2)})
    state = load_state(path)
    assert state is not None
    assert (state["step"], state["weight"].tolist()) == (3, [1.0, 1.0])
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert load_state(path) is None
    path.write_bytes(content[:-40])
    assert load_state(path) is None
    assert "the run starts from its beginning" in caplog.text


# damage


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path):
    path = tmp_path / "net.safetensors"
    write_checkpoint(path, {"weight": torch.ones(4)}, {})
    whole = path.read_bytes()
    for place in range(len(whole) - 16, len(whole)):
        flipped(path, place)
        with pytest.raises(KdstepsError, match="is damaged: its weights do not match"):
            read_checkpoint(path)
        path.write_bytes(whole)


def test_a_flipped_bit_in_a_table_is_noticed(tmp_path):
    path = tmp_path / "history.parquet"
    values = np.random.default_rng(0).normal(size=1000)
    rows = {"epoch": np.arange(1000), "name": ["loss"] * 1000, "value": values}
    write_table(path, rows, HISTORY)
    flipped(path, path.stat().st_size // 2)
    with pytest.raises(KdstepsError, match="is not a complete Parquet file"):
        read_table(path, HISTORY)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (read_checkpoint, "safetensors file"),
        (read_checkpoint_header, "safetensors file"),
        (read_json, "JSON file"),
        (read_array, "array file"),
        (lambda path: read_table(path, HISTORY), "Parquet file"),
    ],
)
def test_what_is_missing_or_something_else_is_told(tmp_path, read, kind):
    path = tmp_path / "file"
    with pytest.raises(KdstepsError, match=r"file: not found; run the stage that writes it"):
        read(path)
    for content in (b"", b"something else", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(
            KdstepsError, match=rf"file: is not a complete {kind} \(.*\); delete it and"
        ):
            read(path)


def test_a_checkpoint_without_or_with_a_broken_header_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(KdstepsError, match="has no kdsteps header; a checkpoint from elsewhere"):
        read_checkpoint(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"kdsteps": "{"})
    with pytest.raises(KdstepsError, match="is not a complete checkpoint"):
        read_checkpoint(path)


def test_a_missing_or_wrong_column_is_named(tmp_path):
    path = tmp_path / "history.parquet"
    pq.write_table(pa.table({"epoch": [1], "value": [0.5]}), path)
    with pytest.raises(KdstepsError, match=r"has no column 'name' \(it has epoch, value\)"):
        read_table(path, HISTORY)
    pq.write_table(pa.table({"epoch": [1], "name": ["a"], "value": ["b"]}), path)
    with pytest.raises(KdstepsError, match="column 'epoch' has the type int64; it should be int32"):
        read_table(path, HISTORY)


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(KdstepsError, match=r"is not a JSON object"):
        read_json(tmp_path / "a.json")
