"""Checks of a study that compare several of its entries and sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.entries import Pair
from kdsteps.study.exports import export_problem
from kdsteps.study.resolving import WEIGHTS
from kdsteps.study.run_length import length_problem
from kdsteps.study.settings import Options
from kdsteps.study.study import Method, Study
from kdsteps.study.teacher_checks import check_teachers
from kdsteps.study.training_settings import Distil, Training


def check_options(study: Study, where: str) -> None:
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


def check_training(study: Study, where: str) -> None:
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


def check_lengths(study: Study, where: str) -> None:
    """Check that no option of a method goes beyond the run."""
    for name, entry in study.methods.items():
        for key, after in entry.lengths.items():
            for pair in study.pairs:
                length, epochs = entry.options[key], study.distil(pair, name).epochs
                if not isinstance(length, int | float):
                    continue  # such as None, whose meaning only the method knows
                if problem := length_problem(length, epochs, after):
                    raise KdstepsError(f"{where}: methods.{name}.{key} {problem}")


def check_pair(study: Study, pair: Pair, where: str) -> None:
    check_teachers(study, pair, where)
    taught_by = "teacher" if pair.teachers is None else "teachers"
    named = [("dataset", "datasets", pair.dataset)]
    named += [(taught_by, "models", name) for name in pair.teacher_names]
    for key, section, name in (*named, ("student", "models", pair.student)):
        there = getattr(study, section)
        if name not in there:
            verb = "has" if key == "teachers" else "is"
            raise KdstepsError(
                f"{where}.{key} {verb} {name!r}, which is not under {section}{nearest(name, there)}"
            )
    for name in pair.teacher_names:
        teacher = study.models[name].options
        has_weights = teacher.get("checkpoint") or teacher.get("pretrained")
        if not (study.trainings[name].epochs or has_weights):
            verb = "is" if pair.teachers is None else "has"
            raise KdstepsError(
                f"{where}.{taught_by} {verb} {name!r}, which has 0 epochs of training and no "
                "weights to start from; set a checkpoint, or train it for one epoch or more"
            )
    for name, entry in study.methods.items():
        if entry.deploys_blocks:
            _check_blocks(study, pair, f"{where}: {name} deploys blocks of student and teacher")
    if pair.published is not None and pair.published not in registry.published_pairs():
        hint = nearest(pair.published, registry.published_pairs())
        raise KdstepsError(
            f"{where}.published is {pair.published!r}, which has no known published values{hint}"
        )


def _check_blocks(study: Study, pair: Pair, where: str) -> None:
    """Raise KdstepsError for networks whose blocks cannot be deployed together."""
    student = study.models[pair.student]
    if student.normalize is not None:
        raise KdstepsError(
            f"{where}, so models.{pair.student} cannot have images normalized in its own way; set "
            "`normalize: dataset` there"
        )
    for name in (pair.student, *pair.teacher_names):
        if study.models[name].classes is not None:
            raise KdstepsError(f"{where}, so models.{name} cannot have `classes`; leave them out")


def check_export(study: Study, where: str) -> None:
    """Raise KdstepsError if the section `export` names no run, or contradicts itself."""
    export = study.params.export
    if export is not None and (
        problem := export_problem(export, study.pairs, list(study.methods), study.seeds)
    ):
        raise KdstepsError(f"{where}.{problem}")


def check_metrics(references: Sequence[str], where: str) -> None:
    """Raise KdstepsError if a metric cannot be used, or two have the same name."""
    known: dict[str | None, str] = {}
    for reference in references:
        name = registry.find("metrics", reference, where).described.column
        if name in known:
            raise KdstepsError(
                f"{where}: {known[name]} and {reference} are both named {name!r}; rename one"
            )
        known[name] = reference


def check_references(study: Study, where: str) -> None:
    """Raise KdstepsError if methods are to be compared with one that is not there."""
    for name in study.params.report.references or ():
        if name not in study.methods:
            hint = nearest(name, study.methods)
            raise KdstepsError(f"{where} has {name!r}, which is not an entry of methods{hint}")


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
