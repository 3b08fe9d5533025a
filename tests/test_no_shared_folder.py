"""Studies whose jobs share no folder: all files go through a storage plugin of Snakemake."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from _study import TINY, Study
from test_input_stories import STUDY, write_checkpoint, write_photos

from kdsteps.jobs import graph
from kdsteps.study.loading import parse_study

pytestmark = [
    pytest.mark.stories,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("snakemake_storage_plugin_fs") is None,
        reason="needs requirements-remotes.lock (make remotes)",
    ),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync"),
]

PHOTOS: dict[str, Any] = STUDY | {
    "pairs": {"photos": STUDY["pairs"]["photos"]},
    "methods": {"kd": {}, "feature_only": {}},
}
OWN = ("photos", "given.safetensors")

MACHINE = """#!/bin/sh
# Start a job in an empty folder, as if on another machine.
folder=$(mktemp -d {machines}/XXXXXX)
cp "$1" "$folder.sh"
cd "$folder"
(sh "$folder.sh"; echo $? >"$folder.status") >"$folder.log" 2>&1 </dev/null &
echo "$folder"
"""
STATUS = """#!/bin/sh
case "$(cat "$1.status" 2>/dev/null)" in "") echo running;; 0) echo success;; *) echo failed;; esac
"""


def study_with_files_in(storage: Path, path: Path, params: dict[str, Any]) -> Study:
    """A study whose images and checkpoint are in a storage, and here only as DVC's hashes."""
    study = Study.new(path, params)
    write_photos(study.path / "photos")
    write_checkpoint(study.path / "given.safetensors")
    study.dvc("add", *OWN)
    study.commit()
    storage.mkdir()
    for name in OWN:
        shutil.move(study.path / name, storage / name)
    return study


def stored_in(storage: Path) -> list[str]:
    """The options for a storage, which is a folder that no job uses in any other way."""
    return ["--default-storage-provider", "fs", "--default-storage-prefix", str(storage)]


def check_results(study: Study, storage: Path, options: list[str]) -> None:
    """Check that all results are in the storage alone, and up to date there and in the study."""
    described = parse_study(study.params())
    wanted = {path for stage in graph.STAGES for path in graph.all_outputs(described, stage)}
    found = {str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file()}
    assert wanted <= found
    left = {path.name for path in study.path.iterdir()} & {"results", "photos", "given.safetensors"}
    assert left == set()
    assert not (study.path / ".kdsteps/outputs").exists()
    assert "Nothing to be done" in study.snakemake("--dry-run", *options)
    shutil.copytree(storage / "results", study.path / "results")
    assert study.planned() == {}


def test_all_stages_run_with_their_files_in_storage_and_the_results_count_at_home(tmp_path: Path):
    storage = tmp_path / "storage"
    study = study_with_files_in(storage, tmp_path / "study", PHOTOS)
    shared = ("persistence", "software-deployment", "sources", "source-cache")
    options = [*stored_in(storage), "--shared-fs-usage", *shared]
    study.snakemake(*options)
    check_results(study, storage, options)


@pytest.mark.skipif(
    find_spec("snakemake_executor_plugin_cluster_generic") is None,
    reason="needs requirements-remotes.lock (make remotes)",
)
def test_jobs_on_machines_that_share_nothing_find_all_that_they_read(tmp_path: Path):
    storage, machines = tmp_path / "storage", tmp_path / "machines"
    models = STUDY["models"]
    student = {key: value for key, value in models["given"].items() if key != "train"}
    params = PHOTOS | {
        "models": models | {"small": student},
        "methods": {"labels": {}},
        "distil": TINY["distil"] | {"batch_size": 16},
    }
    study = study_with_files_in(storage, tmp_path / "study", params)
    machines.mkdir()
    for name, text in (("submit", MACHINE), ("status", STATUS)):
        (tmp_path / name).write_text(text.replace("{machines}", str(machines)))
        (tmp_path / name).chmod(0o755)
    options = [*stored_in(storage), "--shared-fs-usage", "none"]
    study.snakemake(
        *options,
        *("--executor", "cluster-generic", "--jobs", "2", "--job-deploy-sources"),
        *("--cluster-generic-submit-cmd", str(tmp_path / "submit")),
        *("--cluster-generic-status-cmd", str(tmp_path / "status")),
        *("--seconds-between-status-checks", "1"),
    )
    assert len(list(machines.glob("*.status"))) == 5
    check_results(study, storage, options)
