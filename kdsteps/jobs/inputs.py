"""The files that params.yaml names by path, and their digests.

These are images, checkpoints, and files that options of the user's own methods and networks name. A
changed file under the same name reruns its jobs. Where a file is missing, as for a colleague who
pulled the results without the images, what the result was made from counts. Jobs on machines that
have none of these files receive what the main process found, in an environment variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdsteps.files.home import expanded
from kdsteps.files.input_digests import combined, file_digest, folder_digest
from kdsteps.files.manifest import source_digest, source_paths, texts_in
from kdsteps.jobs.outputs import outputs
from kdsteps.jobs.provenance import provenance_file, read_provenance
from kdsteps.study import registry
from kdsteps.study.part_imports import Kind, is_users, shipped
from kdsteps.study.settings import Dataset, Model
from kdsteps.study.study import Study

GIVEN = "KDSTEPS_INPUTS"  # environment variable: the inputs as `as_text` writes them


class Input(NamedTuple):
    """Files of the user that one entry of params.yaml names.

    Attributes:
        digest: Of their names and contents; "" if they are missing and nothing tracks them; None:
            the entry names no files.
        paths: Files and folders, whether or not they exist.
    """

    digest: str | None
    paths: list[str]


def inputs_by_entry(study: Study) -> dict[str, Input]:
    """The files of a study, by entries such as `datasets.pets`, `models.large` and `methods.kd`.

    Raises:
        KdstepsError: A file cannot be read.
    """
    if text := os.environ.get(GIVEN):
        return {entry: Input(*found) for entry, found in json.loads(text).items()}
    found = {}
    for name in study.used_datasets:
        dataset = study.datasets[name]
        paths = list(map(str, source_paths(dataset.kind, dataset.options)))
        prepared = outputs("prepare", {"dataset": name})
        found[f"datasets.{name}"] = Input(images_digest(dataset, prepared), paths)
    for name in set(_networks(study)):
        model = study.models[name]
        files = files_of_model(model)
        found[f"models.{name}"] = Input(checkpoint_digest(model), list(map(str, files)))
    for name, method in study.methods.items():
        files = files_of_method(method.method, [method.options, *method.trials])
        found[f"methods.{name}"] = Input(_digest(files), list(map(str, files)))
    return found


def as_text(inputs: Mapping[str, Input]) -> str:
    """Inputs as jobs on other machines receive them."""
    return json.dumps(inputs, sort_keys=True)


def input_paths(study: Study) -> list[Path]:
    """The files and folders of the user that a study's jobs read, whether or not they exist.

    These are images, checkpoints, files that options name, and code such as `./mine.py:Mine` with
    the files of the study's folder that it imports.

    Raises:
        KdstepsError: A list of images cannot be read.
    """
    return list(dict.fromkeys(_input_paths(study)))


def _input_paths(study: Study) -> Iterator[Path]:
    datasets = [study.datasets[name] for name in study.used_datasets]
    models = [study.models[name] for name in dict.fromkeys(_networks(study))]
    for dataset in datasets:
        yield from source_paths(dataset.kind, dataset.options)
    for model in models:
        yield from files_of_model(model)
    for method in study.methods.values():
        yield from files_of_method(method.method, [method.options, *method.trials])
    parts: list[tuple[Kind, str]] = [
        *(("data", dataset.kind) for dataset in datasets),
        *(("models", model.family) for model in models),
        *(("methods", entry.method) for entry in study.methods.values()),
        *(("metrics", reference) for reference in study.params.evaluate.metrics),
    ]
    for kind, reference in parts:
        described = registry.find(kind, reference, kind).described
        for file in map(Path, map(os.path.abspath, described.files)):
            if is_users(file) and file.is_relative_to(Path.cwd()):
                yield file.relative_to(Path.cwd())


def _networks(study: Study) -> Iterator[str]:
    """The names of all teachers and students, pair by pair."""
    for pair in study.pairs.values():
        yield from pair.teacher_names
        yield pair.student


def images_digest(dataset: Dataset, outputs: Mapping[str, str]) -> str:
    """The digest of a data set's files; "" if it has none that can change.

    Args:
        outputs: Of the job that prepares it.

    Raises:
        KdstepsError: A file cannot be read.
    """
    found = source_digest(dataset.kind, dataset.options)
    return "" if found == dataset.kind else found or _recorded(outputs, "source")


def checkpoint_digest(model: Model) -> str | None:
    """The digest of the weights that a network starts from and of files that its options name.

    Returns:
        "" if the weights are missing and nothing tracks them; None: there are no files.

    Raises:
        KdstepsError: A file cannot be read.
    """
    return _digest(files_of_model(model))


def _digest(paths: Sequence[Path]) -> str | None:
    found = [folder_digest(path) if path.is_dir() else file_digest(path) for path in paths]
    if not found:
        return None
    return combined(found) if all(found) else ""


def files_of_model(model: Model) -> list[Path]:
    """The weights that a network's entry names, and files that options of the user's code name."""
    name = str(model.options.get("name"))
    given = model.options.get("checkpoint") or re.sub("^local[-_]dir:", "", name)
    weights = [expanded(str(given))] if given != name else []
    return list(dict.fromkeys([*weights, *_named_files("models", model.family, [model.options])]))


def files_of_method(reference: str, options: Any) -> list[Path]:
    """The files that options of a method name."""
    return _named_files("methods", reference, options)


def _named_files(kind: Kind, reference: str, options: Any) -> list[Path]:
    """The files that options of a part name, if it is not one that ships with kdsteps.

    A text is a path if there is such a file, or one that DVC tracks.
    """
    if reference in shipped(kind):
        return []
    return [
        path
        for path in map(expanded, dict.fromkeys(texts_in(options)))
        if os.path.isfile(path) or os.path.isfile(f"{path}.dvc")
    ]


def weights_digest(checkpoint: str | None, outputs: Mapping[str, str]) -> str:
    """What a job has as the digest of its checkpoint; "" if it has none.

    Args:
        checkpoint: As `checkpoint_digest` returns it.
        outputs: Of the job, whose provenance counts where the checkpoint is missing.
    """
    return "" if checkpoint is None else checkpoint or _recorded(outputs, "weights")


def files_digest(method: Input, reference: str, outputs: Mapping[str, str]) -> str:
    """What a job has as the digest of the files that options of its method name; "" without any.

    Args:
        method: The files.
        reference: The method, as params.yaml names it.
        outputs: Of the job, whose provenance counts where no file is there.
    """
    if reference in shipped("methods"):
        return ""
    return method.digest or _recorded(outputs, "files")


def _recorded(outputs: Mapping[str, str], name: str) -> str:
    """A setting that a result was made with; "" if it has none."""
    known = read_provenance(provenance_file(outputs))
    return str(json.loads(known.settings).get(name, "")) if known is not None else ""
