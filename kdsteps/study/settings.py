"""What params.yaml may say: one frozen model a section, unknown keys refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.messages import MAX_NAME, sentence, shown
from kdsteps.study.yaml_text import NotYaml, read_yaml

Name = Annotated[  # stands in paths
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=MAX_NAME)
]
MAX_SEED = 2**32 - 1  # what every generator takes
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, lt=1)]
Entry = dict[str, Any]
SectionT = TypeVar("SectionT", bound="Section")
ModelT = TypeVar("ModelT", bound=BaseModel)
Score = Literal["quality", "separation", "information", "efficiency", "root_information_efficiency"]


class Section(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pair(Section):
    """A teacher, a student and the images both see."""

    dataset: Annotated[Name, Field(description="a name under datasets")]
    teacher: Annotated[Name, Field(description="a name under models")]
    student: Annotated[Name, Field(description="a name under models")]
    distil: Entry = {}  # values of the section `distil` that differ for this pair
    build: Entry = {}  # values of the section `build` that differ for this pair
    published: str | None = None  # published values that the report shows beside ours


class Prepare(Section):
    """How a dataset is split where its source does not say: the section `prepare`."""

    validation: Share = 0.1  # of the images that are not for testing
    test: Share = 0.2
    seed: Seed = 0
    broken: Literal["refuse", "skip"] = "refuse"  # images that cannot be read


class Training(Section):
    """How a network is trained; the benchmark's recipe unless told otherwise."""

    epochs: PositiveInt = 240
    batch_size: PositiveInt = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.05  # peak, after the warm-up
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["constant", "cosine", "onecycle", "steps"] = "steps"
    warmup: Share = 0.0  # share of all steps; onecycle: the rising part, 0.3 if left at 0
    milestones: tuple[PositiveInt, ...] = (150, 180, 210)  # epochs, of the schedule `steps`
    decay: PositiveFloat = 0.1  # factor at each milestone
    crop_padding: NonNegativeInt = 0  # pixels; 0: no random crop
    flip: bool = False
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0  # magnitude; 0: off
    resized_crop: Share = 0.0  # least share of the area that a random crop keeps; 0: off
    mixup: NonNegativeFloat = 0.0  # alpha; 0: off
    cutmix: NonNegativeFloat = 0.0  # alpha; 0: off
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_minutes: PositiveFloat = 10.0  # between two saves to resume from

    @property
    def views(self) -> str | None:
        """How a teacher sees the training images, as a name; None if that cannot be numbered.

        Crop and flip give every image a number of views, whatever lies beyond them a continuum.
        Precision and batch size are part of it, for on them rests how answers are rounded.
        """
        if self.randaugment or self.resized_crop or self.mixup or self.cutmix:
            return None
        crop = [f"crop{self.crop_padding}"] if self.crop_padding else []
        shown = crop + ["flip"] * self.flip or ["plain"]
        precision = [self.precision] * (self.precision != "float32")
        return "_".join([*shown, *precision, f"batch{self.batch_size}"])

    @model_validator(mode="after")
    def _momentum_for_nesterov(self) -> Self:
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("asks for nesterov without momentum; momentum should be above 0")
        return self


class Train(Training):
    """How every teacher is trained: the section `train`."""

    epochs: NonNegativeInt = 240  # 0: taken as it is, from its `checkpoint` or `pretrained`
    seed: Seed = 0


class Distil(Training):
    """How every student is trained: the section `distil`."""


class Cache(Section):
    """What of a teacher is kept: the section `cache`."""

    images: PositiveInt = 5000  # whose features are kept for the scores, balanced over classes
    seed: Seed = 0
    budget_gib: PositiveFloat = 4.0
    outputs: Literal["auto", "always", "never"] = "auto"  # the teacher's logits for training


class ScoreSection(Section):
    """How layers are scored and chosen: the section `score`."""

    variant: Literal["intended", "as_coded"] = "intended"
    select: Score = "quality"
    num_layers: PositiveInt = 3


class Build(Section):
    """How students and teachers are joined: the section `build`."""

    cuts: Literal["stages", "quality"] | tuple[tuple[str, str], ...] = "stages"  # block_kd
    num_stones: PositiveInt | None = None  # block_kd; None: as many as there are stages
    connector: Literal["conv_norm", "conv", "three_layer", "identity"] = "conv_norm"  # block_kd
    select: Score | tuple[str, ...] | None = None  # feature_only; None: as the stage score chose
    num_pairs: PositiveInt | None = None  # feature_only; None: as many as the student has stages
    student_layers: tuple[str, ...] | None = None  # feature_only; None: the student's stages
    projector: Literal["conv", "three_layer"] = "conv"  # feature_only


class Evaluate(Section):
    """What is measured of a trained network: the section `evaluate`."""

    calibration_bins: PositiveInt = 15
    latency_runs: PositiveInt = 100  # single images, after a warm-up
    batch_size: PositiveInt = 256


class Report(Section):
    """What the report says: the section `report`."""

    title: str = "Distillation study"
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Study(Section):
    """The whole of params.yaml."""

    datasets: Annotated[
        dict[Name, Entry],
        Field(min_length=1, description="at least one entry `name: {kind: ...}`"),
    ]
    models: Annotated[
        dict[Name, Entry],
        Field(min_length=1, description="at least one entry `name: {family: ...}`"),
    ]
    pairs: Annotated[
        dict[Name, Pair],
        Field(
            min_length=1,
            description="at least one entry `name: {dataset: ..., teacher: ..., student: ...}`",
        ),
    ]
    methods: Annotated[
        dict[Name, Entry],
        Field(min_length=1, description="at least one entry `name: {options}`, such as `kd: {}`"),
    ]
    seeds: Annotated[
        tuple[Seed, ...],
        Field(
            min_length=1,
            description=f"a list of whole numbers from 0 to {MAX_SEED}, such as [0, 1, 2]",
        ),
    ]
    prepare: Prepare = Prepare()
    train: Train = Train()
    cache: Cache = Cache()
    score: ScoreSection = ScoreSection()
    build: Build = Build()
    distil: Distil = Distil()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()

    @field_validator("methods", "datasets", "models", mode="before")
    @classmethod
    def _bare_names(cls, entries: Any) -> Any:
        """`kd:` without anything behind it means all defaults."""
        if not isinstance(entries, dict):
            return entries
        return {name: {} if entry is None else entry for name, entry in entries.items()}


_OPTIONAL = tuple(name for name, field in Study.model_fields.items() if not field.is_required())


def load_study(path: str | Path = "params.yaml") -> Study:
    """The study that `path` describes, checked as far as it can be without data and networks.

    Raises:
        KdstepsError: The file is missing or no YAML, or says something that cannot be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise KdstepsError(
            f"{path}: is not there; run kdsteps where params.yaml lies, or copy one from recipes/"
        ) from error
    except OSError as error:
        raise KdstepsError(
            f"{path}: cannot be read ({error.strerror}); give a file that you may read"
        ) from error
    except UnicodeDecodeError as error:
        raise KdstepsError(f"{path}: is no UTF-8 text; write it as a YAML file") from error
    try:
        content = read_yaml(text)
    except NotYaml as error:
        line = f" line {error.line}" if error.line else ""
        raise KdstepsError(f"{path}:{line} is not YAML: {error.problem}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else shown(content)
        raise KdstepsError(
            f"{path}: is {found}; it should have the sections datasets, models, pairs, methods "
            "and seeds"
        )
    return parse_study(content, str(path))


def parse_study(content: dict[str, Any], where: str = "params.yaml") -> Study:
    """The study that `content`, the parsed params.yaml, describes.

    Raises:
        KdstepsError: As `load_study`.
    """
    blank = {name for name in _OPTIONAL if content.get(name, ...) is None}  # `evaluate:` alone
    study = parse(Study, {key: content[key] for key in content if key not in blank}, where)
    _check_seeds(study, where)
    for name, entry in study.datasets.items():
        dataset_entry(entry, f"{where}: datasets.{name}")
    for name, entry in study.models.items():
        model_entry(entry, f"{where}: models.{name}")
        merge(study.train, entry.get("train", {}), f"{where}: models.{name}.train")
    for name, pair in study.pairs.items():
        _check_pair(study, pair, f"{where}: pairs.{name}")
        merge(study.distil, pair.distil, f"{where}: pairs.{name}.distil")
        merge(study.build, pair.build, f"{where}: pairs.{name}.build")
    for name, entry in study.methods.items():
        spot = f"{where}: methods.{name}"
        method_entry(name, entry, spot)
        merge(study.distil, entry.get("distil", {}), f"{spot}.distil")
        merge(study.build, entry.get("build", {}), f"{spot}.build")
    return study


def dataset_entry(entry: Entry, where: str) -> tuple[str, Entry]:
    """The kind of data and its options, defaults filled in."""
    return _part("data", "kind", entry, where, ())


def model_entry(entry: Entry, where: str = "models") -> tuple[str, Entry]:
    """The family of a model and its options, defaults filled in, `checkpoint` among them."""
    family, options = _part("models", "family", entry, where, ("train", "checkpoint"))
    for name in registry.GIVEN:
        if name in options:
            raise KdstepsError(f"{where}.{name} follows from the data set; leave it out")
    if (checkpoint := entry.get("checkpoint")) is not None:
        if not isinstance(checkpoint, str):
            raise KdstepsError(f"{where}.checkpoint is {shown(checkpoint)}; it should be a path")
        options["checkpoint"] = checkpoint
    return family, options


def method_entry(name: str, entry: Entry, where: str = "methods") -> tuple[str, Entry]:
    """The method behind a name in params.yaml and its options, defaults filled in."""
    return _part("methods", "method", {"method": name} | entry, where, ("distil", "build"))


def merge(section: SectionT, overrides: Any, where: str) -> SectionT:
    """`section` with some values replaced.

    Raises:
        KdstepsError: A key is unknown or a value is out of range.
    """
    if overrides is None:  # `distil:` with nothing behind it
        return section
    if not isinstance(overrides, dict):
        keys = ", ".join(type(section).model_fields)
        raise KdstepsError(f"{where} is {shown(overrides)}; it should have keys out of {keys}")
    return parse(type(section), section.model_dump(mode="json") | overrides, where)


def parse(model: type[ModelT], content: Any, where: str, others: Sequence[str] = ()) -> ModelT:
    """`content` as a settings model, or one sentence that says what is wrong with it and where.

    Args:
        others: Keys that may stand beside those of the model, for guesses at what was meant.
    """
    try:
        text = json.dumps(content, default=str)
    except ValueError as error:
        raise KdstepsError(f"{where}: an entry contains itself; write it out instead") from error
    try:  # as JSON: lists may stand for tuples there although types are strict
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise KdstepsError(sentence(error, model, content, where, others)) from error


def _part(
    kind: registry.Kind, key: str, entry: Entry, where: str, others: Sequence[str]
) -> tuple[str, Entry]:
    """The name of a part and its options; `others` are keys of the entry that are not its own."""
    if key not in entry:
        there = ", ".join(registry.names(kind))
        raise KdstepsError(f"{where}.{key} is missing; there are {there}")
    name = entry[key]
    registry.known(kind, name, where if where.endswith(f"methods.{name}") else f"{where}.{key}")
    rest = {option: value for option, value in entry.items() if option not in (key, *others)}
    options = parse(registry.options(kind, name), rest, where, (key, *others))
    return name, options.model_dump(mode="json")


def _check_seeds(study: Study, where: str) -> None:
    twice = [seed for seed, count in Counter(study.seeds).items() if count > 1]
    if twice:
        raise KdstepsError(f"{where}: seeds: {twice[0]} stands there twice; once would be right")


def _check_pair(study: Study, pair: Pair, where: str) -> None:
    for key, section in (("dataset", "datasets"), ("teacher", "models"), ("student", "models")):
        name, there = getattr(pair, key), getattr(study, section)
        if name not in there:
            hint = nearest(name, there)
            raise KdstepsError(f"{where}.{key} is {name!r}, which is not under {section}{hint}")
    teacher = study.models[pair.teacher]
    epochs = merge(study.train, teacher.get("train", {}), f"{where}.teacher").epochs
    if not (epochs or teacher.get("checkpoint") or teacher.get("pretrained")):
        raise KdstepsError(
            f"{where}.teacher is {pair.teacher!r}, which has 0 epochs of training and no weights "
            "to begin with; give it a checkpoint, or train it for an epoch or more"
        )
    if pair.published is not None and pair.published not in registry.published_pairs():
        hint = nearest(pair.published, registry.published_pairs())
        raise KdstepsError(
            f"{where}.published is {pair.published!r}, of which no published values are known{hint}"
        )
