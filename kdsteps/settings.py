"""What params.yaml may say: one frozen model a section, unknown keys refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
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
)

from kdsteps import parts
from kdsteps._yaml import read_yaml
from kdsteps.errors import KdstepsError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # stands in paths
Share = Annotated[float, Field(ge=0, lt=1)]
Entry = dict[str, Any]
SectionT = TypeVar("SectionT", bound="Section")
ModelT = TypeVar("ModelT", bound=BaseModel)
Score = Literal[
    "quality", "separation", "information", "efficiency", "root_information_efficiency"
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pair(Section):
    """A teacher, a student and the images both see."""

    dataset: Name
    teacher: Name
    student: Name
    distil: Entry = {}  # values of the section `distil` that differ for this pair
    published: str | None = None  # published values that the report shows beside ours


class Prepare(Section):
    """How a dataset is split where its source does not say: the section `prepare`."""

    validation: Share = 0.1  # of the images that are not for testing
    test: Share = 0.2
    seed: NonNegativeInt = 0
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
    randaugment: NonNegativeInt = 0  # magnitude; 0: off
    mixup: NonNegativeFloat = 0.0  # alpha; 0: off
    cutmix: NonNegativeFloat = 0.0  # alpha; 0: off
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_minutes: PositiveFloat = 10.0  # between two saves to resume from


class Train(Training):
    """How every teacher is trained: the section `train`."""

    seed: NonNegativeInt = 0


class Distil(Training):
    """How every student is trained: the section `distil`."""


class Cache(Section):
    """What of a teacher is kept: the section `cache`."""

    images: PositiveInt = 5000  # whose features are kept for the scores, balanced over classes
    seed: NonNegativeInt = 0
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

    datasets: Annotated[dict[Name, Entry], Field(min_length=1)]
    models: Annotated[dict[Name, Entry], Field(min_length=1)]
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    methods: Annotated[dict[Name, Entry], Field(min_length=1)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
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


def load_study(path: str | Path = "params.yaml") -> Study:
    """The study that `path` describes, checked as far as it can be without data and networks.

    Raises:
        KdstepsError: The file is missing or no YAML, or says something that cannot be.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise KdstepsError(
            f"{path}: cannot be read ({error.strerror}); run kdsteps where params.yaml lies, "
            "or copy one from recipes/"
        ) from error
    except UnicodeDecodeError as error:
        raise KdstepsError(f"{path}: is not UTF-8 text; write it as a YAML file") from error
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise KdstepsError(f"{path}:{line} is not YAML: {problem}; mend that line") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise KdstepsError(
            f"{path}: is {found}; it needs the sections datasets, models, pairs, methods and seeds"
        )
    return parse_study(content, str(path))


def parse_study(content: dict[str, Any], where: str = "params.yaml") -> Study:
    """The study that `content`, the parsed params.yaml, describes.

    Raises:
        KdstepsError: As `load_study`.
    """
    study = parse(Study, content, where)
    _check_seeds(study, where)
    for name, entry in study.datasets.items():
        dataset_entry(entry, f"{where}: datasets.{name}")
    for name, entry in study.models.items():
        model_entry(entry, f"{where}: models.{name}")
        merge(study.train, entry.get("train", {}), f"{where}: models.{name}.train")
    for name, pair in study.pairs.items():
        _check_pair(study, pair, f"{where}: pairs.{name}")
        merge(study.distil, pair.distil, f"{where}: pairs.{name}.distil")
    for name, entry in study.methods.items():
        spot = f"{where}: methods.{name}"
        method_entry(name, entry, spot)
        merge(study.distil, entry.get("distil", {}), f"{spot}.distil")
        merge(study.build, entry.get("build", {}), f"{spot}.build")
    return study


def dataset_entry(entry: Entry, where: str) -> tuple[str, Entry]:
    """The kind of data and its options, defaults filled in."""
    return _part("data", "kind", entry, where)


def model_entry(entry: Entry, where: str = "models") -> tuple[str, Entry]:
    """The family of a model and its options, defaults filled in, `checkpoint` among them."""
    own = {key: value for key, value in entry.items() if key not in ("train", "checkpoint")}
    family, options = _part("models", "family", own, where)
    if (checkpoint := entry.get("checkpoint")) is not None:
        if not isinstance(checkpoint, str):
            raise KdstepsError(f"{where}.checkpoint: is {checkpoint!r}; it should be a path")
        options["checkpoint"] = checkpoint
    return family, options


def method_entry(name: str, entry: Entry, where: str = "methods") -> tuple[str, Entry]:
    """The method behind a name in params.yaml and its options, defaults filled in."""
    own = {key: value for key, value in entry.items() if key not in ("distil", "build")}
    return _part("methods", "method", {"method": name} | own, where)


def merge(section: SectionT, overrides: Any, where: str) -> SectionT:
    """`section` with some values replaced.

    Raises:
        KdstepsError: A key is unknown or a value is out of range.
    """
    if not isinstance(overrides, dict):
        raise KdstepsError(f"{where}: is {overrides!r}; it should map keys of the section to values")
    parse(type(section), overrides, where)  # so that the message names the override's place
    return type(section).model_validate(section.model_dump() | overrides)


def parse(model: type[ModelT], content: Any, where: str) -> ModelT:
    """`content` as a settings model, or one sentence that says what is wrong with it and where."""
    try:  # as JSON: lists may stand for tuples there although types are strict
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise KdstepsError(_sentence(error, model, where)) from error


def _part(kind: parts.Kind, key: str, entry: Entry, where: str) -> tuple[str, Entry]:
    if key not in entry:
        raise KdstepsError(f"{where}: has no {key!r}; there are {', '.join(parts.names(kind))}")
    name = entry[key]
    parts.known(kind, name, f"{where}.{key}" if kind != "methods" else where)
    rest = {option: value for option, value in entry.items() if option != key}
    return name, parse(parts.options(kind, name), rest, where).model_dump(mode="json")


def _check_seeds(study: Study, where: str) -> None:
    twice = [seed for seed, count in Counter(study.seeds).items() if count > 1]
    if twice:
        raise KdstepsError(f"{where}: seeds: {twice[0]} stands there twice; each seed is one run")


def _check_pair(study: Study, pair: Pair, where: str) -> None:
    for key, section in (("dataset", "datasets"), ("teacher", "models"), ("student", "models")):
        name, there = getattr(pair, key), getattr(study, section)
        if name not in there:
            hint = parts.nearest(name, there)
            raise KdstepsError(f"{where}.{key}: {name!r} is not under {section}{hint}")
    if pair.published is not None and pair.published not in parts.published_pairs():
        hint = parts.nearest(pair.published, parts.published_pairs())
        raise KdstepsError(f"{where}.published: no values are known for {pair.published!r}{hint}")


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The first thing wrong, in words, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    place = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple["))]
    spot = f"{where}: {'.'.join(place)}" if place else where
    found = first["input"]
    if first["type"] == "extra_forbidden":
        said = f"is an unknown key{parts.nearest(place[-1], _keys(model, place[:-1]))}"
    elif first["type"] == "missing":
        said = "is missing; it has to be given"
    else:
        message = first["msg"].removeprefix("Value error, ")
        said = f"is {found!r}; {message[0].lower()}{message[1:]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{spot} {said}{more}"


def _keys(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys that may stand at `place` in a settings model."""
    for part in place:
        field = model.model_fields.get(part)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = inner[0] if inner else model
    return list(model.model_fields)
