"""The settings of a job of each rule: exactly the values that it reads, and nothing else.

As JSON they are the job's argument, the reason to rerun it and part of the key of its result, so a
value that is not in them cannot cause a job to be rerun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from kdsteps.study.settings import (
    BuildPairs,
    BuildStones,
    Dataset,
    Distil,
    FeatureSample,
    MetricSettings,
    Model,
    Options,
    Prepare,
    ScoreSection,
    Section,
    TimingSettings,
    Train,
    Values,
    ViewSettings,
)
from kdsteps.study.study import parse

INPUTS = ("source", "weights")
"""Digests of files that params.yaml names; left out where there are none."""
_WITHOUT_EFFECT = ("checkpoint_minutes", "teacher_check")  # on the network that is trained
_OFF = {
    "clip_grad_norm": None,
    "head_learning_rate_factor": 1.0,
    "features_only": False,
    "accumulate": 1,
    "ema": None,
    "gpus": 1,
    "sync_batchnorm": True,
}
"""Settings that came later and are left out at this value, where they have no effect."""


class JobSettings(Section):
    """What one job reads."""

    @property
    def gpus(self) -> int:
        """GPUs that the job uses where there are any."""
        recipe = getattr(self, "train", None) or getattr(self, "distil", None)
        return recipe.gpus if recipe is not None and recipe.epochs else 1

    def as_json(self) -> dict[str, Any]:
        """The settings without values that do not change the job's result."""
        content = self.model_dump(mode="json")
        for name in content.keys() & {"train", "distil"}:
            content[name] = {
                key: value
                for key, value in _without_off(content[name]).items()
                if key not in _WITHOUT_EFFECT
            }
        return {
            name: value
            for name, value in _without_off(content).items()
            if value != "" or name not in INPUTS
        }

    def as_text(self) -> str:
        """The JSON text that decides whether a job is rerun."""
        return json.dumps(self.as_json(), sort_keys=True)


def _without_off(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in content.items() if not (key in _OFF and v == _OFF[key])}


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


class FeatureSettings(JobSettings):
    """Which images' features are cached."""

    cache: FeatureSample


class LogitSettings(JobSettings):
    """The views of the training images for which a teacher's logits are cached."""

    views: ViewSettings


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
        tuned: Keys whose values the job reads from choice.json of the stage `tune`; not written
            where there are none, so that results of before there was this stage stay up to date.
    """

    student: Model
    method: str
    options: Options
    distil: Distil
    seed: NonNegativeInt
    weights: str = ""
    tuned: Annotated[tuple[str, ...], Field(exclude_if=lambda keys: not keys)] = ()

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


class ReportSettings(JobSettings):
    """The study as `parse_study` reads it."""

    study: dict[str, JsonValue]


SETTINGS: dict[str, type[JobSettings]] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "train_check": CheckSettings,
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
