"""Memory and time that a job may need, for clusters where both are requested before it runs.

A forecast is meant to be too large rather than too small: a job that requests too much waits a
little longer, one that requests too little is killed. It counts what a job computes (multiply-adds,
steps, images) and holds in memory (images, weights, activations), from params.yaml, the sizes of
the networks and the prepared images. What is not known yet is assumed to be large. The constants
below are for a GPU of 2017 or a slow core.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, prod
from typing import NamedTuple

from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.known import network_outlines
from kdsteps.jobs.outputs import Names, outputs
from kdsteps.jobs.settings import AUDITED, LogitSettings
from kdsteps.study.image_size import ImageShape, declared_shape
from kdsteps.study.study import Study
from kdsteps.study.training_settings import (
    AugmentationSettings,
    Distil,
    DrawSettings,
    Training,
    ViewSettings,
    num_views,
)

START_SECONDS = 600.0  # libraries from a slow shared disk, checks, compilation, writing results
GPU_RATE, CORE_RATE = 1e12, 8e9  # multiply-adds per second
STEP_SECONDS = 0.02  # of a training step of the smallest network
PIXEL_SECONDS = 2e-8  # of one core, to augment one number of an image
DECODE_SECONDS = 0.05  # of one core, to decode an image
SAFETY = 2.0  # of all times but that of the start
PROCESS_MB = 2500  # Snakemake, Python, torch
CUDA_MB = 2500  # more of them in a process that uses a GPU
ROW_BYTES = 1000  # label, hash and name of an image
RESIDENT_MB = 8192  # images of more are not in memory as a whole (see `data.prepared`)
WORKERS_MB = 4000  # processes that make batches, for larger images or augmentation one by one
WITHOUT_GPU = frozenset({"prepare", "score", "build", "tune_choose", "export", "report"})
_EQUAL = ("seed", "trial")  # jobs that differ only in these need the same
PROBED_WIDTH = 1024  # features of an image
EVALUATED = 256  # images of a batch where no settings say it
MB = 1 << 20

# of a data set that is not prepared and of which params.yaml does not say it
UNKNOWN_IMAGES, UNKNOWN_CLASSES = 200_000, 1000
UNKNOWN_SHAPE: ImageShape = (3, 64, 64)


class Forecast(NamedTuple):
    """What a job may need."""

    memory: int  # MiB
    time: int  # minutes


def forecast(study: Study, rule: str, names: Names, cores: int, gpu: bool) -> Forecast:
    """What one job may need.

    Args:
        cores: That it computes on.
        gpu: Whether it computes on a GPU. Its activations count all the same, although they are in
            the memory of the GPU then, which is not requested.
    """
    alike = tuple((key, value) for key, value in sorted(names.items()) if key not in _EQUAL)
    need = _need(study, rule, alike, _prepared_at(study, names))
    gpu = gpu and rule not in WITHOUT_GPU
    rate = GPU_RATE if gpu else CORE_RATE * cores
    seconds = need.multiply_adds / rate + need.steps * STEP_SECONDS + need.core_seconds / cores
    megabytes = PROCESS_MB + CUDA_MB * gpu + need.megabytes
    minutes = (START_SECONDS + SAFETY * seconds) / 60
    return Forecast(_up(megabytes, 500), _up(minutes, 10))


def _up(value: float, step: int) -> int:
    return step * ceil(value / step)


@dataclass(frozen=True)
class _Need:
    """What a job computes, and what it holds in memory besides the libraries."""

    multiply_adds: float = 0
    steps: float = 0
    core_seconds: float = 0
    megabytes: float = 0

    def __add__(self, other: _Need) -> _Need:
        return _Need(
            self.multiply_adds + other.multiply_adds,
            self.steps + other.steps,
            self.core_seconds + other.core_seconds,
            self.megabytes + other.megabytes,
        )

    def augmented(self, recipe: AugmentationSettings) -> _Need:
        """The same with images that are augmented as `recipe` says."""
        if not recipe.per_image:
            return self
        more = self.megabytes + WORKERS_MB
        return replace(self, core_seconds=10 * self.core_seconds, megabytes=more)


class _Data(NamedTuple):
    """A data set: images of all splits, those for training, shapes (C, H, W), and classes."""

    number: int
    train: int
    shape: ImageShape  # as networks see them
    stored: ImageShape
    classes: int

    @property
    def in_memory(self) -> _Need:
        """The images while a job uses them, with labels, hashes and names."""
        images = self.number * prod(self.stored) / MB
        workers = WORKERS_MB if images > RESIDENT_MB / 2 else 0
        rows = self.number * ROW_BYTES / MB
        return _Need(megabytes=2 * min(images, RESIDENT_MB) + workers + rows)


class _Network(NamedTuple):
    """What a network costs; activations and multiply-adds are those of one image.

    The defaults are for a network that is not known: more than a ResNet-152 on 224 x 224 pixels.
    """

    parameters: int = 100_000_000
    multiply_adds: int = 20_000_000_000
    activations: int = 100_000_000
    stages: int = 4

    def passes(self, images: float, data: _Data, batch: int) -> _Need:
        """Forward passes over images; few activations are in memory at the same time."""
        return _Need(
            multiply_adds=images * self.multiply_adds,
            steps=images / batch,
            core_seconds=images * prod(data.shape) * PIXEL_SECONDS,
            megabytes=4 * (2 * self.parameters + self.activations * batch / 8) / MB,
        )

    def training(self, data: _Data, recipe: Training) -> _Need:
        """A training run: passes, and backward passes, which cost twice as much.

        In memory are weights, gradients, the moments of the optimizer and a state that is being
        saved, and activations with their gradients.
        """
        images = recipe.epochs * data.number  # validation included
        each = self.passes(images, data, recipe.batch_size)
        numbers = 8 * self.parameters + 2 * self.activations * recipe.batch_size
        return _Need(
            multiply_adds=3 * each.multiply_adds,
            steps=each.steps,
            core_seconds=each.core_seconds,
            megabytes=4 * numbers / MB,
        ).augmented(recipe)


@dataclass(frozen=True)
class _Job:
    """A job and what is known of its images and networks."""

    study: Study
    names: Names

    @cached_property
    def dataset(self) -> str:
        return _dataset(self.study, self.names)

    @cached_property
    def data(self) -> _Data:
        return _data(self.study, self.dataset)

    @property
    def teacher(self) -> _Network:
        (found,) = self.teachers
        return found

    @property
    def teachers(self) -> list[_Network]:
        pair = self.study.pairs.get(self.names.get("pair", ""))
        names = (self.names["teacher"],) if pair is None else pair.teacher_names
        return [self._network(name) for name in names]

    @property
    def student(self) -> _Network:
        return self._network(self.study.pairs[self.names["pair"]].student)

    def _network(self, model: str) -> _Network:
        return _networks(self.study, self.dataset, self.data.shape)[model]

    @property
    def recipe(self) -> Distil:
        return self.study.distil(self.names["pair"], self.names["method"])

    def cached(self, numbers: float) -> _Need:
        """A cache file of numbers in float32, while it is written or read."""
        megabytes = min(4 * numbers / MB, 1024 * self.study.params.cache.budget_gib)
        return _Need(megabytes=2 * megabytes)

    @property
    def features(self) -> _Need:
        """The cached features of all layers."""
        return self.cached(self.study.params.cache.images * self.teacher.activations)

    def logits(self, views: ViewSettings | None) -> _Need:
        """The cached logits of all views or draws, if these are numbered."""
        count = 0 if views is None else num_views(views)
        return self.cached(self.data.train * count * self.data.classes)


def _prepare(job: _Job) -> _Need:
    pixels = job.data.number * prod(job.data.stored)
    return _Need(
        core_seconds=job.data.number * DECODE_SECONDS + pixels * PIXEL_SECONDS,
        megabytes=job.data.number * ROW_BYTES / MB,
    )


def _train(job: _Job) -> _Need:
    recipe = job.study.trainings[job.names["teacher"]]
    return job.data.in_memory + job.teacher.training(job.data, recipe)


def _cache(job: _Job) -> _Need:
    images = job.study.params.cache.images
    return job.data.in_memory + job.teacher.passes(images, job.data, EVALUATED) + job.features


def _cache_outputs(job: _Job) -> _Need:
    node = graph.node(job.study, "cache_outputs", job.names)
    assert isinstance(node.settings, LogitSettings)
    views, passes = node.settings.views, int(node.hints["passes"])
    images = job.data.train * min(passes, num_views(views))
    run = job.teacher.passes(images, job.data, views.batch_size)
    if isinstance(views, DrawSettings):
        run = run.augmented(views)
    return job.data.in_memory + run + job.logits(views)


def _train_audit(job: _Job) -> _Need:
    """A pass of every teacher over some training images."""
    images, need = min(job.data.train, AUDITED), job.data.in_memory
    for teacher in job.teachers:
        need += teacher.passes(images, job.data, job.study.params.evaluate.batch_size)
    return need


def _score(job: _Job) -> _Need:
    """Matrices of the similarity of all images, for each of up to a hundred layers in turn."""
    images = job.study.params.cache.images
    similar = _Need(multiply_adds=100 * 512 * images**2, megabytes=4 * 8 * images**2 / MB)
    return job.features + similar


def _build(job: _Job) -> _Need:
    return job.teacher.passes(1, job.data, 1) + job.student.passes(1, job.data, 1)


def _distil(job: _Job) -> _Need:
    """A run whose teacher's outputs are computed for every batch.

    Methods that want blocks train the student's front and a tail of the teacher for each stage;
    those that want layers train modules next to the student, which cost as much as it does.
    """
    recipe, data = job.recipe, job.data
    wants = job.study.methods[job.names["method"]].wants
    need = data.in_memory + job.student.training(data, recipe)
    if wants == "nothing":
        return need
    for teacher in job.teachers:
        need += teacher.passes(recipe.epochs * data.train, data, recipe.batch_size)
    if wants == "layers":
        need += job.student.training(data, recipe)
    for _ in range(job.student.stages if wants == "blocks" else 0):
        need += job.teacher.training(data, recipe)
    return need + job.logits(job.study.views(job.names["pair"], job.names["method"]))


def _evaluate(job: _Job) -> _Need:
    network = job.student if "pair" in job.names else job.teacher
    batch = job.study.params.evaluate.batch_size
    logits = _Need(megabytes=8 * 4 * job.data.number * job.data.classes / MB)
    return job.data.in_memory + network.passes(job.data.number, job.data, batch) + logits


def _evaluate_latency(job: _Job) -> _Need:
    """Single images, which keep a small fraction of the device busy, and batches."""
    section = job.study.params.evaluate
    images = len(job.study.methods) * 20 * (section.latency_runs + section.throughput_batch)
    need = _Need(steps=images)
    for network in (*job.teachers, job.student):
        need += network.passes(images, job.data, section.throughput_batch)
    return need


def _export(job: _Job) -> _Need:
    """Conversions in several attempts, and passes over all test images by every file."""
    section, formats = job.study.params.evaluate, 6
    images = formats * (job.data.number + 20 * (section.latency_runs + section.throughput_batch))
    passes = job.student.passes(images, job.data, section.throughput_batch)
    return job.data.in_memory + passes + _Need(core_seconds=600, megabytes=2 * passes.megabytes)


def _evaluate_probe(job: _Job) -> _Need:
    """Features of all images, their neighbors, and linear classifiers, a few hundred steps each."""
    probe = job.study.params.probe
    assert probe is not None, "there are no probes without the section"
    data = _data(job.study, probe.dataset)
    network = job.student if "pair" in job.names else job.teacher
    numbers = min(data.number, probe.images) * PROBED_WIDTH
    fits = 1 + probe.draws * len(probe.fractions)
    fitted = _Need(multiply_adds=data.number * numbers + 1000 * fits * numbers * data.classes)
    features = _Need(megabytes=4 * 8 * numbers / MB)
    return data.in_memory + network.passes(data.number, data, probe.batch_size) + fitted + features


def _report(job: _Job) -> _Need:
    study = job.study
    runs = len(study.pairs) * len(study.methods) * len(study.seeds)
    return _Need(core_seconds=runs, megabytes=2 * runs)


_NEEDS: dict[str, Callable[[_Job], _Need]] = {
    "prepare": _prepare,
    "train": _train,
    "train_check": _evaluate,
    "train_audit": _train_audit,
    "cache": _cache,
    "cache_outputs": _cache_outputs,
    "score": _score,
    "build": _build,
    "tune": _distil,
    "tune_choose": lambda job: _Need(),
    "distil": _distil,
    "evaluate": _evaluate,
    "evaluate_teacher": _evaluate,
    "evaluate_latency": _evaluate_latency,
    "evaluate_probe": _evaluate_probe,
    "evaluate_probe_teacher": _evaluate_probe,
    "evaluate_probe_untrained": _evaluate_probe,
    "export": _export,
    "report": _report,
}


@lru_cache(maxsize=4096)
def _need(study: Study, rule: str, names: tuple[tuple[str, str], ...], _when: int) -> _Need:
    return _NEEDS[rule](_Job(study, dict(names)))


def _dataset(study: Study, names: Names) -> str:
    return names["dataset"] if "dataset" in names else study.pairs[names["pair"]].dataset


def _summary(dataset: str) -> str:
    return outputs("prepare", {"dataset": dataset})["summary"]


def _prepared_at(study: Study, names: Names) -> int:
    """When the images of a job were prepared; 0 before that, and for the report."""
    try:
        return os.stat(_summary(_dataset(study, names))).st_mtime_ns
    except (OSError, KeyError):
        return 0


def _data(study: Study, dataset: str) -> _Data:
    """A data set as it was prepared, or as far as params.yaml says it."""
    try:
        found = read_json(_summary(dataset))
        images, shape = found["images"], found["image_shape"]
        stored = tuple(found.get("stored_shape") or shape)
        number = sum(images.values())
        return _Data(number, images["train"], tuple(shape), stored, len(found["class_names"]))
    except (KdstepsError, KeyError, TypeError, AttributeError):
        shape = declared_shape(study.datasets[dataset]) or UNKNOWN_SHAPE
        return _Data(UNKNOWN_IMAGES, UNKNOWN_IMAGES, shape, shape, UNKNOWN_CLASSES)


@lru_cache(maxsize=64)
def _networks(study: Study, dataset: str, shape: ImageShape) -> dict[str, _Network]:
    """The networks of a data set, by model."""
    outlines = network_outlines(study, [dataset], {dataset: shape})
    return {
        model: _Network()
        if found is None or not found.parameters
        else _Network(
            *(found.parameters, found.multiply_adds, found.activations, len(found.stages))
        )
        for (_, model), found in outlines.items()
    }
