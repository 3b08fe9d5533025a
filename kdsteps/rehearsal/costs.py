"""What the jobs of a study cost, from trials of them: seconds, memory and disk space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kdsteps.jobs import graph
from kdsteps.jobs.cache import NOT_CACHED
from kdsteps.jobs.needs import RESIDENT_MB
from kdsteps.jobs.schedule import claim
from kdsteps.jobs.settings import AUDITED, LogitSettings
from kdsteps.rehearsal.rehearsal import Rehearsal
from kdsteps.rehearsal.trial import Trial
from kdsteps.study.training_settings import Training, ViewSettings, name_of, num_views
from kdsteps.study.tuning import num_tried

_ROW = 60  # bytes of a prediction besides its logits
_LEAST_STEP = 0.2  # of a step with the teacher, that the student alone takes at least


@dataclass
class Costs:
    """Costs of jobs.

    Attributes:
        start: Seconds until a job has started Python and imported its libraries.
        decoding: Seconds to read one image, by data set.
        guessed: Jobs for which there was no trial: they count like others of their kind.
    """

    found: Rehearsal
    start: float
    decoding: dict[str, float]
    guessed: set[tuple[str, ...]] = field(default_factory=set)

    def seconds(self, nodes: Iterable[graph.JobNode]) -> list[float]:
        """The time that each job takes; the start alone where nothing is known of its kind."""
        listed = list(nodes)
        known = [self._of(node) for node in listed]
        kinds: dict[tuple[str, str], list[float]] = {}
        for node, seconds in zip(listed, known, strict=True):
            if seconds is not None:
                kinds.setdefault((node.rule, node.names.get("method", "")), []).append(seconds)
                kinds.setdefault((node.rule, ""), []).append(seconds)
        filled = []
        for node, seconds in zip(listed, known, strict=True):
            if seconds is None:
                self.guessed.add((node.rule, *node.names.values()))
                alike = kinds.get((node.rule, node.names.get("method", ""))) or kinds.get(
                    (node.rule, ""), [0.0]
                )
                seconds = median(alike)
            filled.append(self.start + seconds)
        return filled

    def _of(self, node: graph.JobNode) -> float | None:
        """The time of a job after its start; None if it is not known."""
        rule, study = node.rule, self.found.study
        if rule in ("report", "tune_choose"):
            return 0.0
        if rule == "export" or rule.startswith("evaluate_probe"):
            return None
        pair = study.pairs.get(node.names.get("pair", ""))
        dataset = node.names["dataset"] if pair is None else pair.dataset
        images = self.found.images.get(dataset)
        if images is None:
            return None
        if rule == "prepare":
            return images.number * self.decoding.get(dataset, 0.0)
        if rule == "train":
            return self._training(node, dataset, node.names["teacher"])
        if rule == "tune" and self._is_out(node):
            return 0.0
        if rule in ("tune", "distil"):
            return self._distil(node, dataset)
        if rule == "build":
            return self._trial("build", *node.names.values(), whole=1.0)
        if rule in ("cache", "score"):
            return self._features(node)
        if rule == "cache_outputs":
            return self._logits(node, dataset)
        if rule == "evaluate_latency":
            return self._latency(node, dataset)
        if rule == "train_audit":
            return self._audit(node, dataset)
        model = node.names["teacher"] if pair is None else pair.student
        split = "validation" if rule == "train_check" else "test"
        batch = study.params.evaluate.batch_size
        each = self.found.seconds_per_image(node, dataset, model, batch)
        metrics = self._trial("evaluate", dataset, model, whole=1.0)
        if each is None:
            return None
        return images.counts[split] * each + (metrics or 0.0)

    def _trial(self, *key: str, whole: float) -> float | None:
        trial = self.found.trials.get(key)
        return None if trial is None else trial.seconds * whole

    def _features(self, node: graph.JobNode) -> float | None:
        """From trials with few and with more images: what each image adds."""
        key, images = (node.rule, *node.names.values()), self.found.study.params.cache.images
        _, few_images, more_images = self.found.features(node.names["dataset"])
        few, more = (self.found.trials.get((*key, place)) for place in ("1", "2"))
        if few is None or more is None:
            return None
        each = max(0.0, more.seconds - few.seconds) / (more_images - few_images)
        wanted = min(images, self.found.images[node.names["dataset"]].counts["train"])
        return more.seconds + each * max(0, wanted - more_images)

    def _training(self, node: graph.JobNode, dataset: str, model: str) -> float | None:
        recipe = self.found.study.trainings[model]
        key = ("network", dataset, model)
        trial = self.found.trials.get(key)
        if trial is None or (recipe.epochs and not trial.epochs):
            return None
        return trial.setup + recipe.epochs * self._epoch(key, trial, recipe, dataset)

    def _epoch(self, key: tuple[str, ...], trial: Trial, recipe: Training, dataset: str) -> float:
        """Seconds of a whole epoch."""
        scale = self.found.scales[key]
        steps = max(1, self.found.images[dataset].counts["train"] // recipe.batch_size)
        larger = recipe.batch_size / recipe.gpus / scale.batch_size
        return trial.epoch * steps / scale.steps * larger

    def _distil(self, node: graph.JobNode, dataset: str) -> float | None:
        study, pair, method = self.found.study, node.names["pair"], node.names["method"]
        recipe, key = study.distil(pair, method), ("distil", pair, method)
        trial = self.found.trials.get(key)
        if trial is None or not trial.epochs:
            return None
        epoch, setup = self._epoch(key, trial, recipe, dataset), trial.setup
        views = study.views(pair, method)
        if trial.live and views is not None:
            logits = study.methods[method].wants in ("logits", "blocks")
            cached = self._caches_logits(node, views) if logits else self._caches_all(node)
            each = 0.0
            for teacher in study.pairs[pair].teacher_names if cached else ():
                each += self._teacher_pass(node, dataset, teacher, recipe)
            images = self.found.images[dataset].counts["train"]
            epoch = max(_LEAST_STEP * epoch, epoch - images * each)
            setup += 0.0 if logits else images * num_views(views) * each
        return setup + recipe.epochs * epoch

    def _is_out(self, node: graph.JobNode) -> bool:
        """Whether a trial is trained with fewer seeds, by number: which ones, is known later."""
        tune, trials = self.found.study.params.tune, self.found.study.methods
        place = tune.seeds.index(int(node.names["seed"]))
        tried = num_tried(len(trials[node.names["method"]].trials), place, tune.halving)
        return int(node.names["trial"]) > tried

    def _caches_logits(self, node: graph.JobNode, views: ViewSettings) -> bool:
        pair = self.found.study.pairs[node.names["pair"]]
        size = self._logit_bytes(pair.dataset, views) / 2**20
        for teacher in pair.teacher_names:
            names = {"dataset": pair.dataset, "teacher": teacher, "views": name_of(views)}
            hints = graph.hints(self.found.study, "cache_outputs", names)
            worth = hints["keep"] == "always" or int(hints["passes"]) > num_views(views)
            if hints["keep"] == "never" or not worth or size > int(hints["budget_mib"]):
                return False
        return True

    def _caches_all(self, node: graph.JobNode) -> bool:
        """Whether a run caches the features of all its images, one view of each."""
        recipe = self.found.study.distil(node.names["pair"], node.names["method"])
        return self.found.study.params.cache.outputs != "never" and recipe.epochs > 1

    def _teacher_pass(
        self, node: graph.JobNode, dataset: str, teacher: str, recipe: ViewSettings
    ) -> float:
        each = self.found.seconds_per_image(
            *(node, dataset, teacher, recipe.batch_size), fold=True, precision=recipe.precision
        )
        return each or 0.0

    def _logits(self, node: graph.JobNode, dataset: str) -> float | None:
        assert isinstance(node.settings, LogitSettings)
        views, teacher = node.settings.views, node.names["teacher"]
        runs = graph.jobs(self.found.study, "distil")
        readers = [
            run
            for names in runs
            if graph.outputs("cache_outputs", node.names)["ticket"]
            in (run := graph.node(self.found.study, "distil", names)).read
        ]
        if not readers or not self._caches_logits(readers[0], views):
            return 0.0
        each = self._teacher_pass(node, dataset, teacher, views)
        return self.found.images[dataset].counts["train"] * num_views(views) * each

    def _audit(self, node: graph.JobNode, dataset: str) -> float | None:
        batch = self.found.study.params.evaluate.batch_size
        teachers = self.found.study.pairs[node.names["pair"]].teacher_names
        each = [self.found.seconds_per_image(node, dataset, name, batch) for name in teachers]
        known = [seconds for seconds in each if seconds is not None]
        number = min(AUDITED, self.found.images[dataset].counts["train"])
        return number * sum(known) if len(known) == len(each) else None

    def _latency(self, node: graph.JobNode, dataset: str) -> float | None:
        from kdsteps.evaluation.speed import num_batch_passes, num_image_passes  # torch

        section = self.found.study.params.evaluate
        pair = self.found.study.pairs[node.names["pair"]]
        models = dict.fromkeys(
            [pair.student, *([pair.only_teacher] if "teacher" in node.inputs else [])]
        )
        total, runs = 0.0, section.latency_runs
        for model in dict.fromkeys(models):
            one = self.found.seconds_per_image(node, dataset, model, 1, cores=1)
            many = self.found.seconds_per_image(node, dataset, model, section.throughput_batch)
            if one is None or many is None:
                return None
            batch = many * section.throughput_batch
            total += num_image_passes(runs) * one + num_batch_passes(batch) * batch
        return total

    # Memory and disk

    def memory(self, node: graph.JobNode) -> int:
        """Bytes that a training holds; 0 where that is not known."""
        trial = self._trained(node)
        if trial is None or not trial.memory:
            return 0
        images = self.found.images[self._dataset(node)].bytes
        on_device = bool(self.found.sharing.gpus)
        return trial.memory + (0 if on_device else min(images, RESIDENT_MB * 2**20 // 2))

    def gpu_memory(self, node: graph.JobNode) -> int:
        """Likewise of a GPU."""
        trial = self._trained(node)
        if trial is None or not trial.gpu_memory:
            return 0
        images = self.found.images[self._dataset(node)].bytes
        return trial.gpu_memory + min(images, RESIDENT_MB * 2**20 // 2)

    def _trained(self, node: graph.JobNode) -> Trial | None:
        """The trial of a job that trains."""
        if node.rule == "train":
            key = ("network", node.names["dataset"], node.names["teacher"])
        else:
            key = ("distil", node.names["pair"], node.names["method"])
        return self.found.trials.get(key)

    def disk(self, nodes: Iterable[graph.JobNode]) -> int:
        """Bytes of results and caches, with the copies in the job cache."""
        left = list(nodes)
        found = sum(self._written(node) * (1 if node.rule in NOT_CACHED else 2) for node in left)
        return found + self._combined(node for node in left if node.rule == "distil")

    def _combined(self, runs: Iterable[graph.JobNode]) -> int:
        """Bytes of the combined logits of pairs with several teachers: a file for all seeds."""
        sizes: dict[tuple[str, str], int] = {}
        for node in runs:
            pair = node.names["pair"]
            views = self.found.study.views(pair, node.names["method"])
            several = "teachers" in node.inputs and self._dataset(node) in self.found.images
            if several and views is not None and self._caches_logits(node, views):
                sizes[pair, name_of(views)] = self._logit_bytes(self._dataset(node), views)
        return sum(sizes.values())

    def _logit_bytes(self, dataset: str, views: ViewSettings) -> int:
        """Bytes of a file with the logits of all training images."""
        images = self.found.images[dataset]
        return 2 * images.counts["train"] * num_views(views) * len(images.class_names)

    def _written(self, node: graph.JobNode) -> int:
        dataset = self._dataset(node)
        images = self.found.images.get(dataset)
        if images is None:
            return 0
        pair = self.found.study.pairs.get(node.names.get("pair", ""))
        model = node.names.get("teacher", "") if pair is None else pair.student
        weights = self.found.model(dataset, model)
        classes = len(images.class_names)
        if node.rule == "prepare":
            return images.bytes
        if node.rule in ("train", "distil") and weights.exists():
            return weights.stat().st_size
        if node.rule in ("evaluate", "evaluate_teacher"):
            return images.counts["test"] * (4 * classes + _ROW)
        if node.rule == "cache_outputs" and self._logits(node, dataset):
            assert isinstance(node.settings, LogitSettings)
            return self._logit_bytes(dataset, node.settings.views)
        if node.rule == "cache" and (path := self._features_file(node)).exists():
            wanted = self.found.study.params.cache.images
            return round(path.stat().st_size * max(1.0, wanted / self.found.features(dataset)[-1]))
        return 0

    def _features_file(self, node: graph.JobNode) -> Path:
        return self.found.scratch / graph.outputs("cache", node.names)["features"]

    def _dataset(self, node: graph.JobNode) -> str:
        pair = self.found.study.pairs.get(node.names.get("pair", ""))
        return node.names.get("dataset", "") if pair is None else pair.dataset

    def side_by_side(self, node: graph.JobNode) -> int:
        """How many jobs like this one run at the same time."""
        own, sharing = claim(self.found.study, node, self.found.sharing), self.found.sharing
        by_cores = sharing.cores // own.threads
        return max(1, min(by_cores, sharing.slots // own.slots if own.slots else by_cores))
