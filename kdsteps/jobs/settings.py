"""The settings of a job of each rule: exactly the values that it reads, and nothing else.

As JSON they are the job's argument, the reason to rerun it and part of the key of its result, so a
value that is not in them cannot cause a job to be rerun.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from kdsteps.jobs.counting import that_count
from kdsteps.study.exports import BEST
from kdsteps.study.probe_settings import ProbeSettings
from kdsteps.study.resolving import parse
from kdsteps.study.section import Section
from kdsteps.study.settings import (
    BuildPairs,
    BuildStones,
    Combination,
    Dataset,
    FeatureSample,
    MetricSettings,
    Model,
    Options,
    Prepare,
    ScoreSection,
    TimingSettings,
    Values,
)
from kdsteps.study.training_settings import Distil, DrawSettings, FixedDraws, Train, ViewSettings

AUDITED = 5000  # training images on which several teachers are compared, at most


class JobSettings(Section):
    """What one job reads."""

    @property
    def gpus(self) -> int:
        """GPUs that the job uses where there are any."""
        recipe = getattr(self, "train", None) or getattr(self, "distil", None)
        return recipe.gpus if recipe is not None and recipe.epochs else 1

    def as_json(self) -> dict[str, Any]:
        """The settings without values that do not change the job's result."""
        return that_count(self.model_dump(mode="json"))

    def as_text(self) -> str:
        """The JSON text that decides whether a job is rerun."""
        return json.dumps(self.as_json(), sort_keys=True)


class PrepareSettings(JobSettings, Dataset):
    """The data set and how it is split; `source` is the digest of its files, if any."""

    prepare: Prepare
    source: str = ""


class TrainSettings(JobSettings):
    """A teacher and how it is trained; `weights` is the digest of its checkpoint, if any."""

    model: Model
    train: Train
    weights: str = ""


class CheckSettings(JobSettings):
    """What a teacher has to pass before students learn from it.

    `features_only`: it is used as it is, and no method needs its classifier.
    """

    on_failure: Literal["stop", "warn"]
    expected_accuracy: float | None
    batch_size: PositiveInt
    features_only: bool = False


class AuditSettings(JobSettings):
    """Which teachers are compared before a student learns from all of them.

    Attributes:
        teachers: Their names, in the order of their files.
        tolerated: Those that may have problems.
        space: As of a pair.
    """

    teachers: tuple[str, ...]
    tolerated: tuple[str, ...]
    space: Literal["logits", "standardized"]
    batch_size: PositiveInt


class FeatureSettings(JobSettings):
    """Which images' features are cached."""

    cache: FeatureSample


class LogitSettings(JobSettings):
    """The views or draws of the training images for which a teacher's logits are cached."""

    views: DrawSettings | ViewSettings


class ScoreSettings(JobSettings):
    """How layers are scored and selected."""

    score: ScoreSection


class BuildSettings(JobSettings):
    """How two networks are joined."""

    plan: Literal["stones", "pairs"]
    teacher: Model
    student: Model
    build: BuildStones | BuildPairs


class DistilSettings(JobSettings):
    """One run: a student, a method, a recipe and a seed; `weights` as for a teacher.

    Attributes:
        files: The digest of files that options of a user's method name, if any.
        combination: How the logits of several teachers are combined; not written for one teacher,
            so that results of before there were several stay up to date.
        tuned: Keys whose values the job reads from choice.json of the stage `tune`; not written
            where there are none, so that results of before there was this stage stay up to date.
        cache: The draws that are fixed; not written either where they change nothing.
    """

    student: Model
    method: str
    options: Options
    distil: Distil
    seed: NonNegativeInt
    weights: str = ""
    files: str = ""
    combination: Annotated[Combination | None, Field(exclude_if=lambda how: how is None)] = None
    tuned: Annotated[tuple[str, ...], Field(exclude_if=lambda keys: not keys)] = ()
    cache: Annotated[FixedDraws | None, Field(exclude_if=lambda fixed: fixed is None)] = None

    @property
    def numbered_views(self) -> ViewSettings | None:
        """The numbered views or draws that the student sees; None if there are none."""
        return self.distil.numbered_views(self.cache)

    def with_values(self, values: Values) -> Self:
        """The settings with the values of a trial, as if they were written in params.yaml.

        Raises:
            KdstepsError: They are not values that the settings can have.
        """
        content = self.model_dump(mode="json", exclude={"tuned"})
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            content[section or "options"][name] = value
        return parse(type(self), content, "tuned values")


class TuneSettings(DistilSettings):
    """One training of a trial, with its values in place.

    Attributes:
        survivors: How many trials are trained with this seed, the best with the seeds before;
            None: all.
    """

    values: Values
    survivors: PositiveInt | None = None


class ChooseSettings(JobSettings):
    """Which trials there are to choose from."""

    trials: tuple[Values, ...]
    seeds: tuple[NonNegativeInt, ...]


class EvaluateSettings(JobSettings):
    """How a network is evaluated."""

    evaluate: MetricSettings


class LatencySettings(JobSettings):
    """How the networks of a pair are timed: one student for each of the methods."""

    evaluate: TimingSettings
    methods: tuple[str, ...]


class ExportedMethod(Section):
    """A method of exported students, with all its options."""

    method: str
    options: Options
    teacher: bool
    """Whether it uses a teacher."""


class ExportSettings(JobSettings):
    """A student that is exported, or the students of a pair from which the best is chosen.

    Attributes:
        dataset, pair, student, teacher: Names in params.yaml; no teacher for methods without one.
        several: Whether `teacher` is a text about several, whose results are not read.
        run: `best` or `method/seed`.
        methods: What each of the students' methods is.
        seeds: Of the students of each method.
        formats, int8: Which files are written.
        latency_runs, throughput_batch: How these are timed.
        confidence: Level of the intervals.
    """

    dataset: str
    pair: str
    student: str
    teacher: str | None
    several: Annotated[bool, Field(exclude_if=lambda several: not several)] = False
    run: str
    methods: dict[str, ExportedMethod]
    seeds: tuple[NonNegativeInt, ...]
    formats: tuple[Literal["onnx", "safetensors", "timm"], ...]
    int8: bool
    latency_runs: PositiveInt
    throughput_batch: PositiveInt
    confidence: float

    # code that is followed by the names of attributes would take shorter ones for its own
    @property
    def measured_runs(self) -> list[str]:
        """Every run, `method/seed`, whose metrics are read, in the order of the job's files."""
        # sorted, since JSON does not keep the order of the methods
        return [f"{method}/{seed}" for method in sorted(self.methods) for seed in self.seeds]

    @property
    def candidate_runs(self) -> list[str]:
        """Those of which one is exported."""
        return self.measured_runs if self.run == BEST else [self.run]


class NetworkProbeSettings(JobSettings):
    """How the features of a trained network are measured."""

    probe: ProbeSettings


class UntrainedProbeSettings(NetworkProbeSettings):
    """The same for a student as its training begins; `weights` as for a teacher."""

    student: Model
    seed: NonNegativeInt
    weights: str = ""


class ReportSettings(JobSettings):
    """The study as `parse_study` reads it."""

    study: dict[str, JsonValue]


SETTINGS: dict[str, type[JobSettings]] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "train_check": CheckSettings,
    "train_audit": AuditSettings,
    "cache": FeatureSettings,
    "cache_outputs": LogitSettings,
    "score": ScoreSettings,
    "build": BuildSettings,
    "tune": TuneSettings,
    "tune_choose": ChooseSettings,
    "distil": DistilSettings,
    "evaluate": EvaluateSettings,
    "evaluate_teacher": EvaluateSettings,
    "evaluate_latency": LatencySettings,
    "export": ExportSettings,
    "evaluate_probe": NetworkProbeSettings,
    "evaluate_probe_teacher": NetworkProbeSettings,
    "evaluate_probe_untrained": UntrainedProbeSettings,
    "report": ReportSettings,
}
"""The settings of each rule."""


def first_difference(found: Any, wanted: Any, place: str = "") -> tuple[str, str]:
    """The first value in which two settings differ, as `section.key: value` each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                inner = f"{place}.{key}" if place else key
                return first_difference(found.get(key), wanted.get(key), inner)
    name = place or "settings"
    return f"{name}: {json.dumps(found)}", f"{name}: {json.dumps(wanted)}"
