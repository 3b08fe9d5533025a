"""A rehearsal of a study: each kind of job that is left runs here for a moment, on few images.

Jobs get the settings of the study, except for the number of epochs and the learning rate, and the
device and cores that they will have. Files go into a temporary folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.jobs import graph
from kdsteps.jobs.findings import Status
from kdsteps.jobs.forecasts import CORE_RATE, GPU_RATE
from kdsteps.jobs.job import Job
from kdsteps.jobs.known import network_outlines
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.schedule import claim
from kdsteps.jobs.settings import CheckSettings, DistilSettings, FeatureSettings, TrainSettings
from kdsteps.rehearsal.images import Images
from kdsteps.rehearsal.trial import Trial, TrialError, attempt, timed
from kdsteps.study.settings import FeatureSample, Model
from kdsteps.study.study import Study
from kdsteps.study.training_settings import Train, Training

EPOCH = 0.25  # seconds that an epoch of a trial should take
MOST_STEPS = 24
SLOW = 10  # seconds of an epoch that is too long for a trial of a network alone
PASSES = 10  # more seconds for forward passes, which are short
FEATURES = 64  # images whose features are cached in a trial, at least
_FEWEST = 2  # training images of a trial
KNOWN = ("images", "index", "summary")
_RATE = 0.01  # of the learning rate: a trial is not about whether a training converges

Say = Callable[[Status, str, str], None]
"""Reports a finding: its status, what it is about, and a sentence."""


@dataclass(frozen=True)
class Scale:
    """How a trial of a training differs from the training.

    Attributes:
        batch_size: Images of a step.
        steps: Of an epoch.
        seconds: What an epoch may take, from the cost of the networks.
    """

    batch_size: int
    steps: int
    seconds: float = 0.0


@dataclass
class Rehearsal:
    """Trials of the jobs of a study, by what distinguishes them.

    Attributes:
        images: By data set.
        trials: By rule and names, without the seed; students are trained with labels under the rule
            "student", by data set and model.
        scales: Of those that train.
        forward: Seconds per image, by `forward_seconds`' arguments.
        skipped: Jobs for which there was no time.
        blocked: Jobs that need one that failed.
        failed: What is wrong with the others.
    """

    study: Study
    sharing: Sharing
    scratch: Path
    say: Say
    deadline: float
    images: dict[str, Images]
    trials: dict[tuple[str, ...], Trial] = field(default_factory=dict)
    scales: dict[tuple[str, ...], Scale] = field(default_factory=dict)
    forward: dict[tuple[Any, ...], float] = field(default_factory=dict)
    skipped: list[tuple[str, ...]] = field(default_factory=list)
    blocked: list[tuple[str, ...]] = field(default_factory=list)
    failed: dict[tuple[str, ...], str] = field(default_factory=dict)

    # What a trial gets

    def scale(
        self, recipe: Training, dataset: str, models: Mapping[str, float], cores: int
    ) -> Scale:
        """The images of a trial: a whole batch, unless one step would take too long on the CPU.

        Args:
            models: How many forward passes of each a step costs.
        """
        size = recipe.batch_size // recipe.gpus
        cost = sum(self._macs(dataset, model) * passes for model, passes in models.items())
        rate = GPU_RATE if self.sharing.gpus else CORE_RATE * cores
        step = cost * size / rate
        longest = max(2.0, self._left / 10)
        if step > longest and not self.sharing.gpus:
            size, step = max(2, int(size * longest / step)), longest
        fitting = max(1, self.images[dataset].counts["train"] // recipe.batch_size)
        steps = min(MOST_STEPS, fitting, max(1, round(EPOCH / step)) if step else 4)
        classes = len(self.images[dataset].class_names)  # each has an image
        steps = max(steps, classes // size)
        return Scale(size, steps, steps * step)

    def files(self, dataset: str, train: int) -> dict[str, Path]:
        """Images, as many for training and as many others for each of them as in the study."""
        images = self.images[dataset]
        counts, number = images.counts, max(train, len(images.class_names), _FEWEST)
        folder = self.scratch / "images" / dataset / str(number)
        if folder.exists():
            return {name: next(folder.glob(f"{name}.*")) for name in KNOWN}
        each = number / max(1, counts["train"])
        wanted = {"train": number, "validation": round(each * counts["validation"]), "test": 32}
        return images.write(folder, wanted)

    def job(
        self, node: graph.JobNode, inputs: Mapping[str, Path], settings: Any = None
    ) -> Job[Any]:
        """A job of the study, with its files in the temporary folder."""
        own = claim(self.study, node, self.sharing)
        outputs = graph.outputs(node.rule, node.names)
        return Job(
            settings=settings or node.settings,
            inputs=inputs,
            outputs={name: self.scratch / path for name, path in outputs.items()},
            threads=own.cores,
            gpus=min(1, own.gpus),
            jobs_per_gpu=self.sharing.jobs_per_gpu if node.rule == "distil" else 1,
            checkpoint_seconds=10**6,
            keep="never",
            budget_mib=10**6,
        )

    def model(self, dataset: str, model: str) -> Path:
        """Where the checkpoint of a trial of a network is."""
        return self.scratch / dataset / model / "model.safetensors"

    @property
    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _macs(self, dataset: str, model: str) -> float:
        return self._outlines[dataset, model]

    @cached_property
    def _outlines(self) -> dict[tuple[str, str], float]:
        shapes = {dataset: images.shape for dataset, images in self.images.items()}
        found = network_outlines(self.study, list(shapes), shapes)
        return {key: 0.0 if known is None else known.multiply_adds for key, known in found.items()}

    # Trials

    def attempt(
        self, key: tuple[str, ...], what: str, rule: str, job: Job[Any], *, whole: bool = False
    ) -> bool:
        """Run a trial, and report why it failed; return whether it worked.

        Args:
            whole: Whether it may not be stopped before its files are written.
        """
        if time.monotonic() > self.deadline:
            self.skipped.append(key)
            return False
        try:
            limit = inf if whole else max(1.0, self._left / 8)
            self.trials[key] = attempt(rule, job, limit)
        except TrialError as error:
            self.failed[key] = str(error).replace(f"{self.scratch}/", "")
            self.say("problem", what, self.failed[key])
            return False
        return True

    def leave_out(
        self, key: tuple[str, ...], needed: tuple[str, ...], dataset: str, models: Collection[str]
    ) -> None:
        """Do not try a job that needs trials of some networks, of which one did not work."""
        failed = any(
            trial in needed and place == dataset and name in models
            for trial, place, name, *_ in self.failed
        )
        (self.blocked if failed else self.skipped).append(key)

    def train(self, dataset: str, name: str, node: graph.JobNode, recipe: Training) -> bool:
        """Train a network of the study, if there are labels; its checkpoint is then in `model`."""
        key = ("network", dataset, name)
        entry: Model = self.study.models[name]
        cores = claim(self.study, node, self.sharing).cores
        scale = self.scale(recipe, dataset, {name: 3}, cores)
        trained = self.images[dataset].labeled and scale.seconds < SLOW
        epochs = min(recipe.epochs, 2 if trained else 0)
        changed = self._changed(recipe, scale) | {"epochs": epochs}
        train = Train.model_construct(**recipe.model_dump() | {"seed": 0} | changed)
        settings = TrainSettings.model_construct(model=entry, train=train, weights="")
        files = self.files(dataset, scale.batch_size * scale.steps)
        own = self.job(node, files, settings)
        path = self.model(dataset, name)
        outputs = {"model": path, "history": path.with_name("history.parquet")}
        job = replace(own, outputs=outputs)
        if not self.attempt(key, f"model {name}", "train", job, whole=True):
            return False
        self.scales[key] = scale
        if not recipe.epochs and node.rule == "train":
            self._look_for_classifier(node)
        return True

    def _look_for_classifier(self, node: graph.JobNode) -> None:
        """Report a teacher that is used as it is and lacks the classifier that methods need."""
        from kdsteps.teachers.checks import no_classifier, with_classifier

        dataset, name = node.names["dataset"], node.names["teacher"]
        number = len(self.images[dataset].class_names)
        missing = no_classifier(read_checkpoint_header(self.model(dataset, name)), number)
        checks = [
            graph.node(self.study, "train_check", names).settings
            for names in graph.jobs(self.study, "train_check")
            if names == node.names
        ]
        needed = any(isinstance(each, CheckSettings) and not each.features_only for each in checks)
        if missing and needed:
            self.say("problem", f"model {name}", f"{missing}; {with_classifier(number)}")

    def take(self, dataset: str, name: str, trained: Path) -> None:
        """Use a teacher that the study has already trained."""
        path = self.model(dataset, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(trained.absolute())

    def distil(self, node: graph.JobNode) -> bool:
        """Train a student by a method of the study."""
        assert isinstance(node.settings, DistilSettings)
        pair, method = node.names["pair"], node.names["method"]
        entry, recipe = self.study.pairs[pair], node.settings.distil
        wants = self.study.methods[method].wants
        costs = {entry.student: 3.0}
        if wants != "nothing":
            for teacher in entry.teacher_names:
                costs[teacher] = costs.get(teacher, 0.0) + (3 if wants == "blocks" else 1)
        cores = claim(self.study, node, self.sharing).cores
        scale = self.scale(recipe, entry.dataset, costs, cores)
        inputs = self.files(entry.dataset, scale.batch_size * scale.steps)
        if "teacher" in node.inputs:
            inputs = inputs | {"teacher": self.model(entry.dataset, entry.only_teacher)}
        several = {"teachers": [self.model(entry.dataset, name) for name in entry.teacher_names]}
        if "plan" in node.inputs:
            inputs = inputs | {"plan": self.scratch / node.inputs["plan"]}
        changed = recipe.model_copy(update=self._changed(recipe, scale))
        settings = node.settings.model_copy(update={"distil": changed})
        key = ("distil", pair, method)
        job = self.job(node, inputs, settings)
        if "teachers" in node.inputs:
            job = replace(job, lists=several)
        worked = self.attempt(key, f"{pair} with {method}", "distil", job)
        if worked:
            self.scales[key] = scale
        return worked

    def scores(self, node: graph.JobNode, scoring: graph.JobNode) -> bool:
        """Cache features of a teacher, and score its layers, with several numbers of images."""
        return all(
            self._scores(node, scoring, place, number)
            for place, number in enumerate(self.features(node.names["dataset"]))
        )

    def features(self, dataset: str) -> tuple[int, int, int]:
        """Numbers of images whose features are cached in trials; the first one is a warm-up.

        Scores need two of each class.
        """
        few = max(FEATURES, 2 * len(self.images[dataset].class_names))
        return few, few, max(4 * FEATURES, 2 * few)

    def _scores(self, node: graph.JobNode, scoring: graph.JobNode, place: int, number: int) -> bool:
        assert isinstance(node.settings, FeatureSettings)
        dataset, teacher = node.names["dataset"], node.names["teacher"]
        sample = FeatureSample(images=number, seed=node.settings.cache.seed)
        inputs = self.files(dataset, number)
        settings = node.settings.model_copy(update={"cache": sample})
        job = self.job(node, inputs | {"model": self.model(dataset, teacher)}, settings)
        key = (dataset, teacher, str(place))
        if not self.attempt(("cache", *key), f"features of {teacher}", "cache", job):
            return False
        read = {"features": job.outputs["features"], "summary": inputs["summary"]}
        scored = self.job(scoring, read)
        return self.attempt(("score", *key), f"scores of {teacher}", "score", scored)

    def build(self, node: graph.JobNode) -> bool:
        """Plan how the networks of a pair are joined."""
        pair, method = node.names["pair"], node.names["method"]
        dataset = self.study.pairs[pair].dataset
        inputs = {"summary": self.files(dataset, len(self.images[dataset].class_names))["summary"]}
        if "scores" in node.inputs:
            inputs["scores"] = self.scratch / node.inputs["scores"]
        key = ("build", pair, method)
        return self.attempt(key, f"{pair} with {method}", "build", self.job(node, inputs))

    def evaluate(self, node: graph.JobNode, dataset: str, model: str) -> bool:
        """Evaluate a network on a few images, by all metrics of the study."""
        inputs = self.files(dataset, len(self.images[dataset].class_names))
        job = self.job(node, inputs | {"model": self.model(dataset, model)})
        key = ("evaluate", dataset, model)
        return self.attempt(key, f"metrics of {model}", "evaluate", job)

    def evaluation(self, node: graph.JobNode) -> list[str]:
        """The command of an evaluation of a few images, without its outputs; [] if it cannot be."""
        pair = self.study.pairs[node.names["pair"]]
        path = self.model(pair.dataset, pair.student)
        if not path.exists():
            return []
        files = self.files(pair.dataset, len(self.images[pair.dataset].class_names))
        settings = node.settings.as_json()
        settings["evaluate"] |= {"metrics": []}  # files of the study are not found from elsewhere
        inputs = [f"{name}={file}" for name, file in (files | {"model": path}).items()]
        options = ["--threads", "1", "--gpus", "0", "--inputs", *inputs]
        return ["-m", "kdsteps", "evaluate", "--settings", json.dumps(settings), *options]

    def seconds_per_image(
        self,
        node: graph.JobNode,
        dataset: str,
        model: str,
        batch_size: int,
        cores: int = 0,
        **options: Any,
    ) -> float | None:
        """Of a forward pass over a batch; None if it could not be timed."""
        own = self.job(node, {})
        threads = cores or own.threads
        macs = self._macs(dataset, model)
        if not self.sharing.gpus and macs:
            batch_size = min(batch_size, max(1, int(2 * CORE_RATE * threads / macs)))
        key = (dataset, model, batch_size, threads, *sorted(options.items()))
        path = self.model(dataset, model)
        if key in self.forward:
            return self.forward[key]
        if not path.exists() or time.monotonic() > self.deadline + PASSES:
            return None
        files = self.files(dataset, len(self.images[dataset].class_names))
        inputs = {**files, "model": path}
        try:
            job = replace(own, inputs=inputs, threads=threads)
            took = timed(job, batch_size, **options)
        except TrialError as error:
            self.say("problem", f"model {model}", str(error).replace(f"{self.scratch}/", ""))
            return None
        self.forward[key] = took / batch_size
        return self.forward[key]

    @staticmethod
    def _changed(recipe: Training, scale: Scale) -> dict[str, Any]:
        """The values of a recipe that differ in a trial."""
        return {
            "batch_size": scale.batch_size,
            "accumulate": recipe.accumulate if scale.batch_size % recipe.accumulate == 0 else 1,
            "gpus": 1,
            "sync_batchnorm": True,
            "learning_rate": recipe.learning_rate * _RATE,
            "compile": False,
        }
