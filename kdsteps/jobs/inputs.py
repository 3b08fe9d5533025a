"""The files that params.yaml names by path, images and checkpoints, and their digests.

A changed file under the same name reruns its jobs. Where a file is missing, as for a colleague who
pulled the results without the images, what the result was made from counts. Jobs on machines that
have none of these files receive what the main process found, in an environment variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kdsteps.files.input_digests import file_digest, folder_digest
from kdsteps.files.manifest import source_digest, source_paths
from kdsteps.jobs.outputs import outputs
from kdsteps.jobs.provenance import provenance_file, read_provenance
from kdsteps.study import registry
from kdsteps.study.part_imports import is_users
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
    """The images and checkpoints of a study, by entries such as `datasets.pets` and `models.large`.

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
        paths = [] if (weights := _weights(model)) is None else [str(weights)]
        found[f"models.{name}"] = Input(checkpoint_digest(model), paths)
    return found


def as_text(inputs: Mapping[str, Input]) -> str:
    """Inputs as jobs on other machines receive them."""
    return json.dumps(inputs, sort_keys=True)


def input_paths(study: Study) -> list[Path]:
    """The files and folders of the user that a study's jobs read, whether or not they exist.

    These are images, checkpoints, and code such as `./mine.py:Mine` with the files of the study's
    folder that it imports.

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
        if weights := _weights(model):
            yield weights
    parts: list[tuple[registry.Kind, str]] = [
        *(("data", dataset.kind) for dataset in datasets),
        *(("models", model.family) for model in models),
        *(("methods", entry.method) for entry in study.methods.values()),
        *(("metrics", reference) for reference in study.params.evaluate.metrics),
    ]
    for kind, reference in parts:
        for file in map(Path, registry.find(kind, reference, kind).described.files):
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
    """The digest of the file or folder of weights that a network starts from; None: there is none.

    Returns:
        "" if it is missing and nothing tracks it.

    Raises:
        KdstepsError: A file cannot be read.
    """
    path = _weights(model)
    if path is None:
        return None
    return folder_digest(path) if path.is_dir() else file_digest(path)


def _weights(model: Model) -> Path | None:
    """The file or folder of weights that a network's entry names by path."""
    name = str(model.options.get("name"))
    given = model.options.get("checkpoint") or re.sub("^local[-_]dir:", "", name)
    return Path(str(given)).expanduser() if given != name else None


def weights_digest(checkpoint: str | None, outputs: Mapping[str, str]) -> str:
    """What a job has as the digest of its checkpoint; "" if it has none.

    Args:
        checkpoint: As `checkpoint_digest` returns it.
        outputs: Of the job, whose provenance counts where the checkpoint is missing.
    """
    return "" if checkpoint is None else checkpoint or _recorded(outputs, "weights")


def _recorded(outputs: Mapping[str, str], name: str) -> str:
    """A setting that a result was made with; "" if it has none."""
    known = read_provenance(provenance_file(outputs))
    return str(json.loads(known.settings).get(name, "")) if known is not None else ""
