"""The teacher's answers: kept or live, a student is the same to the byte."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _networks import IMAGE_SHAPE, NUM_CLASSES, network, teacher_of
from _training import (
    NUM_IMAGES,
    RECIPE,
    fit_of,
    frozen_teacher,
    images,
    method_of,
    same_bytes,
    weights,
)
from torch import Tensor

from kdsteps.data.images import Views
from kdsteps.errors import KdstepsError
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import (
    DistilSettings,
    LogitSettings,
    PrepareSettings,
    TrainSettings,
)
from kdsteps.models.chain import Chain
from kdsteps.stages.cache import run as run_cache
from kdsteps.stages.distil import run as run_distil
from kdsteps.stages.prepare import run as run_prepare
from kdsteps.stages.train import run as run_train
from kdsteps.study.settings import Model, Prepare
from kdsteps.study.training_settings import Distil, Train, ViewSettings
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import (
    Forecast,
    Terms,
    decide,
    forecast,
    teacher_outputs,
    write_outputs,
)
from kdsteps.teachers.logits import CachedOutputs, LiveTeacher, description_path
from kdsteps.training.loop import views_of

VIEWS = views_of(RECIPE)
COUNT = VIEWS.count  # 18
BATCH = RECIPE.batch_size  # 8
ALWAYS, AUTO, NEVER = Terms("always", 0, 99), Terms("auto", COUNT + 1, 99), Terms("never", 99, 99)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "key.npy"


def live_of(teacher: Chain | None = None, batch_size: int = BATCH, **options: Any) -> LiveTeacher:
    return LiveTeacher(teacher or frozen_teacher(), batch_size, **options)


def kept(
    path: Path, live: LiveTeacher | None = None, views: Views = VIEWS, terms: Terms = ALWAYS
) -> CachedOutputs:
    found = teacher_outputs(path, live or live_of(), images(), views, terms)
    assert isinstance(found, CachedOutputs)
    return found


def every_pair() -> tuple[Tensor, Tensor]:
    """All images in all views, in a random order."""
    place = torch.randperm(NUM_IMAGES * COUNT, generator=torch.Generator().manual_seed(3))
    return place // COUNT, place % COUNT


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_answer_is_the_same_whatever_images_are_asked_about_beside_it(path, batch_size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        live, part = live_of(batch_size=batch_size), images()
        looked_up = kept(path, live)
        for size in (batch_size, 5):
            index, view = (pair[:40].split(size) for pair in every_pair())
            for drawn in map(part.take, index, [VIEWS] * len(index), view):
                assert torch.equal(looked_up(drawn)["head"], live(drawn)["head"])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_logits_in_every_precision_are_the_same_cached_and_live(path, precision):
    live = live_of(precision=precision)
    cached = kept(path, live)
    index, view = (pair[:8] for pair in every_pair())
    drawn = images().take(index, VIEWS, view)
    assert torch.equal(cached(drawn)["head"], live(drawn)["head"])
    same = torch.equal(live(drawn)["head"], live_of()(drawn)["head"])
    assert same == (precision == "tf32")  # on a CPU it is float32


@pytest.mark.parametrize("kind", ["large wide resnet", "mobilenet", "large vit"])
def test_answers_of_other_families_are_the_same_kept_and_live(path, kind):
    live = live_of(frozen(teacher_of(kind), IMAGE_SHAPE))
    looked_up = kept(path, live)
    index, view = (pair[:8] for pair in every_pair())
    drawn = images().take(index, VIEWS, view)
    assert torch.equal(looked_up(drawn)["head"], live(drawn)["head"])


@pytest.mark.parametrize("name", ["kd", "dkd", "block_kd"])
def test_a_student_taught_by_kept_logits_is_the_one_taught_live(path, name):
    teacher = frozen_teacher()
    students = []
    for given in (kept(path, live_of(teacher)), live_of(teacher), None):
        fit = fit_of(name, teacher=teacher, outputs=given)
        fit.run()
        students.append(weights(fit))
    assert same_bytes(students[0], students[1])
    assert same_bytes(students[1], students[2])


def test_unrounded_answers_teach_the_same_up_to_the_rounding(path):
    teacher = frozen_teacher()

    def exact(drawn: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"head": teacher(drawn.images)}

    exact.waits = False  # type: ignore[attr-defined]
    histories = []
    for given in (kept(path, live_of(teacher)), exact):
        fit = fit_of("kd", teacher=teacher, outputs=given)
        fit.run()
        histories.append((fit.history.of("kd"), weights(fit)))
    assert histories[0][0] == pytest.approx(histories[1][0], rel=1e-3)
    assert not same_bytes(histories[0][1], histories[1][1])


@pytest.mark.parametrize(
    ("name", "views"),
    [("feature_only", Views()), ("embedding", Views()), ("embedding", Views(1, True))],
)
def test_a_student_taught_by_kept_features_is_the_one_taught_live(name, views, path):
    teacher = frozen_teacher()
    layers = method_of(name, teacher=teacher).feature_layers
    assert layers
    augmented = {"crop_padding": views.crop_padding, "flip": views.flip}
    students = []
    for given in (kept(path, live_of(teacher, layers=layers), views), None):
        fit = fit_of(name, teacher=teacher, outputs=given, **augmented)
        fit.run()
        students.append(weights(fit))
    assert same_bytes(*students)


def test_with_kept_logits_the_teacher_is_not_run(path):
    teacher = frozen_teacher()
    looked_up = kept(path, live_of(teacher))
    fit = fit_of("kd", teacher=teacher, outputs=looked_up)
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    fit.run()
    assert not calls


class Dying(LiveTeacher):
    """A teacher that is killed, with the process, after some batches."""

    left = 0

    def compute(self, pictures: Tensor) -> Tensor:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().compute(pictures)


class Counting(LiveTeacher):
    """A teacher that counts how often it is asked."""

    asked = 0

    def compute(self, pictures: Tensor) -> Tensor:
        self.asked += 1
        return super().compute(pictures)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kdsteps.teachers.logit_cache.SHARD", 4 * COUNT
    )  # six shards of four images, nine batches each


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import kdsteps.teachers.logit_cache as keeping
import test_teacher_logits as here
keeping.SHARD = 4 * here.COUNT
dying = here.Dying(here.frozen_teacher(), here.BATCH)
dying.left = int(sys.argv[2])
keeping.write_outputs(Path(sys.argv[1]), dying, here.images(), here.VIEWS)
"""


@pytest.mark.slow
def test_writing_that_was_killed_goes_on_after_its_last_shard(path, small_shards):
    path.parent.mkdir()
    tests = Path(__file__).parent
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(path),
            str(1 + 3 * 9),
        ],  # a look at the width, three of six shards
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        check=False,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(path.with_suffix(".progress").read_text().splitlines()) == 3
    live = Counting(frozen_teacher(), BATCH)
    write_outputs(path, live, images(), VIEWS)
    assert live.asked == 1 + 3 * 9  # a look at the width, and the shards that are left
    alone = path.with_name("alone.npy")
    write_outputs(alone, live_of(), images(), VIEWS)
    assert path.read_bytes() == alone.read_bytes()
    assert description_path(path).read_bytes() == description_path(alone).read_bytes()
    assert sorted(file.suffix for file in path.parent.iterdir()) == [
        ".json",
        ".json",
        ".npy",
        ".npy",
    ]


def test_a_half_written_shard_and_a_torn_note_are_written_again(path, small_shards):
    live = live_of()
    path.parent.mkdir()
    write_outputs(path, live, images(), VIEWS)
    whole = path.read_bytes()
    sums = json.loads(description_path(path).read_text())["checksums"]
    half = bytearray(whole)
    half[-10] ^= 1  # in the last shard
    path.with_suffix(".npy.part").write_bytes(half)
    notes = [f"{number} {value}\n" for number, value in enumerate(sums)]
    path.with_suffix(".progress").write_text("".join(notes) + "0 1")
    path.unlink()
    counting = Counting(frozen_teacher(), BATCH)
    write_outputs(path, counting, images(), VIEWS)
    assert path.read_bytes() == whole
    assert counting.asked == 1 + 2 * 9  # a look, the shard that changed, that of the torn note


def full(file: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_a_sentence_and_an_array_without_space_is_not_left(path, monkeypatch):
    path.parent.mkdir()
    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(2):
        with pytest.raises(KdstepsError, match=r"key\.npy: cannot be written \(the disk is full\)"):
            write_outputs(path, live_of(), images(), VIEWS)
        assert list(path.parent.iterdir()) == []


def test_space_is_reserved_for_the_rest_of_an_unfinished_array(path, monkeypatch):
    """Writing into a hole of it would end the process by SIGBUS where the disk is full."""
    path.parent.mkdir()
    write_outputs(path, live_of(), images(), VIEWS)
    unfinished = path.rename(path.with_suffix(".npy.part"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(KdstepsError, match="the disk is full"):
        write_outputs(path, live_of(), images(), VIEWS)
    assert unfinished.exists()


def changed_byte(path: Path) -> None:
    rows = np.load(path, mmap_mode="r+")
    rows[NUM_IMAGES // 2, 3, 1] += 1
    rows.flush()


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def undescribed(path: Path) -> None:
    description_path(path).unlink()


def of_other_images(path: Path) -> None:
    rows = np.load(path)
    np.save(path, rows[:-1])


@pytest.mark.parametrize("damage", [changed_byte, cut_off, undescribed, of_other_images])
def test_a_damaged_file_is_named_and_written_again(path, damage, caplog):
    kept(path)
    whole = path.read_bytes()
    damage(path)
    kept(path)
    assert f"{path}: " in caplog.text
    assert "it is written again" in caplog.text
    assert path.read_bytes() == whole


def test_the_outputs_of_another_teacher_are_replaced(path, caplog):
    kept(path)
    other = live_of(frozen(network("large resnet", seed=7), IMAGE_SHAPE))
    kept(path, other)
    assert re.search(r"differs from the teacher by up to .*; it is written again", caplog.text)
    kept(path, other)


def test_the_outputs_for_other_images_are_replaced(path, caplog):
    kept(path)
    teacher_outputs(path, live_of(), images(seed=1), VIEWS, ALWAYS)
    assert "differs from the teacher" in caplog.text


def test_answers_that_are_no_numbers_are_not_kept(path):
    teacher = frozen_teacher()
    with torch.no_grad():
        teacher.fc.bias[1] = 1e6
    with pytest.raises(KdstepsError, match="65504"):
        kept(path, live_of(teacher))
    assert not path.exists()


def expected(size_mib: float = 10.0, views: int = 162) -> Forecast:
    return Forecast(num_images=50_000, num_views=views, size_mib=size_mib, seconds=90.0)


@pytest.mark.parametrize(
    ("keep", "passes", "budget", "kept"),
    [
        ("auto", 163, 10, True),
        ("auto", 162, 10, False),  # as many passes as keeping costs
        ("auto", 1000, 9, False),
        ("always", 1, 10, True),
    ],
)
def test_answers_are_kept_where_that_is_cheaper_over_the_whole_study(keep, passes, budget, kept):
    found, why = decide(expected(), Terms(keep, passes, budget))
    assert found is kept
    assert why.startswith("cached" if kept else "not cached")


def test_keeping_more_than_the_budget_is_refused_with_the_forecast():
    with pytest.raises(KdstepsError, match=r"162 views, 1.51 GiB, 90.0 s .*budget of 1.00 GiB"):
        decide(expected(size_mib=1545.0), Terms("always", 999, 1024))


def test_the_forecast_knows_the_size_before_anything_is_written(path):
    found = forecast(live_of(), images(), VIEWS)
    assert found.size_mib * 2**20 == NUM_IMAGES * COUNT * NUM_CLASSES * 2
    assert found.seconds > 0
    kept(path)
    header = path.stat().st_size - found.size_mib * 2**20
    assert 0 < header < 256


def test_never_means_that_not_even_a_file_that_is_there_is_used(path, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    live = live_of()
    assert teacher_outputs(path, live, images(), VIEWS, NEVER) is live
    assert not path.exists()
    kept(path)
    assert teacher_outputs(path, live, images(), VIEWS, NEVER) is live
    assert "on the fly" in caplog.text


def test_the_log_says_what_was_decided_and_why(path, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    few = Terms("auto", COUNT, 100)
    live = live_of()
    assert teacher_outputs(path, live, images(), VIEWS, few) is live
    assert "24 images x 18 views" in caplog.text
    assert "not cached, only 18 passes would use it" in caplog.text
    kept(path, terms=AUTO)
    assert "cached, 19 passes would use it" in caplog.text
    assert "equal byte by byte" in caplog.text


def test_while_answers_are_written_no_other_job_can_write_them(path):
    locked = []

    class Watching(LiveTeacher):
        def compute(self, pictures: Tensor) -> Tensor:
            if path.with_suffix(".npy.part").exists():
                with path.with_suffix(".lock").open("w") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        locked.append(True)
                    else:
                        locked.append(False)
            return super().compute(pictures)

    kept(path, Watching(frozen_teacher(), BATCH))
    assert locked
    assert all(locked)


ENTRY = Model(family="cifar_resnet", options={"depth": 8, "widths": [2, 2, 4, 4]})
TRAINING = {name: getattr(RECIPE, name) for name in RECIPE.model_fields_set} | {"batch_size": 128}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared digits and a teacher."""
    folder = tmp_path_factory.mktemp("study")
    files = data_files(folder)
    run_prepare(
        Job(PrepareSettings(kind="digits", options={"size": 8}, prepare=Prepare()), {}, files)
    )
    train_teacher(folder, files)
    return folder


def train_teacher(folder: Path, files: dict[str, Path], seed: int = 0) -> None:
    section = Train(**TRAINING | {"epochs": 1, "seed": seed})
    outputs = {"model": folder / "teacher.safetensors", "history": folder / "history.parquet"}
    run_train(Job(TrainSettings(model=ENTRY, train=section), files, outputs))


def data_files(folder: Path) -> dict[str, Path]:
    names = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}
    return {name: folder / file for name, file in names.items()}


def ticket_of(study: Path, keep: str, passes: int = 99, **views: Any) -> bytes:
    settings = LogitSettings(views=ViewSettings(**{"crop_padding": 1, "batch_size": 128} | views))
    target = Path("ticket.json")
    inputs = data_files(study) | {"model": study / "teacher.safetensors"}
    job = Job(settings, inputs, {"ticket": target}, keep=keep, passes=passes)
    run_cache(job)
    return target.read_bytes()


def student_of(study: Path, keep: str, **section: Any) -> bytes:
    target = Path("student.safetensors")
    settings = DistilSettings(
        student=ENTRY,
        method="kd",
        options={},
        distil=Distil(**TRAINING | {"flip": False} | section),
        seed=0,
    )
    inputs = data_files(study) | {"teacher": study / "teacher.safetensors"}
    outputs = {"model": target, "history": Path("history.parquet")}
    run_distil(Job(settings, inputs, outputs, keep=keep))
    return target.read_bytes()


def test_the_ticket_is_the_same_whether_answers_were_kept_or_not(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(".kdsteps/outputs")
    without = ticket_of(study, "never")
    assert not folder.exists()
    assert ticket_of(study, "auto", passes=1) == without
    assert not list(folder.glob("*.npy"))
    assert ticket_of(study, "always") == without
    ticket = json.loads(without)
    assert np.load(folder / f"{ticket['key']}.npy").shape == tuple(ticket["shape"])
    assert ticket["settings"]["views"]["crop_padding"] == 1


def test_other_views_have_other_keys(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [{}, {"flip": True}, {"crop_padding": 0}, {"batch_size": 8}]
    given += [{"precision": precision} for precision in ("tf32", "bfloat16", "float16")]
    keys = {json.loads(ticket_of(study, "never", **views))["key"] for views in given}
    assert len(keys) == len(given)


def test_another_teacher_has_another_key(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = json.loads(ticket_of(study, "never"))["key"]
    folder = tmp_path / "other"
    train_teacher(folder, data_files(study), seed=1)
    for name, file in data_files(study).items():
        (folder / data_files(folder)[name].name).write_bytes(file.read_bytes())
    assert json.loads(ticket_of(folder, "never"))["key"] != first


def test_a_run_uses_what_the_stage_cache_kept_and_is_the_same_without(
    study, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "kdsteps")
    ticket_of(study, "always")
    caplog.clear()
    looked_up = student_of(study, "auto")
    assert "reading teacher logits from .kdsteps/outputs" in caplog.text
    assert student_of(study, "never") == looked_up
    for file in Path(".kdsteps/outputs").iterdir():
        file.unlink()
    caplog.clear()
    assert student_of(study, "auto") == looked_up
    assert "not cached, only 2 passes would use it" in caplog.text


def test_views_beyond_number_are_asked_live(study, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    student_of(study, "always", mixup=0.5)
    assert not Path(".kdsteps/outputs").exists()
