"""The user's images and weights have to be those that a job was planned with, from start to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pictures import FILES, color, settings_of, write_folder

from kdsteps.cli import running
from kdsteps.cli.calls import Call
from kdsteps.errors import KdstepsError
from kdsteps.files.input_digests import file_digest
from kdsteps.files.manifest import source_digest
from kdsteps.jobs.own_files import check_own_files
from kdsteps.jobs.settings import PrepareSettings, TrainSettings
from kdsteps.study.settings import Model
from kdsteps.study.training_settings import Train

CHANGED = "is not what this run began with; run snakemake again"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"a": 3, "b": 3})
    Path("weights.pt").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def tracked(folder: Path) -> None:
    """The images and the weights are tracked by DVC."""
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        run(*command)
    run("dvc", "add", "-q", "photos", "weights.pt")


def run(*command: str) -> None:
    program = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    subprocess.run(program, check=True, capture_output=True)


def planned(**options: Any) -> PrepareSettings:
    """A job that is planned now, and prepares the images."""
    options = {"path": "photos"} | options
    settings = settings_of("folder", options)
    return settings.model_copy(update={"source": source_digest("folder", options)})


def training(checkpoint: str = "weights.pt") -> TrainSettings:
    model = Model(family="timm", options={"name": "resnet18", "checkpoint": checkpoint})
    return TrainSettings(model=model, train=Train(), weights=file_digest(checkpoint))


def test_files_as_they_were_planned_are_accepted():
    check_own_files(planned())
    check_own_files(training())


def test_images_and_weights_that_changed_since_are_refused():
    images, weights = planned(), training()
    color(99).save("photos/a/1.png")
    Path("weights.pt").write_bytes(b"others")
    with pytest.raises(KdstepsError, match=f"^photos: {CHANGED}"):
        check_own_files(images)
    with pytest.raises(KdstepsError, match=rf"^weights\.pt: {CHANGED}"):
        check_own_files(weights)


def test_files_that_are_not_those_that_dvc_tracks_are_refused(tracked: None):
    """They are planned by what DVC tracks, whatever is there."""
    check_own_files(planned())
    check_own_files(training())
    color(99).save("photos/a/1.png")
    Path("weights.pt").write_bytes(b"others")
    for settings, path in ((planned(), "photos"), (training(), "weights.pt")):
        with pytest.raises(KdstepsError, match=rf"^{path}: is not what {path}\.dvc tracks; run "):
            check_own_files(settings)


def test_images_that_dvc_tracks_and_that_are_not_there_are_refused(tracked: None):
    Path("photos/a/1.png").unlink()
    with pytest.raises(KdstepsError, match=r"`dvc add photos` .* `dvc checkout photos\.dvc`"):
        check_own_files(planned())


def test_a_part_of_what_dvc_tracks_is_named_by_what_it_tracks(tracked: None):
    color(99).save("photos/a/1.png")
    with pytest.raises(KdstepsError, match=r"^photos: is not what photos\.dvc tracks"):
        check_own_files(planned(path="photos/a"))


def test_what_dvc_ignores_may_change(tracked: None):
    Path(".dvcignore").write_text("notes.txt\n")
    Path("photos/notes.txt").write_text("mine")
    check_own_files(planned())


def test_images_whose_dvc_cache_is_elsewhere_are_accepted(tracked: None, folder: Path):
    (folder / ".dvc/cache").rename(folder / "moved")
    check_own_files(planned())


def test_a_dvc_file_without_a_repository_is_taken_at_its_word(tracked: None, folder: Path):
    (folder / ".dvc").rename(folder / "gone")
    color(99).save("photos/a/1.png")
    check_own_files(planned())


class Changing:
    """A stage that prepares images while they change."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, job: Any) -> None:
        for path in job.outputs.values():
            path.write_text("{}")
        color(99).save(self._path)


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Path]:
    """The files of a job during which an image changes."""
    stage = Changing("photos/a/1.png")
    explain = SimpleNamespace(out_of_memory=lambda error, job: None)
    modules = {"kdsteps.stages.prepare": stage}
    monkeypatch.setattr(running, "import_module", lambda name: modules.get(name, explain))
    return {name: Path("out", file) for name, file in FILES.items()}


@pytest.mark.parametrize("with_dvc", [False, True])
def test_a_job_during_which_its_images_changed_leaves_nothing(
    changing: Mapping[str, Path], with_dvc: bool, request: pytest.FixtureRequest
):
    if with_dvc:
        request.getfixturevalue("tracked")
    Path("out").mkdir()
    call = Call("prepare", planned(), {}, dict(changing), None, {}, {})
    with pytest.raises(KdstepsError, match=r"^photos: is not what "):
        running.run_call(call)
    assert not [path for path in changing.values() if path.exists()]
