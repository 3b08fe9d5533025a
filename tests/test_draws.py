"""Fixed draws of the augmentation: the same whoever makes them, all used alike, and cached."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _commands import STUDY, outputs_of, write_study
from _fake_cuda import Watch, fake_cuda, on_cuda
from _networks import NUM_CLASSES
from _prepared import costs_of
from _training import (
    NUM_IMAGES,
    RECIPE,
    Stopped,
    frozen_teacher,
    images,
    method_of,
    same_bytes,
    stopped_after,
    weights,
)
from scipy import stats
from torch import Tensor

from kdsteps.cli.calls import call_of
from kdsteps.cli.running import run_call
from kdsteps.data.augmentation import NO_AUGMENTATION, Augmentation
from kdsteps.data.draws import DrawnSplit, Draws
from kdsteps.data.images import ImageSplit, Order, Views
from kdsteps.data.streaming import StreamedSplit
from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.study import Study
from kdsteps.teachers.logit_cache import Terms, forecast, teacher_outputs
from kdsteps.teachers.logits import CachedOutputs, LiveTeacher
from kdsteps.training.drawn import DrawnFit
from kdsteps.training.loop import Resume
from kdsteps.training.processes import Processes

K = 4
STRONG = {
    "pixels": Augmentation(NUM_CLASSES, randaugment=9, resized_crop=0.5),
    "mixup": Augmentation(NUM_CLASSES, mixup=0.4),
    "cutmix": Augmentation(NUM_CLASSES, cutmix=1.0),
    "everything": Augmentation(NUM_CLASSES, 9, 0.5, 0.4, 1.0),
    "crop and flip": Augmentation(NUM_CLASSES),
}
each_kind = pytest.mark.parametrize("augmentation", STRONG.values(), ids=STRONG)

AUGMENTED = {
    "crop_padding": 1,
    "flip": True,
    "randaugment": 9,
    "resized_crop": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
}
"""Keys of a recipe that `DrawnFit` turns off, since its images are augmented already."""


def draws(augmentation: Augmentation = STRONG["everything"], seed: int = 0) -> Draws:
    return Draws(1, True, augmentation, K, seed)


def drawn(augmentation: Augmentation = STRONG["everything"], **options: Any) -> DrawnSplit:
    return DrawnSplit(images(), draws(augmentation, **options))


def every_draw() -> tuple[Tensor, Tensor]:
    """All images in all draws, (n,) each, in a random order."""
    place = torch.randperm(NUM_IMAGES * K, generator=torch.Generator().manual_seed(1))
    return place // K, place % K


# What a draw is


@each_kind
def test_a_draw_does_not_depend_on_the_batch_in_which_it_is_made(augmentation):
    split = drawn(augmentation)
    index, draw = every_draw()
    whole = split.take(index, split.draws, draw)
    for place in range(0, len(index), 7):
        one = split.take(index[place : place + 1], split.draws, draw[place : place + 1])
        assert torch.equal(one.images[0], whole.images[place])
        assert torch.equal(one.targets[0], whole.targets[place])
    assert torch.equal(whole.index, index) and torch.equal(whole.view, draw)
    assert torch.equal(whole.labels, split.labels[index])


@each_kind
def test_draws_of_an_image_differ_and_another_seed_makes_others(augmentation):
    index, draw = torch.zeros(K, dtype=torch.int64), torch.arange(K)
    ours, theirs = (drawn(augmentation, seed=seed).take(index, Views(), draw) for seed in (0, 1))
    assert len({image.numpy().tobytes() for image in ours.images}) > 1
    assert not torch.equal(ours.images, theirs.images)


def test_a_stored_result_of_the_hash_stays_what_it_is():
    """Cached logits of earlier runs belong to these draws."""
    index, draw = torch.tensor([0, 1, 23]), torch.tensor([0, 3, 1])
    assert draws().views_of(index, draw).tolist() == VIEWS
    assert draws().partners(index, draw, NUM_IMAGES).tolist() == PARTNERS


VIEWS, PARTNERS = [1, 8, 3], [12, 10, 4]


def test_partners_are_all_the_other_images_alike():
    count = 20_000
    index = torch.full((count,), 3)
    found = draws().partners(index, torch.arange(count), 8)
    counts = torch.bincount(found, minlength=8)
    assert counts[3] == 0
    others = counts[torch.arange(8) != 3].numpy()
    assert stats.chisquare(others).pvalue > 1e-4
    assert draws().partners(torch.tensor([0]), torch.tensor([0]), 1).tolist() == [0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_fractions_follow_the_beta_distribution_folded_at_a_half(alpha):
    size = 20_000
    given = draws(Augmentation(NUM_CLASSES, mixup=alpha))
    _, found = given._weights(torch.arange(size), torch.zeros(size, dtype=torch.int64), (1, 1))
    assert found.min() >= 0.5
    folded = stats.beta(alpha, alpha)
    outcome = stats.kstest(found.numpy(), lambda x: folded.cdf(x) - folded.cdf(1 - x))
    assert outcome.pvalue > 1e-4


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_have_the_fractions_that_are_seen(kind):
    """Images of one color each: the mean of a mixed one is the mean of what it was made of."""
    colors = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 16, 16)
    plain = ImageSplit(colors.clone(), torch.arange(8), torch.zeros(1), torch.full((1,), 1 / 255))
    split = DrawnSplit(plain, Draws(0, False, Augmentation(8, **{kind: 1.0}), 16))
    index, draw = torch.arange(8).repeat(16), torch.arange(16).repeat_interleave(8)
    batch = split.take(index, Views(), draw)
    assert torch.allclose(batch.targets.sum(dim=1), torch.ones(128))
    assert torch.equal(batch.targets.argmax(dim=1), batch.labels)
    assert (batch.targets.amax(dim=1) < 0.9).sum() > 30
    seen = batch.images.mean(dim=(1, 2, 3))
    assert torch.allclose(seen, batch.targets @ torch.arange(8.0), atol=1e-4)


def test_with_both_kinds_of_mixing_half_of_the_images_get_each():
    size = 2000
    weight, _ = draws(Augmentation(NUM_CLASSES, mixup=1.0, cutmix=1.0))._weights(
        torch.arange(size), torch.zeros(size, dtype=torch.int64), (8, 8)
    )
    patched = ((weight == 0) | (weight == 1)).flatten(1).all(dim=1).double().mean()
    assert 0.45 < patched < 0.55


def test_images_without_labels_are_mixed_and_keep_no_targets():
    split = drawn(Augmentation(0, mixup=1.0))
    index, draw = every_draw()
    batch, labeled = (
        each.take(index, Views(), draw)
        for each in (split, drawn(Augmentation(NUM_CLASSES, mixup=1.0)))
    )
    assert torch.equal(batch.images, labeled.images)
    assert torch.equal(batch.targets, batch.labels)


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in STRONG), ("everything", 2)])
def test_streamed_images_have_the_same_draws(kind, workers, tmp_path):
    resident = images()
    np.save(tmp_path / "images.npy", resident.images.contiguous().numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    half = torch.full((3,), 0.5)
    streamed = StreamedSplit(
        mapped,
        np.arange(NUM_IMAGES),
        resident.labels,
        half,
        half,
        workers=workers,
        memory_format=torch.channels_last,
    )
    index, draw = every_draw()
    orders = [Order(*pair, 0) for pair in zip(index.split(8), draw.split(8), strict=True)]
    ours, theirs = (
        list(DrawnSplit(part, draws(STRONG[kind])).batches(orders, Views()))
        for part in (streamed, resident)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.images.is_contiguous(memory_format=torch.channels_last)


def test_the_parts_of_two_processes_are_the_batch_of_one():
    split = drawn()
    whole = split.orders(8, Views(), torch.Generator().manual_seed(0))[0]
    parts = [split.made(Processes(rank, 2).order(whole, 1), Views()) for rank in range(2)]
    alone = split.made(whole, Views())
    assert torch.equal(torch.cat([part.images for part in parts]), alone.images)
    assert torch.equal(torch.cat([part.targets for part in parts]), alone.targets)


def test_nothing_about_a_draw_waits_for_a_gpu(monkeypatch):
    given = draws(Augmentation(NUM_CLASSES, mixup=1.0, cutmix=1.0))
    index, draw = torch.arange(8), torch.arange(8) % K
    pixels, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % NUM_CLASSES

    def make(*tensors: Tensor) -> Tensor:
        index, draw, pixels, labels = tensors
        given.views_of(index, draw)
        given.partners(index, draw, NUM_IMAGES)
        return given.mixed(pixels, labels, index, draw)[0]

    make(index, draw, pixels, labels)
    with fake_cuda(monkeypatch):
        tensors = [on_cuda(tensor) for tensor in (index, draw, pixels, labels)]
        make(*tensors)  # copies the table of fractions
        with Watch() as watch:
            found = make(*tensors)
    assert watch.waits == []
    assert found.device.type == "cuda"


def test_draws_need_their_split():
    with pytest.raises(TypeError, match="DrawnSplit"):
        draws().show(images().images, torch.zeros(NUM_IMAGES, dtype=torch.int64))


# Training on them


def fit(
    name: str = "kd",
    augmentation: Augmentation = STRONG["everything"],
    *,
    cache: Path | None = None,
    epochs: int = 2,
    resume: Path | None = None,
    **options: Any,
) -> DrawnFit:
    teacher = frozen_teacher()
    method, split = method_of(name, teacher=teacher, **options), drawn(augmentation)
    outputs: Any = None
    if cache is not None:
        live = LiveTeacher(teacher, RECIPE.batch_size, layers=method.feature_layers)
        outputs = teacher_outputs(cache, live, split, split.draws, Terms("always", 0, 99))
        assert isinstance(outputs, CachedOutputs)
    torch.manual_seed(0)
    return DrawnFit(
        method,
        split,
        RECIPE.model_copy(update={"epochs": epochs, **AUGMENTED}),
        seed=0,
        validate=dict,
        teacher=outputs,
        resume=None if resume is None else Resume(resume, "", 0.0),
    )


def test_images_in_draws_are_augmented_no_further():
    known = vars(Views()).keys() | vars(NO_AUGMENTATION).keys()
    assert AUGMENTED.keys() == known - {"num_classes"}, "every kind of augmentation"
    run = fit("labels")
    assert run.views == Views()
    assert not (run.augmentation.changes_pixels or run.augmentation.mixes)


def watched(run: DrawnFit) -> Counter[tuple[int, int]]:
    """How often each draw of each image is used."""
    seen: Counter[tuple[int, int]] = Counter()
    take_step = run.take_step

    def count(batch: Any) -> Tensor:
        seen.update(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
        return take_step(batch)

    run.take_step = count  # type: ignore[method-assign]
    return seen


def test_every_draw_of_every_image_is_used_equally_often():
    run = fit("labels", STRONG["mixup"], epochs=2 * K)
    seen = watched(run)
    run.run()
    assert seen == {(image, draw): 2 for image in range(NUM_IMAGES) for draw in range(K)}


def test_a_run_that_was_stopped_continues_with_the_draws_that_follow(tmp_path):
    whole = fit(epochs=3)
    whole.run()
    for step in (3, 5):  # at the end of an epoch, and within one
        state = tmp_path / f"{step}.pt"
        with pytest.raises(Stopped):
            stopped_after(step, fit(epochs=3, resume=state)).run()
        later = fit(epochs=3, resume=state)
        later.run()
        assert same_bytes(weights(whole), weights(later))


@pytest.mark.parametrize("name", ["kd", "block_kd", "embedding", "feature_only"])
@pytest.mark.parametrize("kind", ["everything", "crop and flip"])
def test_a_student_is_the_same_with_cached_outputs_and_without(name, kind, tmp_path):
    students = []
    for cache in (tmp_path / "outputs.npy", None):
        run = fit(name, STRONG[kind], cache=cache)
        run.run()
        students.append(weights(run))
    assert same_bytes(*students)


def test_the_audit_finds_logits_of_other_draws(tmp_path, caplog):
    path = tmp_path / "outputs.npy"
    live = LiveTeacher(frozen_teacher(), RECIPE.batch_size)
    for seed in (0, 1):
        split = drawn(seed=seed)
        teacher_outputs(path, live, split, split.draws, Terms("always", 0, 99))
    assert "differs from the teacher" in caplog.text
    found = CachedOutputs(path, live, split, split.draws)
    index, draw = every_draw()
    batch = split.take(index, split.draws, draw)
    assert torch.equal(found(batch)["head"], live(batch)["head"])


def test_the_forecast_has_the_size_of_the_file(tmp_path):
    split, path = drawn(), tmp_path / "outputs.npy"
    live = LiveTeacher(frozen_teacher(), RECIPE.batch_size)
    expected = forecast(live, split, split.draws)
    teacher_outputs(path, live, split, split.draws, Terms("always", 0, 99))
    assert expected.size_mib * 2**20 == path.stat().st_size - 128
    assert expected.num_views == K


# In a study

MIXUP = {"epochs": 9, "batch_size": 256, "mixup": 0.2, "randaugment": 9, "crop_padding": 1}
CACHED = {"draws": 8, "seed": 3}


def study(**sections: Any) -> Study:
    return parse_study(STUDY | {"distil": MIXUP} | sections)


def settings(chosen: Study) -> dict[tuple[str, ...], dict[str, Any]]:
    return {
        (rule, *names.values()): json.loads(graph.settings_text(chosen, rule, names))
        for rule in graph.OUTPUTS
        for names in graph.jobs(chosen, rule)
    }


def test_draws_that_are_off_are_in_the_settings_of_no_job():
    assert "draws" not in json.dumps(list(settings(study()).values()))
    assert settings(study()) == settings(study(cache={"draws": None}))


def test_all_students_of_a_study_see_the_draws_and_nothing_else_changes():
    before, after = settings(study(cache={"seed": 3})), settings(study(cache=CACHED))
    changed = {job for job in before if before[job] != after[job]} - {("report",)}
    assert changed == {job for job in before if job[0] == "distil"}
    for job in changed:
        assert after[job] == before[job] | {"cache": {"draws": 8, "seed": 3}}
    name = "draws8_seed3_mixup0p2_randaugment9_crop1_batch256"
    assert after.keys() - before.keys() == {("cache_outputs", "digits", "big", name)}
    assert set(graph.inputs(study(cache=CACHED), "distil", RUN)) >= {"ticket"}


RUN = {"pair": "pair", "method": "kd", "seed": "0"}


@pytest.mark.parametrize(
    ("recipe", "count", "name"),
    [
        ({"crop_padding": 1}, 9, "crop1_batch64"),  # as many views as draws: these are exact
        ({"crop_padding": 1}, 8, "draws8_crop1_batch64"),
        ({}, 1, "plain_batch64"),
    ],
)
def test_draws_are_used_where_there_are_more_views(recipe, count, name):
    chosen = study(distil=recipe, cache={"draws": count})
    found = graph.jobs(chosen, "cache_outputs")
    assert [names["views"] for names in found] == [name]


def test_trials_with_other_augmentation_are_told_of_the_draws():
    methods = {"labels": {"tune": {"distil.randaugment": [0, 9]}}}
    chosen = study(methods=methods, distil={}, cache=CACHED, tune={"trials": 2})
    for rule, names in (("tune", graph.jobs(chosen, "tune")[0]), ("distil", RUN)):
        job = graph.settings(chosen, rule, names | {"method": "labels"})
        assert job.cache is not None
        assert job.numbered_views.batch_size == 64
    first, second = (graph.settings(chosen, "tune", n) for n in graph.jobs(chosen, "tune"))
    assert "fixed" not in first.numbered_views.model_dump()
    assert second.numbered_views.fixed.draws == 8


def test_trials_cannot_change_the_draws_whose_logits_are_cached():
    methods = {"kd": {"tune": {"distil.randaugment": [5, 9]}}}
    with pytest.raises(KdstepsError, match="write two entries under methods"):
        study(methods=methods, cache=CACHED, tune={"trials": 2})
    study(methods=methods, tune={"trials": 2})  # without draws, logits are computed on the fly


@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_draws_are_a_whole_number_above_zero(value):
    with pytest.raises(KdstepsError, match=r"cache\.draws is .*"):
        study(cache={"draws": value})


# The stages


TICKET = {
    "dataset": "digits",
    "teacher": "big",
    "views": "draws3_mixup0p5_randaugment5_plain_batch256",
}
SUMMARY = Path("results/prepare/digits/summary.json")
EMBEDDING = {"local_weight": 0, "queue": 16}


def run_jobs(folder: Path, rule: str, **hints: Any) -> None:
    study = load_study(folder / "params.yaml")
    for names in graph.jobs(study, rule):
        run_call(call_of(study, rule, names), threads=1, **hints)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study up to its cached logits, of 3 draws of each image."""
    folder = tmp_path_factory.mktemp("study")
    recipe = {"epochs": 4, "batch_size": 256, "mixup": 0.5, "randaugment": 5}
    train = {"epochs": 1, "batch_size": 256, "teacher_check": "warn"}
    methods = {"kd": {}, "embedding": EMBEDDING}
    cache = {"draws": 3, "outputs": "always"}
    sections = {"methods": methods, "train": train, "distil": recipe, "cache": cache}
    write_study(folder, seeds=[0], **sections)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rule in ("prepare", "train", "train_check", "cache_outputs"):
            run_jobs(folder, rule)
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def logits_file(folder: Path) -> Path:
    ticket = json.loads(outputs_of(folder, "cache_outputs", TICKET)["ticket"].read_text())
    return folder / f".kdsteps/outputs/{ticket['key']}.npy"


def test_the_stage_cache_writes_the_logits_of_all_draws(folder):
    ticket = json.loads(outputs_of(folder, "cache_outputs", TICKET)["ticket"].read_text())
    cached = np.load(logits_file(folder))
    assert list(cached.shape) == ticket["shape"]
    assert cached.shape[1:] == (3, 10)
    assert not np.array_equal(cached[:, 0], cached[:, 1])


def test_forecasts_of_the_disk_are_right_within_a_twentieth(inside):
    study = load_study()
    costs, node = costs_of(study, SUMMARY), graph.node(study, "cache_outputs", TICKET)
    path = logits_file(inside)
    size = path.stat().st_size + path.with_suffix(".json").stat().st_size
    assert costs.disk([node]) == pytest.approx(size, rel=0.05)
    assert costs.seconds([node]) == [json.loads(SUMMARY.read_text())["images"]["train"] * 3]


@pytest.mark.parametrize("method", ["kd", "embedding"])
def test_students_read_what_is_cached_of_the_draws_and_are_the_same_without(
    inside, method, caplog, tmp_path
):
    names = {"pair": "pair", "method": method, "seed": "0"}
    study = load_study()
    call = call_of(study, "distil", names)
    written = []
    for place, keep in enumerate(("auto", "never")):
        outputs = {name: tmp_path / f"{place}" / path.name for name, path in call.outputs.items()}
        caplog.clear()
        caplog.set_level("INFO", "kdsteps")
        run_call(replace(call, outputs=outputs, code=None), threads=1, keep=keep)
        assert ("reading teacher logits from" in caplog.text) == (keep == "auto")
        written.append(outputs["model"].read_bytes())
    assert written[0] == written[1]
