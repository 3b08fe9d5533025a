"""What params.yaml names, its data sets, models, pairs and methods, and the file as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    Tag,
)

from kdsteps.study.part_imports import shipped
from kdsteps.study.probe_settings import Probe
from kdsteps.study.section import EachOnce, Section, Seed
from kdsteps.study.settings import (
    WITH_PUBLISHED_WEIGHTS,
    Build,
    Cache,
    Combination,
    Evaluate,
    Export,
    Normalization,
    Prepare,
    Report,
    ScoreSection,
    Tune,
)
from kdsteps.study.texts import Name, Text
from kdsteps.study.training_settings import Distil, Train


class _Entry(BaseModel):
    """The keys of an entry besides the options of the part that it names."""

    model_config = ConfigDict(
        frozen=True, extra="allow", protected_namespaces=(), use_attribute_docstrings=True
    )


class DatasetEntry(_Entry):
    """An entry of `datasets`: its kind, and the options of that kind."""

    kind: str
    """A kind of data, such as digits or folder."""
    labels: Literal["none"] | None = None
    """`none`: images without labels, such as any folder of images; for methods that need none."""
    classes: EachOnce[Annotated[tuple[Text, ...], Field(min_length=2)]] | None = None
    """With `labels: none`, names of the classes that the images can have, in the order of the
    teacher's outputs; students then have a classifier and can learn from the teacher's logits."""


class ModelEntry(_Entry):
    """An entry of `models`: its family, the options of that family, and how it is trained."""

    family: str
    """A model family, such as cifar_resnet or timm."""
    checkpoint: str | None = None
    """File of initial weights."""
    checkpoint_key: str | None = None
    """Key of the weights in the file, if several fit."""
    checkpoint_prefix: str | None = None
    """Prefix of the names of the weights in the file, if several fit."""
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Accuracy on the validation images that a teacher should reach, 0 to 1."""
    normalize: Literal["dataset", "pretrained", "none"] | Normalization | None = None
    """How images are normalized; by default `pretrained` for pretrained weights, else `dataset`."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Image size of the network, one number or [height, width]; other images are resized to it."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """How images are resized; by default as published if `normalize` is, or defaults to,
    `pretrained`, else bilinear."""
    classes: EachOnce[tuple[Text, ...] | tuple[NonNegativeInt, ...]] | None = None
    """Names of the network's outputs in order, or the index of the output for each class."""
    train: Train | None = None
    """Values of the section `train` that differ for this model."""

    def problem(self) -> str | None:
        """The first contradiction, as `key is value; what would be right`, or None."""
        if self.interpolation and self.image_size is None:
            return (
                f"interpolation is {self.interpolation!r} and image_size is not set; set it to the "
                "size to which images are resized"
            )
        if problem := self._normalize_problem():
            return problem
        if self.classes is None:
            return None
        by_number = any(isinstance(name, int) for name in self.classes)
        has_weights = self.checkpoint or (self.model_extra or {}).get("pretrained")
        if by_number and not has_weights and self.family in shipped("models"):
            return (
                "classes are numbers of outputs, and without weights the network has no outputs to "
                "choose from; set checkpoint or pretrained, or list the names of its outputs"
            )
        return None

    def _normalize_problem(self) -> str | None:
        given = self.normalize
        if isinstance(given, Normalization) and len(given.mean) != len(given.std):
            return (
                f"normalize has {len(given.mean)} means and {len(given.std)} stds; it should have "
                "one of each per channel"
            )
        without_weights = {*shipped("models")} - {*WITH_PUBLISHED_WEIGHTS}
        if given == "pretrained" and self.family in without_weights:
            return (
                f"normalize is 'pretrained', and the family {self.family!r} has no published "
                "weights; set {mean: [...], std: [...]}, or leave it out"
            )
        return None


class Range(Section):
    """A range of numbers for a random search."""

    low: int | float
    """Lowest value."""
    high: int | float
    """Highest value; if both are whole numbers, only whole numbers are tried."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale."""


def _kind_of(tried: Any) -> str:
    """Whether the values to try are a range or a list, so that an error is about one of them."""
    return "range" if isinstance(tried, dict | Range) else "list"


def _keys_in_one(tune: Any) -> Any:
    """Raise ValueError for `distil: {momentum: ...}` instead of `distil.momentum: ...`."""
    for key, tried in tune.items() if isinstance(tune, dict) else ():
        if isinstance(tried, dict) and tried and not tried.keys() & Range.model_fields.keys():
            inner = f"{key}.{next(iter(tried))}"
            raise ValueError(f"has {key} with keys inside; write it as one key, `{inner}: [...]`")
    return tune


_Tried = Annotated[
    Annotated[list[JsonValue], Field(min_length=1), Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(_kind_of),
]


class MethodEntry(_Entry):
    """An entry of `methods`: the options of a method, under its name or another one."""

    method: str | None = None
    """A method, or your own as `./file.py:Name`; by default the name of the entry."""
    distil: Distil | None = None
    """Values of the section `distil` that differ for this method."""
    build: Build | None = None
    """Values of the section `build` that differ for this method."""
    tune: Annotated[dict[str, _Tried], BeforeValidator(_keys_in_one)] | None = None
    """What the stage `tune` tries: for options of the method, and keys of the section `distil` as
    `distil.<key>`, a list of values, or {low, high, log} for a random search."""


class Pair(Combination):
    """One or several teachers, a student, and the images for all of them."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["teacher"]}, {"required": ["teachers"]}]}
    )

    dataset: Name
    """A name under `datasets`."""
    teacher: Name | None = None
    """A name under `models`."""
    teachers: EachOnce[Annotated[tuple[Name, ...], Field(min_length=2)]] | None = None
    """Instead of `teacher`: two or more names under `models`, for methods that use only logits."""
    student: Name
    """A name under `models`."""
    distil: Distil | None = None
    """Values of the section `distil` that differ for this pair."""
    build: Build | None = None
    """Values of the section `build` that differ for this pair."""
    published: str | None = None
    """The published pair of networks whose accuracies the report shows next to yours."""

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The names of its teachers."""
        return self.teachers or (() if self.teacher is None else (self.teacher,))

    @property
    def only_teacher(self) -> str:
        """The name of the teacher whose layers a method uses: there is one alone."""
        (name,) = self.teacher_names
        return name

    @property
    def taught_by(self) -> str:
        """Its teacher as text, or its teachers and how they are combined."""
        if self.teachers is None:
            return self.only_teacher
        return f"{', '.join(self.teachers)} ({self.combined_how})"

    @property
    def combined_how(self) -> str:
        """How the logits of its teachers are combined, as text."""
        mean = "confidence-weighted mean" if self.combine == "confidence" else self.combine
        return f"{mean} of {'standardized ' * (self.space == 'standardized')}logits"

    @property
    def combination(self) -> Combination:
        """How the logits of its teachers are combined."""
        return Combination.taken_from(self)


class LoggerEntry(_Entry):
    """An entry of `loggers`: the options of a logger, under its name or another one."""

    logger: str | None = None
    """A logger, or your own as `./file.py:Name`; by default the name of the entry."""


class Params(Section):
    """The whole params.yaml as written; each section is described by the docstring of its class."""

    datasets: Annotated[dict[Name, DatasetEntry], Field(min_length=1)]
    """Images, by a name of your choice."""
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]
    """Networks, both teachers and students, by a name of your choice."""
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    """Which student learns from which teacher, on which images."""
    methods: Annotated[dict[Name, MethodEntry], Field(min_length=1)]
    """How students learn: a method with its options, or several variants under other names."""
    seeds: EachOnce[Annotated[tuple[Seed, ...], Field(min_length=1)]]
    """Every student is trained once with each seed."""
    prepare: Prepare = Prepare()
    train: Train = Train()
    cache: Cache = Cache()
    score: ScoreSection = ScoreSection()
    build: Build = Build()
    tune: Tune = Tune()
    distil: Distil = Distil()
    evaluate: Evaluate = Evaluate()
    export: Export | None = None
    report: Report = Report()
    loggers: dict[Name, LoggerEntry] = Field({})
    """Where metrics are logged during training: `tensorboard`, `dvclive`, `mlflow` or your own,
    each with its options. Results do not depend on it."""
    probe: Probe | None = None
    """How the features of frozen backbones are measured, on labeled images; null: they are not."""
