"""What a job of each rule needs: what it computes, and what it holds in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from kdsteps.jobs import graph
from kdsteps.jobs.needs import MB, PIXEL_SECONDS, ROW_BYTES, Data, Need, Network, data_of, networks
from kdsteps.jobs.outputs import Names
from kdsteps.jobs.settings import AUDITED, LogitSettings
from kdsteps.study.study import Study
from kdsteps.study.training_settings import Distil, DrawSettings, ViewSettings, num_views

DECODE_SECONDS = 0.05  # of one core, to decode an image
PROBED_WIDTH = 1024  # features of an image
EVALUATED = 256  # images of a batch where no settings say it


@dataclass(frozen=True)
class KnownJob:
    """A job and what is known of its images and networks."""

    study: Study
    names: Names

    @cached_property
    def dataset(self) -> str:
        return dataset_of(self.study, self.names)

    @cached_property
    def data(self) -> Data:
        return data_of(self.study, self.dataset)

    @property
    def teacher(self) -> Network:
        (found,) = self.teachers
        return found

    @property
    def teachers(self) -> list[Network]:
        pair = self.study.pairs.get(self.names.get("pair", ""))
        names = (self.names["teacher"],) if pair is None else pair.teacher_names
        return [self._network(name) for name in names]

    @property
    def student(self) -> Network:
        return self._network(self.study.pairs[self.names["pair"]].student)

    def _network(self, model: str) -> Network:
        return networks(self.study, self.dataset, self.data.shape)[model]

    @property
    def recipe(self) -> Distil:
        return self.study.distil(self.names["pair"], self.names["method"])

    def cached(self, numbers: float) -> Need:
        """A cache file of numbers in float32, while it is written or read."""
        megabytes = min(4 * numbers / MB, 1024 * self.study.params.cache.budget_gib)
        return Need(megabytes=2 * megabytes)

    @property
    def features(self) -> Need:
        """The cached features of all layers."""
        return self.cached(self.study.params.cache.images * self.teacher.activations)

    def logits(self, views: ViewSettings | None) -> Need:
        """The cached logits of all views or draws, if these are numbered."""
        count = 0 if views is None else num_views(views)
        return self.cached(self.data.train * count * self.data.classes)


def _prepare(job: KnownJob) -> Need:
    pixels = job.data.number * prod(job.data.stored)
    return Need(
        core_seconds=job.data.number * DECODE_SECONDS + pixels * PIXEL_SECONDS,
        megabytes=job.data.number * ROW_BYTES / MB,
    )


def _train(job: KnownJob) -> Need:
    recipe = job.study.trainings[job.names["teacher"]]
    return job.data.in_memory + job.teacher.training(job.data, recipe)


def _cache(job: KnownJob) -> Need:
    images = job.study.params.cache.images
    return job.data.in_memory + job.teacher.passes(images, job.data, EVALUATED) + job.features


def _cache_outputs(job: KnownJob) -> Need:
    node = graph.node(job.study, "cache_outputs", job.names)
    assert isinstance(node.settings, LogitSettings)
    views, passes = node.settings.views, int(node.hints["passes"])
    images = job.data.train * min(passes, num_views(views))
    run = job.teacher.passes(images, job.data, views.batch_size)
    if isinstance(views, DrawSettings):
        run = run.augmented(views)
    return job.data.in_memory + run + job.logits(views)


def _train_audit(job: KnownJob) -> Need:
    """A pass of every teacher over some training images."""
    images, need = min(job.data.train, AUDITED), job.data.in_memory
    for teacher in job.teachers:
        need += teacher.passes(images, job.data, job.study.params.evaluate.batch_size)
    return need


def _score(job: KnownJob) -> Need:
    """Matrices of the similarity of all images, for each of up to a hundred layers in turn."""
    images = job.study.params.cache.images
    similar = Need(multiply_adds=100 * 512 * images**2, megabytes=4 * 8 * images**2 / MB)
    return job.features + similar


def _build(job: KnownJob) -> Need:
    return job.teacher.passes(1, job.data, 1) + job.student.passes(1, job.data, 1)


def _distil(job: KnownJob) -> Need:
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


def _evaluate(job: KnownJob) -> Need:
    network = job.student if "pair" in job.names else job.teacher
    batch = job.study.params.evaluate.batch_size
    logits = Need(megabytes=8 * 4 * job.data.number * job.data.classes / MB)
    return job.data.in_memory + network.passes(job.data.number, job.data, batch) + logits


def _evaluate_latency(job: KnownJob) -> Need:
    """Single images, which keep a small fraction of the device busy, and batches."""
    section = job.study.params.evaluate
    images = len(job.study.methods) * 20 * (section.latency_runs + section.throughput_batch)
    need = Need(steps=images)
    for network in (*job.teachers, job.student):
        need += network.passes(images, job.data, section.throughput_batch)
    return need


def _export(job: KnownJob) -> Need:
    """Conversions in several attempts, and passes over all test images by every file."""
    section, formats = job.study.params.evaluate, 6
    images = formats * (job.data.number + 20 * (section.latency_runs + section.throughput_batch))
    passes = job.student.passes(images, job.data, section.throughput_batch)
    return job.data.in_memory + passes + Need(core_seconds=600, megabytes=2 * passes.megabytes)


def _evaluate_probe(job: KnownJob) -> Need:
    """Features of all images, their neighbors, and linear classifiers, a few hundred steps each."""
    probe = job.study.params.probe
    assert probe is not None, "there are no probes without the section"
    data = data_of(job.study, probe.dataset)
    network = job.student if "pair" in job.names else job.teacher
    numbers = min(data.number, probe.images) * PROBED_WIDTH
    fits = 1 + probe.draws * len(probe.fractions)
    fitted = Need(multiply_adds=data.number * numbers + 1000 * fits * numbers * data.classes)
    features = Need(megabytes=4 * 8 * numbers / MB)
    return data.in_memory + network.passes(data.number, data, probe.batch_size) + fitted + features


def _report(job: KnownJob) -> Need:
    study = job.study
    runs = len(study.pairs) * len(study.methods) * len(study.seeds)
    return Need(core_seconds=runs, megabytes=2 * runs)


NEEDS: dict[str, Callable[[KnownJob], Need]] = {
    "prepare": _prepare,
    "train": _train,
    "train_check": _evaluate,
    "train_audit": _train_audit,
    "cache": _cache,
    "cache_outputs": _cache_outputs,
    "score": _score,
    "build": _build,
    "tune": _distil,
    "tune_choose": lambda job: Need(),
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
"""What a job of each rule needs."""


def dataset_of(study: Study, names: Names) -> str:
    """The data set of a job; the report has none, for which it raises KeyError."""
    return names["dataset"] if "dataset" in names else study.pairs[names["pair"]].dataset
