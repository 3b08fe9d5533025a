"""The sections of params.yaml: one frozen model each, unknown keys refused.

Every training field is declared here and nowhere else; stages receive these objects.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
)

from kdsteps.study.messages import MAX_NAME
from kdsteps.study.run_length import in_epochs

Name = Annotated[  # becomes part of paths
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=MAX_NAME)
]
MAX_SEED = 2**32 - 1  # the largest that every generator takes
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
MAX_BATCH, MAX_EPOCHS = 1_000_000, 1_000_000  # beyond these a typing error is likely


def _without_control_characters(text: str) -> str:
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise ValueError(f"has the control character {character!r}; delete it")
    return text


Title = Annotated[str, Field(max_length=200), AfterValidator(_without_control_characters)]
Options = dict[str, JsonValue]
"""Keyword arguments of a part: a method, a model family, a kind of data."""
Score = Literal["quality", "separation", "information", "efficiency", "root_information_efficiency"]


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def taken_from(cls, section: Section) -> Self:
        """The fields of this class out of a section that has them all."""
        return cls.model_construct(**{name: getattr(section, name) for name in cls.model_fields})

    def updated(self, changes: Section | None) -> Self:
        """A copy with the fields that `changes`, of the same class, sets explicitly."""
        given = changes.model_fields_set if changes is not None else set()
        return self.model_copy(update={name: getattr(changes, name) for name in given})


class Prepare(Section):
    """How a data set is split if its source does not say: the section `prepare`."""

    validation: Fraction = 0.1  # of the images that are not for testing
    test: Fraction = 0.2
    seed: Seed = 0
    broken: Literal["refuse", "skip"] = "refuse"  # images that cannot be read


class ViewSettings(Section):
    """What a teacher's logits for a training image depend on, besides teacher and image.

    Random crops and flips give every image a fixed number of views. Precision and batch size count
    because rounding depends on them.
    """

    crop_padding: NonNegativeInt = 0  # pixels; 0: no random crop
    flip: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64

    @property
    def name(self) -> str:
        """A name for files, such as `crop4_flip_batch64`."""
        crop = [f"crop{self.crop_padding}"] if self.crop_padding else []
        shown = crop + ["flip"] * self.flip or ["plain"]
        precision = [self.precision] * (self.precision != "float32")
        return "_".join([*shown, *precision, f"batch{self.batch_size}"])


class Training(ViewSettings):
    """How a network is trained; the defaults are the CIFAR-100 benchmark's recipe."""

    epochs: Annotated[int, Field(gt=0, le=MAX_EPOCHS)] = 240
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.05  # peak, after the warm-up
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["constant", "cosine", "onecycle", "steps"] = "steps"
    warmup: Fraction = 0.0  # of all steps; onecycle: the rising part, 0.3 if left at 0
    # Where the schedule `steps` lowers the rate: fractions of the run, or epochs.
    milestones: tuple[PositiveFloat, ...] = (0.625, 0.75, 0.875)
    decay: PositiveFloat = 0.1  # factor at each milestone
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0  # magnitude; 0: off
    resized_crop: Fraction = 0.0  # smallest fraction of the area that a random crop keeps; 0: off
    mixup: NonNegativeFloat = 0.0  # alpha; 0: off
    cutmix: NonNegativeFloat = 0.0  # alpha; 0: off
    clip_grad_norm: Annotated[
        PositiveFloat | None,
        Field(
            description="largest norm of the gradient of all trained weights together, those of "
            "the student and of the method's own modules; a larger one is scaled down to it; "
            "null: off"
        ),
    ] = None
    head_learning_rate_factor: Annotated[
        PositiveFloat,
        Field(
            description="times the learning rate: that of a classifier that starts with new "
            "weights in a network that starts from a checkpoint or published weights"
        ),
    ] = 1.0
    compile: bool = False
    checkpoint_minutes: PositiveFloat = 10.0  # between two saves to resume from

    @property
    def per_image(self) -> bool:
        """Whether images are augmented one by one, which is faster in several processes."""
        return bool(self.randaugment or self.resized_crop)

    @property
    def views(self) -> ViewSettings | None:
        """What the teacher's logits depend on; None if views cannot be numbered.

        Crops and flips can be numbered; all other augmentation is a continuum.
        """
        if self.per_image or self.mixup or self.cutmix:
            return None
        return ViewSettings.taken_from(self)

    def milestone_epochs(self) -> list[float]:
        """Where the rate falls, in epochs from the start."""
        return [in_epochs(at, self.epochs) for at in self.milestones]

    def problem(self) -> str | None:
        """The first contradiction, as `key is value; what would be right`, or None."""
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            return "nesterov is true and momentum is 0; momentum should be above 0"
        if self.schedule != "steps" or not self.epochs:
            return None
        late = [at for at in self.milestones if at >= max(1, self.epochs)]
        if late:
            return (
                f"milestones has {late[0]:g} and epochs is {self.epochs}; milestones should be "
                "below epochs, or fractions of the run such as 0.75"
            )
        if any(at > 1 and at % 1 for at in self.milestones):
            return "milestones has a fraction of an epoch; use fractions of the run or whole epochs"
        return None


class Train(Training):
    """How every teacher is trained: the section `train`."""

    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = (
        240  # 0: used as is, from its `checkpoint` or `pretrained`
    )
    seed: Seed = 0
    teacher_check: Literal["stop", "warn"] = "stop"  # if the trained teacher is not good enough


class Distil(Training):
    """How every student is trained: the section `distil`."""


class FeatureSample(Section):
    """The images whose features are cached for the scores, balanced over the classes."""

    images: PositiveInt = 5000
    seed: Seed = 0


class Cache(FeatureSample):
    """What is cached of a teacher: the section `cache`."""

    budget_gib: PositiveFloat = 4.0
    outputs: Literal["auto", "always", "never"] = "auto"  # the teacher's logits for training


class ScoreSection(Section):
    """How layers are scored and selected: the section `score`."""

    variant: Literal["intended", "as_coded"] = "intended"
    select: Score = "quality"
    num_layers: PositiveInt = 3


class BuildStones(Section):
    """The keys of `build` that stepping stones use."""

    cuts: Literal["stages", "quality"] | tuple[tuple[str, str], ...] = "stages"
    num_stones: PositiveInt | None = None  # None: one for each stage
    connector: Literal["conv_norm", "conv", "three_layer", "identity"] = "conv_norm"


class BuildPairs(Section):
    """The keys of `build` that pairs of layers use."""

    select: Score | tuple[str, ...] | None = None  # None: as the stage `score` selected
    num_pairs: PositiveInt | None = None  # None: one for each stage of the student
    student_layers: tuple[str, ...] | None = None  # None: the student's stages
    projector: Literal["conv", "three_layer"] = "conv"


class Build(BuildStones, BuildPairs):
    """How students and teachers are joined: the section `build`."""

    def of_plan(self, plan: str | None) -> BuildStones | BuildPairs:
        """The keys that a plan, "stones" or "pairs", uses."""
        return (BuildStones if plan == "stones" else BuildPairs).taken_from(self)


class MetricSettings(Section):
    """The keys of `evaluate` for metrics of predictions and networks."""

    calibration_bins: PositiveInt = 15
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 256
    metrics: tuple[str, ...] = ()  # your own: ./file.py:name, package.module:name, entry point


class TimingSettings(Section):
    """The keys of `evaluate` for measuring latency and throughput."""

    latency_runs: PositiveInt = 100  # single images, after a warm-up
    throughput_batch: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64  # images
    metrics: tuple[str, ...] = ()


class Evaluate(TimingSettings, MetricSettings):
    """How trained networks are evaluated: the section `evaluate`."""


class Report(Section):
    """The settings of the report: the section `report`."""

    title: Title = "Distillation study"
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Normalization(Section):
    """How a network's images are normalized: (x - mean) / std, on the scale 0 to 1."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class DatasetEntry(BaseModel):
    """An entry of `datasets`: its kind, and the options of that kind."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Annotated[str, Field(description="a kind of data, such as digits or folder")]


class ModelEntry(BaseModel):
    """An entry of `models`: its family, the options of that family, and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    family: Annotated[str, Field(description="a model family, such as cifar_resnet or timm")]
    checkpoint: str | None = None
    checkpoint_key: str | None = None  # of the weights in the file, where several fit
    checkpoint_prefix: str | None = None
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None  # on validation images
    # How images are normalized; None: `pretrained` if its weights are, otherwise `dataset`.
    normalize: Literal["dataset", "pretrained", "none"] | Normalization | None = None
    classes: tuple[str, ...] | None = None  # the names of its outputs, in their order
    train: Train | None = None  # values of the section `train` that differ for this model


class MethodEntry(BaseModel):
    """An entry of `methods`: the options of a method, under its name or another one."""

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str | None = None  # None: the entry's own name
    distil: Distil | None = None  # values of the section `distil` that differ for this method
    build: Build | None = None


class Pair(Section):
    """A teacher, a student and the images that both see."""

    dataset: Annotated[Name, Field(description="a name under datasets")]
    teacher: Annotated[Name, Field(description="a name under models")]
    student: Annotated[Name, Field(description="a name under models")]
    distil: Distil | None = None  # values of the section `distil` that differ for this pair
    build: Build | None = None
    published: str | None = None  # published values that the report shows next to ours


class Params(Section):
    """The whole params.yaml as written."""

    datasets: Annotated[dict[Name, DatasetEntry], Field(min_length=1)]
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    methods: Annotated[dict[Name, MethodEntry], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    prepare: Prepare = Prepare()
    train: Train = Train()
    cache: Cache = Cache()
    score: ScoreSection = ScoreSection()
    build: Build = Build()
    distil: Distil = Distil()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()


class Dataset(Section):
    """A data set: its kind with the options of that kind."""

    kind: str
    options: Options


class Model(Section):
    """A network: its family with the options of that family, `checkpoint` among them.

    Attributes:
        normalize: How its images are normalized; None: as the data set's.
        classes: The names of its outputs in their order; None: the data set's classes.
    """

    family: str
    options: Options
    normalize: Literal["pretrained", "none"] | Normalization | None = None
    classes: tuple[str, ...] | None = None
