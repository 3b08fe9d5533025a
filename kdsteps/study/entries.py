"""What params.yaml names, its data sets, models, pairs and methods, and the file as a whole."""

from __future__ import annotations

from collections import Counter
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

from kdsteps.study.messages import shown
from kdsteps.study.part_imports import shipped
from kdsteps.study.probe_settings import Probe
from kdsteps.study.settings import (
    Build,
    Cache,
    Combination,
    Distil,
    Evaluate,
    Export,
    Normalization,
    Prepare,
    Report,
    ScoreSection,
    Section,
    Seed,
    Train,
    Tune,
)
from kdsteps.study.texts import Name, Text


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
    """`none`: images without labels, which any folder is; only methods that need no labels."""
    classes: tuple[Text, ...] | None = None
    """With `labels: none`, names of the classes that the images may be of, in the order of the
    teacher's outputs; students then have a classifier, and learn from the teacher's logits too."""


class ModelEntry(_Entry):
    """An entry of `models`: its family, the options of that family, and how it is trained."""

    family: str
    """A model family, such as cifar_resnet or timm."""
    checkpoint: str | None = None
    """File of weights to start from."""
    checkpoint_key: str | None = None
    """Key of the weights in the file, where several fit."""
    checkpoint_prefix: str | None = None
    """Prefix of the names of the weights in the file, where several fit."""
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Accuracy on the validation images that a teacher should reach, 0 to 1."""
    normalize: Literal["dataset", "pretrained", "none"] | Normalization | None = None
    """How images are normalized; by default `pretrained` if the weights are, else `dataset`."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Pixels that the network is built for, one number or [height, width]; others are resized."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """How images are resized; by default as published if `normalize` is, else bilinear."""
    classes: tuple[Text, ...] | tuple[NonNegativeInt, ...] | None = None
    """Names of the network's outputs in their order, or the number of the output of each class."""
    train: Train | None = None
    """Values of the section `train` that differ for this model."""

    def problem(self) -> str | None:
        """The first contradiction, as `key is value; what would be right`, or None."""
        if self.interpolation and self.image_size is None:
            return (
                f"interpolation is {self.interpolation!r} and image_size is not set; set it to the "
                "size to which images are resized"
            )
        if self.classes is None:
            return None
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            return f"classes has {shown(twice[0])} twice; list each output once"
        by_number = any(isinstance(name, int) for name in self.classes)
        has_weights = self.checkpoint or (self.model_extra or {}).get("pretrained")
        if by_number and not has_weights and self.family in shipped("models"):
            return (
                "classes are numbers of outputs, and without weights the network has no outputs to "
                "choose from; set checkpoint or pretrained, or list the names of its outputs"
            )
        return None


class Range(Section):
    """A range of numbers for a random search."""

    low: int | float
    """The lowest value."""
    high: int | float
    """The highest value; if both are whole numbers, only whole numbers are tried."""
    log: bool = False
    """Whether each order of magnitude is as likely as the next."""


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
    """What the stage `tune` tries: for options of the method, and for keys of the section `distil`
    as `distil.<key>`, a list of values, or {low, high, log} for a random search."""


class Pair(Combination):
    """A teacher or several, a student, and the images that all of them see."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["teacher"]}, {"required": ["teachers"]}]}
    )

    dataset: Name
    """A name under `datasets`."""
    teacher: Name | None = None
    """A name under `models`."""
    teachers: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    """Instead of `teacher`: two or more names under `models`, for methods that learn from logits
    alone."""
    student: Name
    """A name under `models`."""
    distil: Distil | None = None
    """Values of the section `distil` that differ for this pair."""
    build: Build | None = None
    """Values of the section `build` that differ for this pair."""
    published: str | None = None
    """The pair of networks whose published accuracies the report shows next to yours."""

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
    """The whole params.yaml as written; the docstring of a section's class describes it."""

    datasets: Annotated[dict[Name, DatasetEntry], Field(min_length=1)]
    """Images, by a name of your choice."""
    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]
    """Networks, teachers and students alike, by a name of your choice."""
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    """Which student learns from which teacher, on which images."""
    methods: Annotated[dict[Name, MethodEntry], Field(min_length=1)]
    """How students learn: a method with its options, or several variants under other names."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
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
    """Where the metrics of every training go while it runs: `tensorboard`, `dvclive`, `mlflow` or
    your own, each with its options. No result depends on it."""
    probe: Probe | None = None
    """The labeled images on which frozen backbones are measured; null: they are not."""
