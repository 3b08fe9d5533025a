"""The sections of params.yaml but those of training, and data sets and networks as jobs read them.

One frozen model each, unknown keys refused. The text below a field describes its key in the JSON
schema, in editors and in `kdsteps STAGE --help`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt

from kdsteps.study.section import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_GIB,
    MAX_IMAGES,
    MAX_RUNS,
    EachOnce,
    Fraction,
    Section,
    Seed,
)
from kdsteps.study.texts import Name, Title
from kdsteps.study.training_settings import FixedDraws

Options = dict[str, JsonValue]
"""Keyword arguments of a part: a method, a model family, a kind of data."""
Values = dict[str, JsonValue]
"""What one trial of `tune` tries: options of a method, and `distil.<key>` for keys of `distil`."""
_DIGITS = 6  # of a rounded mean or standard deviation
Score = Literal["quality", "separation", "information", "efficiency", "root_information_efficiency"]


class Prepare(Section):
    """How a data set is split where its source does not define the splits."""

    validation: Fraction = 0.1
    """Fraction of the images not used for testing that are used for validation."""
    test: Fraction = 0.2
    """Fraction of all images that are used for testing."""
    seed: Seed = 0
    """Seed of the random split."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do with images that cannot be read: `refuse` stops and lists them, `skip` leaves them
    out."""


class Tune(Section):
    """How values are tried for methods with `tune`: the same budget for each."""

    trials: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 8
    """Trials of each method; a grid can have fewer combinations but not more."""
    search: Literal["grid", "random"] = "grid"
    """Whether all combinations of the listed values or random ones are tried."""
    seed: Seed = 0
    """Seed for choosing random values."""
    seeds: EachOnce[Annotated[tuple[Seed, ...], Field(min_length=1)]] = (100,)
    """Every trial is trained once with each of these seeds, none of them in the study's `seeds`."""
    halving: Annotated[int, Field(gt=1, le=MAX_RUNS)] | None = None
    """Successive halving: 2 means that after each seed only the better half of the trials continues
    to the next seed, 3 the best third, and so on; null: all trials are trained with all seeds."""


class FeatureSample(Section):
    """The images whose features are cached for the scores, balanced over the classes."""

    images: Annotated[int, Field(gt=0, le=MAX_IMAGES)] = 5000
    """Training images whose features are cached for the scores, balanced over the classes."""
    seed: Seed = 0
    """Seed for choosing the images, and for `draws`."""


class Combination(Section):
    """How the logits of several teachers become those of one."""

    combine: Literal["mean", "median", "confidence"] = "mean"
    """How the logits of several teachers are combined: their `mean` or `median`, class by class, or
    `confidence`, their mean weighted by how well each one predicts the label of the image."""
    space: Literal["logits", "standardized"] = "logits"
    """What is combined: `logits`, or logits `standardized` for each image and teacher, so that a
    teacher with larger logits does not have more weight."""


class Cache(FeatureSample):
    """What is cached of a teacher."""

    budget_gib: Annotated[float, Field(gt=0, le=MAX_GIB)] = 4.0
    """Largest size of a cache file, in GiB."""
    outputs: Literal["auto", "always", "never"] = "auto"
    """Whether the teacher's logits for training are cached; `auto`: if it saves time."""
    draws: Annotated[
        int | None, Field(gt=0, le=MAX_EPOCHS, exclude_if=lambda draws: draws is None)
    ] = None
    """Number of random augmentations (draws) per image that are fixed for all students, so that
    logits can be cached for any augmentation. Students see one of them in each epoch, in turn;
    `seed` decides them. Used if images have more views than this; null: off."""

    @property
    def fixed_draws(self) -> FixedDraws | None:
        """The draws that are fixed, if any."""
        return None if self.draws is None else FixedDraws(draws=self.draws, seed=self.seed)


class ScoreSection(Section):
    """How layers are scored and selected."""

    variant: Literal["intended", "as_coded"] = "intended"
    """The formula of knowledge quality: as the paper intends it, or as its authors' code computes
    it."""
    select: Score = "quality"
    """The score that selects layers."""
    num_layers: PositiveInt = 3
    """Number of layers to select."""


class BuildStones(Section):
    """The keys of `build` that stepping stones use."""

    cuts: (
        Literal["stages", "quality"] | Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    ) = "stages"
    """Where the networks are cut: at the ends of their stages, at the layers of highest knowledge
    quality, or at a list of pairs [student layer, teacher layer]."""
    num_stones: PositiveInt | None = None
    """Number of stepping stones; by default one per stage."""
    connector: Literal["conv_norm", "conv", "three_layer", "identity"] = "conv_norm"
    """What connects a student's front to a teacher's tail."""


class BuildPairs(Section):
    """The keys of `build` that pairs of layers use."""

    select: Score | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The teacher's layers: the score that selects them, or their names; by default those that the
    stage `score` selected."""
    num_pairs: PositiveInt | None = None
    """Number of pairs; by default as many as the stage `score` selected, at most one for each of a
    student's layers."""
    student_layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The student's layers; by default the ends of its stages."""
    projector: Literal["conv", "three_layer"] = "conv"
    """What maps the student's features to the teacher's during training."""


class Build(BuildStones, BuildPairs):
    """How students and teachers are joined."""

    def of_plan(self, plan: str | None) -> BuildStones | BuildPairs:
        """The keys that a plan, "stones" or "pairs", uses."""
        return (BuildStones if plan == "stones" else BuildPairs).taken_from(self)


class MetricSettings(Section):
    """The keys of `evaluate` for metrics of predictions and networks."""

    calibration_bins: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 15
    """Bins of the expected calibration error."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 256
    """Images per batch for predictions."""
    metrics: EachOnce[tuple[str, ...]] = ()
    """Your own metrics: `./file.py:name`, `package.module:name` or the name of an entry point."""


class TimingSettings(Section):
    """The keys of `evaluate` for measuring latency and throughput."""

    latency_runs: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 100
    """Number of single images that are timed, after a warm-up."""
    throughput_batch: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64
    """Images per batch for measuring throughput."""
    metrics: tuple[str, ...] = ()


class Evaluate(TimingSettings, MetricSettings):
    """How trained networks are evaluated."""

    metrics: EachOnce[tuple[str, ...]] = ()
    """Your own metrics: `./file.py:name`, `package.module:name` or the name of an entry point."""


class Export(Section):
    """Which trained students are exported for use elsewhere; without this section, none."""

    runs: Literal["best", "all"] | EachOnce[Annotated[tuple[str, ...], Field(min_length=1)]] = (
        "best"
    )
    """`best`: for each pair, the run with the highest accuracy on the validation images; `all`;
    or a list of methods, runs as `pair/method/seed`, and `best`."""
    formats: EachOnce[
        Annotated[tuple[Literal["onnx", "safetensors", "timm"], ...], Field(min_length=1)]
    ] = ("onnx",)
    """`onnx`: the network with its normalization, for onnxruntime and `kdsteps predict`;
    `safetensors`: its weights; `timm`: a folder that timm can load."""
    int8: bool = False
    """Whether an 8-bit ONNX file, calibrated on training images, is written as well."""


class Report(Section):
    """What the report shows."""

    title: Title = "Distillation study"
    """Title of the report."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    references: EachOnce[Annotated[tuple[Name, ...], Field(min_length=1, max_length=2)]] | None = (
        None
    )
    """One or two entries of `methods` that all others are compared with, such as the first of
    several variants of a method; by default the entries of the methods `labels` and `kd`."""


class Normalization(Section):
    """How a network's images are normalized: (x - mean) / std, on the scale 0 to 1."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    """Mean of each channel."""
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Standard deviation of each channel."""

    def rounded(self) -> dict[str, list[float]]:
        """As an entry of params.yaml has it."""
        return {name: [round(value, _DIGITS) for value in values] for name, values in self}


class Dataset(Section):
    """A data set: its kind with the options of that kind, and whether it has labels.

    Attributes:
        classes: Names of the classes of images without labels, if they are known.
    """

    kind: str
    options: Options
    labels: Literal["none"] | None = None
    classes: tuple[str, ...] | None = None


WITH_PUBLISHED_WEIGHTS = ("timm", "torchvision")
"""Families whose networks can start from weights that their library publishes."""


class Model(Section):
    """A network: its family with the options of that family, `checkpoint` among them.

    Attributes:
        normalize: How its images are normalized; None: as the data set's.
        image_size: (height, width) that it is built for; None: that of the data set's images.
        interpolation: How images of another size are resized; None: as published if `normalize` is
            "pretrained", else bilinear.
        classes: The names of its outputs in their order, or for each class of the data set the
            number of its output; None: the data set's classes.
    """

    family: str
    options: Options
    normalize: Literal["pretrained", "none"] | Normalization | None = None
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    classes: tuple[str, ...] | tuple[NonNegativeInt, ...] | None = None
