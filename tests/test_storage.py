"""What jobs declare whose files are in storage, and how they find them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from _study import TINY

from kdsteps.jobs import graph, storage
from kdsteps.jobs.inputs import GIVEN, as_text
from kdsteps.places import shipped
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

BIG = TINY["models"]["big"]
PAIR = {"pair": "pair", "method": "kd", "seed": "0"}
TEACHER = {"dataset": "pets", "teacher": "big"}


def study(path: str = "pets", **sections: Any) -> Study:
    return parse_study(
        TINY
        | {
            "datasets": {"pets": {"kind": "folder", "path": path}},
            "models": {
                "big": BIG | {"checkpoint": "big.pth"},
                "small": BIG | {"checkpoint": "weights/small.pth"},
            },
            "pairs": {"pair": {"dataset": "pets", "teacher": "big", "student": "small"}},
        }
        | sections
    )


@pytest.mark.parametrize(
    ("rule", "names", "own"),
    [
        ("prepare", {"dataset": "pets"}, ["pets"]),
        ("train", TEACHER, ["big.pth"]),
        ("train_check", TEACHER, []),
        ("score", TEACHER, []),
        ("distil", PAIR, ["weights/small.pth"]),
        ("tune", PAIR | {"trial": "1", "seed": "100"}, ["weights/small.pth"]),
        ("evaluate", PAIR, []),
        ("report", {}, []),
    ],
)
def test_images_and_checkpoints_are_declared_by_the_jobs_that_read_them(
    rule: str, names: dict[str, str], own: list[str]
):
    given = study(methods=TINY["methods"] | {"kd": {"tune": {"temperature": [1]}}})
    assert storage.declared(given, graph.node(given, rule, names))["own"] == own


def test_the_folder_of_a_network_is_declared_by_every_job_that_builds_it():
    models = {"big": {"family": "timm", "name": "local-dir:net"}, "small": BIG}
    given = study(models=models)
    for rule, names in (("train", TEACHER), ("cache", TEACHER), ("distil", PAIR)):
        assert storage.declared(given, graph.node(given, rule, names))["own"] == ["net"]


@pytest.mark.parametrize("path", ["/data/pets", "../pets"])
def test_images_outside_of_the_study_are_not_fetched(path: str):
    given = study(path)
    assert storage.declared(given, graph.node(given, "prepare", {"dataset": "pets"}))["own"] == []


def test_the_provenance_of_every_input_is_declared():
    given = study()
    assert storage.declared(given, graph.node(given, "evaluate", PAIR))["provenance"] == [
        "results/distil/pair/kd/0/student.provenance.json",
        "results/evaluate/teachers/pets/big/measures.provenance.json",
        "results/prepare/pets/images.provenance.json",
    ]


def test_no_job_caches_logits_for_others():
    for keep, expected in (("auto", "auto"), ("always", "auto"), ("never", "never")):
        given = study(cache=TINY["cache"] | {"outputs": keep})
        (names,) = graph.jobs(given, "cache_outputs")
        hints = storage.with_stored_files(graph.node(given, "cache_outputs", names)).hints
        assert (hints["keep"], hints["passes"]) == (expected, 0)


def test_other_machines_receive_the_digests_of_files_that_they_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "pets").mkdir(parents=True)
    (here / "pets/1.jpg").write_text("an image")
    there.mkdir()
    monkeypatch.chdir(here)
    found = graph.own_inputs(study())
    monkeypatch.chdir(there)
    assert graph.own_inputs(study(seeds=[1])) != found
    monkeypatch.setenv(GIVEN, as_text(found))
    given = study(seeds=[2])
    settings = graph.settings(given, "prepare", {"dataset": "pets"})
    assert settings.as_json()["source"] == found["datasets.pets"].digest != ""


def test_a_job_finds_fetched_files_and_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, here = tmp_path / "root", tmp_path / "here"
    for path in ("pets/1.jpg", "weights/small.pth", "results/a", "mine.csv"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("fetched")
    (here / "weights").mkdir(parents=True)
    (here / "mine.csv").write_text("here")
    monkeypatch.chdir(here)
    with storage.files_below(root):
        assert Path("pets/1.jpg").read_text() == Path("weights/small.pth").read_text() == "fetched"
        assert Path("mine.csv").read_text() == "here"
        assert not Path("results").exists()
    assert sorted(str(path) for path in Path().rglob("*")) == ["mine.csv", "weights"]


def test_a_file_in_the_study_itself_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with storage.files_below(None):
        assert list(tmp_path.iterdir()) == []


def test_the_folder_of_fetched_files_follows_from_one_of_them():
    path = "results/report/index.html"
    assert storage.root_of(f".snakemake/storage/s3/bucket/study/{path}", path) == (
        ".snakemake/storage/s3/bucket/study"
    )


def test_only_the_rules_of_kdsteps_may_stay_behind(tmp_path: Path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("snakemake.logging")
    before = list(log.filters)
    try:
        for _ in range(2):  # Snakemake may read the workflow twice
            storage.expect_own_rules()
        assert len(log.filters) <= len(before) + 1
        for path in (shipped("workflow") / "rules/student.smk", tmp_path.parent / "net.py"):
            log.warning(f"Ignoring source file {os.path.relpath(path)}! Only files relative to")
    finally:
        log.filters[:] = before
    assert [record.getMessage().split()[3] for record in caplog.records] == ["../net.py!"]
