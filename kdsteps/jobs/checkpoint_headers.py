"""Compare the header of a kdsteps checkpoint with a study without labels that uses it.

With labels, the check of the teacher finds a wrong normalization or order of classes by its
accuracy. Without, nothing else would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel

from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.study.resolving import parse
from kdsteps.study.settings import Model, Normalization
from kdsteps.study.study import Study


class _Header(BaseModel):
    """What checkpoints store of how their network was trained."""

    model: Model
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Teacher(NamedTuple):
    name: str
    path: str  # of its checkpoint
    dataset: str
    header: _Header


def order_problems(study: Study) -> Iterator[str]:
    """Teachers whose outputs are the classes of their data set in another order."""
    for name, path, dataset, header in _teachers(study):
        own = study.models[name].classes
        declared = own or study.datasets[dataset].classes or ()
        trained = header.model.classes or header.class_names
        if declared != trained and sorted(map(str, declared)) == sorted(map(str, trained)):
            where = f"models.{name}" if own else f"datasets.{dataset}"
            yield (
                f"{where}.classes: has another order than the outputs of the network in {path}; "
                f"write {json.dumps(trained, ensure_ascii=False)}"
            )


def normalization_doubts(study: Study) -> Iterator[str]:
    """Teachers that would see images normalized otherwise than those they were trained on."""
    for name, path, _, header in _teachers(study):
        if study.params.models[name].normalize or study.models[name].normalize:
            continue
        own: object = header.model.normalize or Normalization(mean=header.mean, std=header.std)
        if isinstance(own, Normalization):
            numbers = own.rounded()
            own = f"{{mean: {numbers['mean']}, std: {numbers['std']}}}"
        yield (
            f"models.{name}: its images are normalized with the mean and standard deviation of "
            f"this study, not with those that the network in {path} was trained with; set "
            f"`normalize: {own}`, or `normalize: dataset` to keep it so"
        )


def _teachers(study: Study) -> Iterator[_Teacher]:
    """The teachers on images without labels that start from a checkpoint of kdsteps."""
    found = {
        (teacher, pair.dataset): None
        for name, pair in study.pairs.items()
        if not study.has_labels(name)
        for teacher in pair.teacher_names
    }
    for teacher, dataset in found:
        path = study.models[teacher].options.get("checkpoint")
        with suppress(KdstepsError):  # from elsewhere, or its reader says what is wrong with it
            if path is not None:
                header = parse(_Header, read_checkpoint_header(str(path)), "header")
                yield _Teacher(teacher, str(path), dataset, header)
