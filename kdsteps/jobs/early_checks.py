"""What can be known before the first job is said before the first job.

Missing images and checkpoints, layers that a network does not have, batches larger than the data.
What depends on images that are not prepared yet is checked by the first job that knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from os.path import isfile
from pathlib import Path
from typing import Any, NamedTuple

from kdsteps.errors import KdstepsError
from kdsteps.files.manifest import is_missing, missing_images
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.checkpoint_headers import normalization_doubts, order_problems
from kdsteps.jobs.known import built_for, network_outlines, without_weights
from kdsteps.jobs.provenance import provenance_file, read_provenance
from kdsteps.jobs.published_weights import classifier_problems
from kdsteps.jobs.settings import DistilSettings, TrainSettings, TuneSettings
from kdsteps.jobs.upgrades import settings_changed
from kdsteps.study.image_size import ImageShape, declared_shape
from kdsteps.study.joints import Outline, check_build, check_layers, deepest
from kdsteps.study.part_cache import weights_problems
from kdsteps.study.part_imports import shipped
from kdsteps.study.study import Study
from kdsteps.study.training_settings import Training
from kdsteps.study.tuning import as_text

_FOR_ONNX = ("onnx", "onnxruntime", "onnxscript")
_LAYERS = ("student_layer", "student_layers", "teacher_layer", "teacher_layers")
"""Options of methods that name layers."""


def check_study(study: Study, *, with_files: bool = True) -> list[str]:
    """Check a study as far as it is possible before its first job.

    Args:
        with_files: Whether images and checkpoints have to be there; not if results can be pulled.

    Returns:
        What is in doubt, and what is checked later, each one sentence.

    Raises:
        KdstepsError: A job would fail.
    """
    found = study_problems(study, with_files=with_files)
    if found.problems:
        raise KdstepsError(found.problems[0])
    return found.doubts + found.later


class EarlyChecks(NamedTuple):
    """Sentences about a study before its first job.

    Attributes:
        problems: Why jobs would fail.
        doubts: What is probably not meant.
        later: What is checked by the first job that can.
    """

    problems: list[str]
    doubts: list[str]
    later: list[str]


def study_problems(study: Study, *, with_files: bool = True) -> EarlyChecks:
    """All problems that `check_study` looks for."""
    datasets = study.used_datasets
    prepared = {dataset: _prepared(study, dataset) for dataset in datasets}
    shapes = _shapes(study, prepared)
    problems: list[str] = []
    if with_files:
        problems += [found for dataset in datasets for found in _image_problems(study, dataset)]
        problems += _checkpoint_problems(study)
        problems += order_problems(study)
        problems += _size_problems(study, shapes)
    problems += classifier_problems(study)
    numbers = {
        dataset: found.num_images for dataset, found in prepared.items() if found is not None
    }
    problems += recipe_problems(study, numbers, shapes)
    problems += _probe_problems(study, shapes)
    problems += _package_problems(study)
    networks = _networks(study, shapes)
    problems += _layer_problems(study, networks)
    found = (problems, normalization_doubts(study), _unknown_layers(study, networks))
    return EarlyChecks(*([f"params.yaml: {each}" for each in dict.fromkeys(of)] for of in found))


def _image_problems(study: Study, dataset: str) -> Iterator[str]:
    entry = study.datasets[dataset]
    if entry.kind not in shipped("data"):
        return
    if _is_done(graph.node(study, "prepare", {"dataset": dataset})):
        return
    if (problem := missing_images(entry.kind, entry.options)) is not None:
        yield f"datasets.{dataset}: {problem}"


def _checkpoint_problems(study: Study) -> Iterator[str]:
    for name, model in study.models.items():
        path = model.options.get("checkpoint")
        if not path or not is_missing(Path(str(path))):
            continue
        if any(not _is_done(node) for node in _that_start_from(study, name)):
            yield (
                f"models.{name}.checkpoint: there is no file {str(path)!r}; correct the "
                "path, or put the file there"
            )


def _size_problems(study: Study, shapes: Mapping[str, ImageShape | None]) -> Iterator[str]:
    """Checkpoints whose positions are for images of another size."""
    asked = {}
    for pair in study.pairs.values():
        for name in (*pair.teacher_names, pair.student):
            model = study.models[name]
            path, shape = model.options.get("checkpoint"), built_for(model, shapes[pair.dataset])
            if path is None or shape is None or not isfile(str(path)):
                continue
            if all(map(_is_done, _that_start_from(study, name))):
                continue
            digest = graph.own_inputs(study)[f"models.{name}"].digest
            options = ("checkpoint_key", "checkpoint_prefix")
            key, prefix = (model.options.get(option) for option in options)
            weights = {"path": path, "digest": digest, "key": key, "prefix": prefix}
            asked[name, shape] = model.family, without_weights(model), shape, weights
    for (name, _), problem in zip(asked, weights_problems(list(asked.values())), strict=True):
        if problem is not None:
            yield f"models.{name}: {problem}"


def _that_start_from(study: Study, model: str) -> Iterator[graph.JobNode]:
    """The jobs that read the checkpoint of a model."""
    for rule, key in (("train", "teacher"), ("distil", "pair")):
        for names in graph.jobs(study, rule):
            name = names[key] if rule == "train" else study.pairs[names[key]].student
            if name == model:
                yield graph.node(study, rule, names)


def _is_done(node: graph.JobNode) -> bool:
    """Whether a job's results exist, unless they are known to be those of other settings."""
    outputs = graph.outputs(node.rule, node.names)
    if not all(map(isfile, outputs.values())):
        return False
    known = read_provenance(provenance_file(outputs))
    return known is None or not settings_changed(known, node.text)


class _Prepared(NamedTuple):
    """A data set that is prepared with the settings of the study."""

    num_images: int  # for training
    image_shape: ImageShape


def _prepared(study: Study, dataset: str) -> _Prepared | None:
    node = graph.node(study, "prepare", {"dataset": dataset})
    outputs = graph.outputs(node.rule, node.names)
    known = read_provenance(provenance_file(outputs))
    if known is None or known.settings != node.text:
        return None
    try:
        found = read_json(outputs["summary"])
        channels, height, width = found["image_shape"]
        return _Prepared(found["images"]["train"], (channels, height, width))
    except (KdstepsError, KeyError, TypeError, ValueError):  # damaged: its readers say so
        return None


def recipe_problems(
    study: Study, num_images: Mapping[str, int], shapes: Mapping[str, ImageShape | None]
) -> Iterator[str]:
    """Batches larger than the data set, and crops that would show nothing of an image.

    Args:
        num_images: Training images of each data set of which the number is known.
        shapes: (C, H, W) of the images of each data set, where it is known.
    """
    for rule in ("train", "tune", "distil"):
        for names in graph.jobs(study, rule):
            node = graph.node(study, rule, names)
            dataset, recipe, spot = _training(study, node)
            shape = shapes.get(dataset)
            size = None if shape is None else shape[1:]
            problem = recipe.misfit(num_images.get(dataset), size)
            if problem and not _is_done(node):
                section = "train" if rule == "train" else "distil"
                yield f"{spot}: {section}.{problem}"


def _training(study: Study, node: graph.JobNode) -> tuple[str, Training, str]:
    """The data set of a training, its recipe, and where it is in params.yaml."""
    names, settings = node.names, node.settings
    if isinstance(settings, TrainSettings):
        return names["dataset"], settings.train, f"models.{names['teacher']}"
    assert isinstance(settings, DistilSettings)
    tried = f" and {as_text(settings.values)}" if isinstance(settings, TuneSettings) else ""
    spot = f"pairs.{names['pair']} with {names['method']}{tried}"
    return study.pairs[names["pair"]].dataset, settings.distil, spot


def _package_problems(study: Study) -> Iterator[str]:
    """What the exports need and is not installed; nothing is imported."""
    export = study.params.export
    if export is None or "onnx" not in export.formats:
        return
    missing = [name for name in _FOR_ONNX if find_spec(name) is None]
    nodes = (graph.node(study, "export", names) for names in graph.jobs(study, "export"))
    if missing and not all(map(_is_done, nodes)):
        verb = "is" if len(missing) == 1 else "are"
        yield (
            f"export.formats has onnx, and {', '.join(missing)} {verb} not installed; "
            "`pip install 'kdsteps[export]'`, or choose safetensors"
        )


def _probe_problems(study: Study, shapes: Mapping[str, ImageShape | None]) -> Iterator[str]:
    """Whether the images of `probe` have another size than those of a pair."""
    if study.params.probe is None:
        return
    sizes = {dataset: shape[1:] for dataset, shape in shapes.items() if shape}
    own = sizes.get(study.params.probe.dataset)
    for dataset, size in sizes.items():
        if own is not None and size != own:
            yield (
                f"probe.dataset: {study.params.probe.dataset!r} has images of {own[0]} x {own[1]} "
                f"pixels, and {dataset!r} of {size[0]} x {size[1]}; give both the same `image_size`"
            )


def image_shape(study: Study, dataset: str) -> ImageShape | None:
    """The shape (C, H, W) of a data set's images, as prepared or as params.yaml says.

    None: it is known only when they are prepared.
    """
    return _shapes(study, {dataset: _prepared(study, dataset)})[dataset]


def _shapes(study: Study, prepared: Mapping[str, _Prepared | None]) -> dict[str, ImageShape | None]:
    """The shape of each data set's images, as prepared or as params.yaml says."""
    return {
        dataset: declared_shape(study.datasets[dataset]) if found is None else found.image_shape
        for dataset, found in prepared.items()
    }


Networks = Mapping[tuple[str, str], Outline | None]
"""By data set and model; None where the layers are not known yet."""


def _networks(study: Study, shapes: Mapping[str, ImageShape | None]) -> Networks:
    """The networks of the pairs and methods that name layers, or join networks at them."""
    datasets = [study.pairs[name].dataset for name, _ in _with_layers(study)]
    return network_outlines(study, datasets, shapes)


def _with_layers(study: Study) -> list[tuple[str, str]]:
    """The pairs and methods that name layers, or join networks at them."""
    return [
        (name, method)
        for name in study.pairs
        for method, entry in study.methods.items()
        if entry.plan is not None or _named(study, method)
    ]


def _layer_problems(study: Study, networks: Networks) -> Iterator[str]:
    """What is wrong with layers by name and by number."""
    for name, method in _with_layers(study):
        pair = study.pairs[name]
        named = (pair.only_teacher, pair.student)
        teacher, student = (networks.get((pair.dataset, model)) for model in named)
        if teacher is None or student is None:
            continue
        try:
            _check_joints(study, name, method, teacher, student)
        except KdstepsError as error:
            yield f"pairs.{name} with {method}: {error}"
    for names in graph.jobs(study, "score"):
        network = networks.get((names["dataset"], names["teacher"]))
        if network is not None:
            try:
                deepest(network, study.params.score.num_layers, "score.num_layers")
            except KdstepsError as error:
                yield f"models.{names['teacher']}: {error}"


def _unknown_layers(study: Study, networks: Networks) -> list[str]:
    """For which networks layers are checked later."""
    unknown = dict.fromkeys(
        f"models.{model}"
        for name in dict.fromkeys(name for name, _ in _with_layers(study))
        for model in (study.pairs[name].only_teacher, study.pairs[name].student)
        if networks[study.pairs[name].dataset, model] is None and not _is_trained(study, name)
    )
    later = f"the layers of {', '.join(unknown)} are checked when these networks are built"
    return [later] if unknown else []


def _is_trained(study: Study, pair: str) -> bool:
    """Whether all students of a pair exist."""
    runs = (names for names in graph.jobs(study, "distil") if names["pair"] == pair)
    return all(_is_done(graph.node(study, "distil", names)) for names in runs)


def _check_joints(study: Study, pair: str, method: str, teacher: Outline, student: Outline) -> None:
    entry = study.methods[method]
    if entry.plan is not None:
        section = study.build(pair, method).of_plan(entry.plan)
        num_layers, scored = study.params.score.num_layers, study.has_labels(pair)
        check_build(section, num_layers, teacher, student, scored=scored)
    for option, layers in _named(study, method).items():
        who = option.partition("_")[0]
        network = student if who == "student" else teacher
        check_layers(network, layers, f"{option}: the {who}")


def _named(study: Study, method: str) -> dict[str, list[str]]:
    """The layers that the options of a shipped method name, or the values that are tried."""
    entry = study.methods[method]
    found: dict[str, list[str]] = {}
    for given in (entry.options, *entry.trials) if entry.method in shipped("methods") else ():
        for option in _LAYERS:
            value: Any = given.get(option)
            if value:
                found.setdefault(option, []).extend([value] if isinstance(value, str) else value)
    return found
