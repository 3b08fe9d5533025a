"""A study: params.yaml read once, checked, and resolved into typed settings with all defaults."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import ValidationError

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.entries import MethodEntry, ModelEntry, Pair, Params
from kdsteps.study.exports import export_problem, exported_runs
from kdsteps.study.label_checks import check_labels
from kdsteps.study.messages import sentence, shown
from kdsteps.study.part_options import FILLED_IN
from kdsteps.study.settings import (
    MAX_SEED,
    Build,
    Dataset,
    Distil,
    Model,
    Options,
    Train,
    Training,
    Values,
)
from kdsteps.study.tuning import as_text, candidates, check_seeds, num_tried, unique
from kdsteps.study.yaml_text import NotYaml, read_yaml

ModelT = TypeVar("ModelT", bound=BaseModel)
_REQUIRED = {
    "datasets": "at least one entry `name: {kind: ...}`",
    "models": "at least one entry `name: {family: ...}`",
    "pairs": "at least one entry `name: {dataset: ..., teacher: ..., student: ...}`",
    "methods": "at least one entry `name: {options}`, such as `kd: {}`",
    "seeds": f"a list of whole numbers from 0 to {MAX_SEED}, such as [0, 1, 2]",
}

WEIGHTS = ("checkpoint", "checkpoint_key", "checkpoint_prefix")
"""Keys of a model that are passed on with the options of its family."""


@dataclass(frozen=True)
class Method:
    """An entry of `methods` with what the method needs from a teacher.

    Attributes:
        method: The part: a shipped name, or a reference to the user's code.
        options: All of them, defaults filled in.
        wants: "nothing", "logits", "blocks" or "layers".
        plan: "stones", "pairs" or None.
        one_class: Whether it is defined only for images of one class.
        compares_images: Whether it cannot compute a batch in parts.
        needs_classifier: Whether it needs the teacher's classifier, as for its logits.
        needs_labels: Whether it cannot be used on images without labels.
        distil, build: The values that differ for this method.
        trials: The values that the stage `tune` tries; none: the method is not tuned.
    """

    method: str
    options: Options
    wants: str
    plan: str | None
    one_class: bool
    compares_images: bool
    needs_classifier: bool
    needs_labels: bool
    distil: Distil | None
    build: Build | None
    trials: tuple[Values, ...] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that params.yaml describes, parsed and resolved once.

    Attributes:
        params: The file as written, with the defaults of its sections.
        datasets, models, trainings, methods: By name, options and overrides resolved; `trainings`
            has the section `train` of each model.
    """

    params: Params
    datasets: dict[str, Dataset]
    models: dict[str, Model]
    trainings: dict[str, Train]
    methods: dict[str, Method]
    _distil: dict[tuple[str, str], Distil] = field(default_factory=dict)
    _build: dict[tuple[str, str], Build] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[str, Pair]:
        return self.params.pairs

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.params.seeds

    @property
    def method_names(self) -> dict[str, str]:
        """The method of each entry of `methods`."""
        return {name: entry.method for name, entry in self.methods.items()}

    @property
    def used_datasets(self) -> tuple[str, ...]:
        """The data sets of pairs, in their order, then that of `probe`."""
        probe = () if self.params.probe is None else (self.params.probe.dataset,)
        return tuple(dict.fromkeys((*(pair.dataset for pair in self.pairs.values()), *probe)))

    def has_labels(self, pair: str) -> bool:
        """Whether the images of a pair have labels."""
        return self.datasets[self.pairs[pair].dataset].labels is None

    def distil(self, pair: str, method: str) -> Distil:
        """The section `distil` of one pair and method: a method's values win over a pair's."""
        if (pair, method) not in self._distil:
            of_pair = self.params.distil.updated(self.pairs[pair].distil)
            self._distil[pair, method] = of_pair.updated(self.methods[method].distil)
        return self._distil[pair, method]

    def build(self, pair: str, method: str) -> Build:
        """The section `build` of one pair and method, in the same way."""
        if (pair, method) not in self._build:
            of_pair = self.params.build.updated(self.pairs[pair].build)
            self._build[pair, method] = of_pair.updated(self.methods[method].build)
        return self._build[pair, method]

    def num_trainings(self, method: str) -> int:
        """How often a student of one pair is trained by a method: for trials, and for the study."""
        tune, trials = self.params.tune, len(self.methods[method].trials)
        tried = [num_tried(trials, place, tune.halving) for place in range(len(tune.seeds))]
        return len(self.seeds) + (sum(tried) if trials else 0)

    @cached_property
    def exported(self) -> list[tuple[str, str]]:
        """Every export as its pair and its run, which is `best` or `method/seed`."""
        export = self.params.export
        if export is None:
            return []
        return exported_runs(export, self.pairs, list(self.methods), self.seeds)

    @cached_property
    def described(self) -> dict[str, Any]:
        """The study as JSON that `parse_study` reads: its entries, and its sections in full."""
        sections = {
            name: section.model_dump(mode="json")
            for name, info in Params.model_fields.items()
            if not info.is_required() and (section := getattr(self.params, name)) is not None
        }
        found = self.params.model_dump(mode="json", exclude_unset=True) | sections
        if not any(entry.trials for entry in self.methods.values()):
            del found["tune"]  # nothing is tuned: the section decides nothing
        return found


def load_study(path: str | Path = "params.yaml") -> Study:
    """The study that `path` describes, checked as far as possible without data and networks.

    Raises:
        KdstepsError: The file is missing, is not YAML, or has a value that cannot be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise KdstepsError(
            f"{path}: not found; run kdsteps where params.yaml is, or copy one from recipes/"
        ) from error
    except OSError as error:
        raise KdstepsError(
            f"{path}: cannot be read ({error.strerror}); make it readable"
        ) from error
    except UnicodeDecodeError as error:
        raise KdstepsError(f"{path}: is not valid UTF-8; save it as a UTF-8 text file") from error
    try:
        content = read_yaml(text)
    except NotYaml as error:
        line = f" line {error.line}" if error.line else ""
        raise KdstepsError(f"{path}:{line} is not valid YAML: {error.problem}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else shown(content)
        raise KdstepsError(
            f"{path}: is {found}; it should have the sections {', '.join(_REQUIRED)}"
        )
    return parse_study(content, str(path))


def parse_study(content: Mapping[str, Any], where: str = "params.yaml") -> Study:
    """The study that `content`, the parsed params.yaml, describes.

    Raises:
        KdstepsError: As `load_study`.
    """
    for name, example in _REQUIRED.items():
        if name not in content and (key := _misspelled(name, content)):
            raise KdstepsError(f"{where}: {key} is an unknown key{nearest(key, [name])}")
        if not content.get(name):
            found = "missing" if name not in content else shown(content[name])
            raise KdstepsError(f"{where}: {name} is {found}; it should be {example}")
    params = parse(Params, _filled(content), where)
    twice = [seed for seed, count in Counter(params.seeds).items() if count > 1]
    if twice:
        raise KdstepsError(f"{where}: seeds: {twice[0]} appears twice; delete one of them")
    study = Study(
        params,
        datasets={
            name: Dataset.model_construct(
                kind=entry.kind,
                options=_part("data", entry.kind, entry, f"{where}: datasets.{name}", "kind")[1],
                labels=entry.labels,
                classes=entry.classes,
            )
            for name, entry in params.datasets.items()
        },
        models={
            name: resolve_model(entry, f"{where}: models.{name}")
            for name, entry in params.models.items()
        },
        trainings={
            name: params.train.updated(entry.train) for name, entry in params.models.items()
        },
        methods={
            name: resolve_method(name, entry, f"{where}: methods.{name}")
            for name, entry in params.methods.items()
        },
    )
    for reference in params.evaluate.metrics:
        registry.find("metrics", reference, f"{where}: evaluate.metrics")
    _check_options(study, where)
    _check_training(study, where)
    for name, pair in study.pairs.items():
        _check_pair(study, pair, f"{where}: pairs.{name}")
    check_labels(study, where)
    _check_export(study, f"{where}: export")
    return _with_trials(study, where)


def resolve_model(entry: ModelEntry, where: str) -> Model:
    """The network of an entry of `models`, with the defaults of its family."""
    for name in FILLED_IN["models"]:
        if name in (entry.model_extra or {}):
            raise KdstepsError(f"{where}.{name} follows from the data set; leave it out")
    _, options = _part("models", entry.family, entry, where, "family")
    options |= {name: value for name in WEIGHTS if (value := getattr(entry, name)) is not None}
    by_default = "pretrained" if options.get("pretrained") else None
    if problem := entry.problem():
        raise KdstepsError(f"{where}.{problem}")
    size = entry.image_size
    return Model.model_construct(
        family=entry.family,
        options=options,
        normalize=None if entry.normalize == "dataset" else entry.normalize or by_default,
        image_size=(size, size) if isinstance(size, int) else size,
        interpolation=entry.interpolation,
        classes=entry.classes,
    )


def resolve_method(name: str, entry: MethodEntry, where: str) -> Method:
    """The method of an entry of `methods`, with its defaults."""
    method = entry.method or name
    key = None if entry.method is None else "method"
    part, options = _part("methods", method, entry, where, key)
    assert part.wants is not None, "every method declares what it wants"
    return Method(
        *(method, options, part.wants, part.plan),
        *(part.needs_one_class(options), part.compares_images(options)),
        *(part.needs_classifier(options), part.needs_labels(options)),
        *(entry.distil, entry.build),
    )


def _with_trials(study: Study, where: str) -> Study:
    """The study with the values to try for each method, each checked like an entry of `methods`."""
    methods, tried = dict(study.methods), {}
    for name, entry in study.params.methods.items():
        if entry.tune is None:
            continue
        spot, found = f"{where}: methods.{name}.tune", []
        for values in candidates(entry.tune, study.params.tune, name, spot):
            trial = resolve_method(name, _with_values(entry, values, spot), spot)
            found.append({key: _value_of(trial, key) for key in values})
            tried[f"{name} ({as_text(values)})"] = trial
            _check_same_inputs(study, name, trial, f"{spot}: {as_text(values)}")
        methods[name] = replace(methods[name], trials=tuple(unique(found)))
    if not tried:
        return study
    check_seeds(study.params.tune, study.seeds, where)
    trials = replace(study, methods=tried, _distil={}, _build={})
    _check_options(trials, where)
    _check_training(trials, where)
    return replace(study, methods=methods, _distil={}, _build={})


def _with_values(entry: MethodEntry, values: Values, where: str) -> MethodEntry:
    """An entry with the values of a trial instead of its own."""
    own = entry.distil.model_dump(exclude_unset=True) if entry.distil is not None else {}
    keys = {key.removeprefix("distil."): v for key, v in values.items() if "." in key}
    options = {key: value for key, value in values.items() if "." not in key}
    distil = parse(Distil, own | keys, f"{where}.distil") if own or keys else None
    return entry.model_copy(update={"distil": distil, **options})


def _value_of(method: Method, key: str) -> Any:
    """The value of an option, or of a key `distil.<key>`, as plain JSON."""
    if "." not in key:
        return method.options[key]
    assert method.distil is not None  # it has this value
    return method.distil.model_dump(mode="json")[key.removeprefix("distil.")]


def _check_same_inputs(study: Study, name: str, trial: Method, where: str) -> None:
    """Raise KdstepsError if a student with these values needs other files than without them."""
    entry = study.methods[name]
    if trial.needs_classifier != entry.needs_classifier:
        raise KdstepsError(
            f"{where} decides whether {entry.method} needs the teacher's classifier, which is "
            "checked before it is tuned; write two entries under methods instead"
        )
    for pair in study.pairs if entry.wants in ("logits", "blocks") else ():
        views = study.distil(pair, name).updated(trial.distil).views
        if views != study.distil(pair, name).views:
            raise KdstepsError(
                f"{where} changes which logits of the teacher {entry.method} learns from, which "
                "are cached before it is tuned; write two entries under methods instead"
            )


def parse(model: type[ModelT], content: Any, where: str, others: Sequence[str] = ()) -> ModelT:
    """`content` as a settings model, or one sentence about what is wrong with it and where.

    Args:
        others: Keys that are allowed in addition to those of the model, for suggestions.
    """
    try:  # as JSON, where lists pass for tuples although types are strict
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise KdstepsError(
            sentence(error, content, where, lambda path: _fields(model, path, others))
        ) from error


def _misspelled(section: str, content: Mapping[str, Any]) -> str | None:
    """A key of `content` that is no section, and is probably meant to be this one."""
    unknown = [str(key) for key in content if key not in Params.model_fields]
    return next(iter(difflib.get_close_matches(section, unknown, n=1)), None)


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with `evaluate:` or `kd:` without a value replaced by all defaults."""
    optional = {name for name, info in Params.model_fields.items() if not info.is_required()}
    filled = {
        name: {} if value is None and name in optional else value for name, value in content.items()
    }
    for name in ("datasets", "models", "pairs", "methods"):
        if isinstance(entries := filled[name], dict):
            filled[name] = {key: {} if entry is None else entry for key, entry in entries.items()}
    return filled


def _part(
    kind: registry.Kind, reference: str, entry: BaseModel, where: str, key: str | None
) -> tuple[registry.Part, Options]:
    """A part and its options with defaults; `key` is the key of the entry that names it."""
    part = registry.find(kind, reference, f"{where}.{key}" if key else where)
    return part, part.parse(entry.model_extra or {}, where, list(type(entry).model_fields))


def _fields(
    model: type[BaseModel], path: Sequence[str], others: Sequence[str]
) -> dict[str, str | None]:
    """The keys of a settings model at a path of settings with their descriptions.

    Args:
        others: Keys that are allowed in addition to those of the model.
    """
    kind: type[BaseModel] | None = model
    for part in path:
        if kind is not None and part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation)
    found: dict[str, str | None] = dict.fromkeys([] if path else others)
    if kind is not None:
        found = {name: info.description for name, info in kind.model_fields.items()} | found
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model in an annotation such as `Distil | None` or `dict[Name, Pair]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((kind for kind in inner if kind is not None), None)


def _check_options(study: Study, where: str) -> None:
    """Check options of all parts as far as the types of the options cannot."""
    asked: dict[str, tuple[registry.Kind, str, Options]] = {}
    for name, data in study.datasets.items():
        asked[f"{where}: datasets.{name}"] = "data", data.kind, data.options
    for name, model in study.models.items():
        own = {key: value for key, value in model.options.items() if key not in WEIGHTS}
        asked[f"{where}: models.{name}"] = "models", model.family, own
    for name, entry in study.methods.items():
        asked[f"{where}: methods.{name}"] = "methods", entry.method, entry.options
    registry.check_options(asked)


def _check_training(study: Study, where: str) -> None:
    """Check that settings of training do not contradict each other, in any combination."""
    spots: dict[str, Training | None]
    for name, section in study.trainings.items():
        own = study.params.models[name].train
        spots = {"train": study.params.train, f"models.{name}.train": own}
        _check_section(section, spots, where)
    for name, pair in study.pairs.items():
        for method, entry in study.methods.items():
            spots = {
                "distil": study.params.distil,
                f"pairs.{name}.distil": pair.distil,
                f"methods.{method}.distil": entry.distil,
            }
            recipe = study.distil(name, method)
            _check_section(recipe, spots, where)
            _check_mixing(recipe, entry, spots, f"{where}: methods.{method}")
            _check_parts(recipe, entry, spots, f"{where}: methods.{method}")


def _check_section(section: Training, spots: Mapping[str, Training | None], where: str) -> None:
    """Raise KdstepsError if the values of a section contradict each other.

    Args:
        spots: Where its values come from; the last place that has some is named.
    """
    if problem := section.problem():
        spot = [name for name, given in spots.items() if given is not None][-1]
        raise KdstepsError(f"{where}: {spot}: {problem}")


def _place_of(name: str, spots: Mapping[str, Training | None]) -> str:
    """The last place that sets a key, whose value holds."""
    return [place for place, own in spots.items() if own and name in own.model_fields_set][-1]


def _check_mixing(
    recipe: Distil, entry: Method, spots: Mapping[str, Training | None], where: str
) -> None:
    """Raise KdstepsError if images are mixed for a method that is defined for images of one class.

    Args:
        spots: Where the values of `recipe` come from.
    """
    for name in ("mixup", "cutmix"):
        if entry.one_class and (value := getattr(recipe, name)):
            place = _place_of(name, spots)
            raise KdstepsError(
                f"{where}: {entry.method} needs images of one class, and {place}.{name} is "
                f"{value:g}; set `distil: {{mixup: 0, cutmix: 0}}` here, or use kd, lskd or dist"
            )


def _check_parts(
    recipe: Distil, entry: Method, spots: Mapping[str, Training | None], where: str
) -> None:
    """Raise KdstepsError if batches are computed in parts for a method that compares their images.

    Args:
        spots: Where the values of `recipe` come from.
    """
    for name in ("accumulate", "gpus"):
        if entry.compares_images and (value := getattr(recipe, name)) > 1:
            place = _place_of(name, spots)
            raise KdstepsError(
                f"{where}: {entry.method} compares the images of a batch, and {place}.{name} is "
                f"{value}; set `distil: {{{name}: 1}}` here, or `compares_images = False` in a "
                "method of your own whose loss is a mean over images"
            )


def _check_export(study: Study, where: str) -> None:
    """Raise KdstepsError if the section `export` names no run, or contradicts itself."""
    export = study.params.export
    if export is not None and (
        problem := export_problem(export, study.pairs, list(study.methods), study.seeds)
    ):
        raise KdstepsError(f"{where}.{problem}")


def _check_pair(study: Study, pair: Pair, where: str) -> None:
    for key, section in (("dataset", "datasets"), ("teacher", "models"), ("student", "models")):
        name, there = getattr(pair, key), getattr(study, section)
        if name not in there:
            raise KdstepsError(
                f"{where}.{key} is {name!r}, which is not under {section}{nearest(name, there)}"
            )
    teacher = study.models[pair.teacher].options
    has_weights = teacher.get("checkpoint") or teacher.get("pretrained")
    if not (study.trainings[pair.teacher].epochs or has_weights):
        raise KdstepsError(
            f"{where}.teacher is {pair.teacher!r}, which has 0 epochs of training and no weights "
            "to start from; set a checkpoint, or train it for one epoch or more"
        )
    if pair.published is not None and pair.published not in registry.published_pairs():
        hint = nearest(pair.published, registry.published_pairs())
        raise KdstepsError(
            f"{where}.published is {pair.published!r}, which has no known published values{hint}"
        )
