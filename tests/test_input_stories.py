"""What users live through whose images and checkpoints change, with snakemake, dvc and git.

One pair learns from photos, its teacher starting from a checkpoint; another one learns from digits
and so has nothing to do with either.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from _pictures import color
from _study import TINY, Study
from safetensors.torch import save_file

from kdsteps.models import build_model

pytestmark = [pytest.mark.stories, pytest.mark.slow]

BIG, SMALL = TINY["models"]["big"], TINY["models"]["small"]
STUDY = TINY | {
    "datasets": {"photos": {"kind": "folder", "path": "photos"}, "digits": {"kind": "digits"}},
    "models": {
        "big": BIG,
        "small": SMALL,
        "given": BIG | {"checkpoint": "given.safetensors", "train": {"epochs": 0}},
    },
    "pairs": {
        "photos": {"dataset": "photos", "teacher": "given", "student": "small"},
        "digits": {"dataset": "digits", "teacher": "big", "student": "small"},
    },
    "methods": {"labels": {}, "kd": {}},
    "train": {"epochs": 1, "batch_size": 16, "teacher_check": "warn"},
    "distil": {"epochs": 1, "batch_size": 16},
    "prepare": {"validation": 0.2},
}
FOLLOWED = ["kdsteps", "photos", "given.safetensors"]
OF_PHOTOS = Counter(
    prepare=1,
    train=1,
    train_check=1,
    cache_outputs=1,
    distil=2,
    evaluate=2,
    evaluate_teacher=1,
    evaluate_latency=1,
    report=1,
)
OF_THE_CHECKPOINT = OF_PHOTOS - Counter(prepare=1, distil=1, evaluate=1)  # `labels` has no teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


def write_photos(root: Path) -> None:
    for number in range(40):
        path = root / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        color(number, 8, 8).save(path)


def write_checkpoint(path: Path) -> None:
    network = build_model(
        BIG["family"],
        num_classes=2,
        in_channels=3,
        image_size=(8, 8),
        depth=BIG["depth"],
        widths=tuple(BIG["widths"]),
    )
    save_file(network.state_dict(), path)


def follow(study: Study, dependencies: list[str]) -> None:
    content = yaml.safe_load((study.path / "dvc.yaml").read_text())
    content["stages"]["resolve"]["deps"] = dependencies
    (study.path / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def repository(path: Path) -> Study:
    """An empty repository of git and DVC."""
    path.mkdir()
    made = Study(path)
    made.git("init", "--quiet")
    made.dvc("init", "--quiet")
    return made


@pytest.fixture(scope="module")
def built(folder: Path) -> Study:
    """A study of untracked images that plain snakemake has finished."""
    study = Study.new(folder / "built", STUDY)
    write_photos(study.path / "photos")
    write_checkpoint(study.path / "given.safetensors")
    study.snakemake()
    return study


@pytest.fixture(scope="module")
def shared(built: Study, folder: Path) -> Study:
    """The same after `dvc add`, recorded with DVC, a commit and a push."""
    study = built.copy(folder / "shared")
    follow(study, FOLLOWED)
    study.dvc("add", "photos", "given.safetensors")
    study.record()
    study.share(folder / "remote")
    study.executed()
    return study


@pytest.fixture
def study(built: Study, tmp_path: Path) -> Study:
    return built.copy(tmp_path / "study")


@pytest.fixture
def tracked(shared: Study, tmp_path: Path) -> Study:
    return shared.copy(tmp_path / "study")


def test_an_exchanged_added_or_removed_image_reruns_what_depends_on_it(study: Study):
    photos = study.path / "photos"
    image, added = photos / "cat" / "0.png", photos / "cat" / "added.png"
    color(99, 8, 8).save(image)
    assert study.planned() == OF_PHOTOS
    color(0, 8, 8).save(image)
    assert study.planned() == Counter()  # contents count, not times
    color(99, 8, 8).save(added)
    assert study.planned() == OF_PHOTOS
    added.unlink()
    image.unlink()
    assert study.planned() == OF_PHOTOS


def test_an_exchanged_checkpoint_reruns_its_training_and_what_depends_on_it(study: Study):
    write_checkpoint(study.path / "given.safetensors")
    assert study.planned() == OF_THE_CHECKPOINT


def test_dvc_is_never_left_without_a_dependency(study: Study):
    said = study.dvc("repro", status=255)
    assert "`deps: [kdsteps, photos, given.safetensors]`" in said
    assert "Traceback" not in said
    assert not (study.path / "dvc.lock").exists()


def test_images_that_dvc_tracks_are_known_by_their_hash_and_not_scanned(tracked: Study):
    shutil.rmtree(tracked.path / ".kdsteps" / "manifests")
    assert tracked.planned() == Counter()
    assert not (tracked.path / ".kdsteps" / "manifests").exists()
    image = tracked.path / "photos" / "cat" / "0.png"
    color(99, 8, 8).save(image)
    assert tracked.planned() == Counter()  # it is not added yet
    assert "photos" in tracked.dvc("status")
    tracked.dvc("add", "photos")
    assert tracked.planned() == OF_PHOTOS
    assert not (tracked.path / ".kdsteps" / "manifests").exists()


def test_dvc_notices_an_exchanged_checkpoint_and_runs_what_depends_on_it(tracked: Study):
    assert "up to date" in tracked.dvc("status")
    write_checkpoint(tracked.path / "given.safetensors")
    assert "modified:           given.safetensors" in tracked.dvc("status")
    tracked.dvc("repro")
    assert set(tracked.executed()) == {
        "train/photos/given",
        "train/photos/given/check",
        "cache/photos/given/outputs_plain_batch16",
        "evaluate/teachers/photos/given",
        "evaluate/latency/photos",
        "evaluate/students/photos/kd/0",
        "distil/photos/kd/0",
        "report",
    }
    assert "up to date" in tracked.dvc("status")
    assert tracked.planned() == Counter()


def test_images_imported_from_another_repository_are_followed_there(study: Study, tmp_path: Path):
    source = repository(tmp_path / "source")
    shutil.move(study.path / "photos", source.path / "photos")
    source.dvc("add", "photos")
    source.commit()
    study.dvc("import", str(source.path), "photos")
    assert study.planned() == Counter()  # the same images
    follow(study, FOLLOWED)
    color(99, 8, 8).save(source.path / "photos" / "cat" / "0.png")
    source.dvc("add", "photos")
    source.commit()
    assert study.planned() == Counter()
    assert "update available" in study.dvc("status", "photos.dvc")
    study.dvc("update", "photos.dvc")
    assert study.planned() == OF_PHOTOS


def test_a_colleague_without_the_images_has_nothing_to_compute(shared: Study, tmp_path: Path):
    theirs = shared.clone(tmp_path / "theirs")
    theirs.dvc("pull", "dvc.yaml")
    assert not (theirs.path / "photos").exists()
    assert theirs.planned() == Counter()
    assert "deleted:            photos" in theirs.dvc("status")
    assert "missing data 'source'" in theirs.dvc("repro", status=255)
    theirs.dvc("repro", "--allow-missing")
    assert theirs.executed() == {}
    assert theirs.git("status", "--porcelain") == ""


def test_a_colleague_with_the_images_has_nothing_to_compute(shared: Study, tmp_path: Path):
    theirs = shared.clone(tmp_path / "theirs")
    theirs.dvc("pull")
    assert theirs.planned() == Counter()
    assert "up to date" in theirs.dvc("status")
    theirs.dvc("repro")
    assert theirs.executed() == {}
