"""Whether published weights have a classifier for a data set, as far as planning can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.study.settings import WITH_PUBLISHED_WEIGHTS, Dataset, Model
from kdsteps.study.study import Study

_OF_ANYONE = ("hf-hub:", "local-dir:")  # names of weights that timm passes through
_FEWEST = 384  # outputs of any classifier that timm 1.0 or torchvision 0.28 publishes
_NUM_DIGITS = 10


def classifier_problems(study: Study) -> Iterator[str]:
    """Teachers that are used as they are, with published weights for other classes.

    Their classifiers would have random weights. Where the number of classes is not known yet, or
    the weights are not timm's or torchvision's, the check of the teacher refuses instead.
    """
    needed = next((name for name, entry in study.methods.items() if entry.needs_classifier), None)
    for names in graph.jobs(study, "train") if needed else ():
        teacher, dataset = names["teacher"], names["dataset"]
        if study.trainings[teacher].epochs:
            continue
        model = study.models[teacher]
        count = _num_outputs_needed(model, study.datasets[dataset], dataset)
        if count is not None and count < _FEWEST:
            yield (
                f"models.{teacher}: has 0 epochs of training, and {model.options['name']} is not "
                f"published with a classifier for {count} classes, which {needed} needs; train it "
                "for one epoch or more, set a checkpoint, or name the outputs of the published "
                "classifier in `classes`"
            )


def _num_outputs_needed(model: Model, dataset: Dataset, name: str) -> int | None:
    """How many outputs published weights have to have; None where that cannot be said."""
    weights = str(model.options.get("name", ""))
    known = model.family in WITH_PUBLISHED_WEIGHTS and not weights.startswith(_OF_ANYONE)
    if not (known and model.options.get("pretrained")) or model.options.get("checkpoint"):
        return None
    if model.classes:
        return len(model.classes)
    return _num_classes(dataset, graph.outputs("prepare", {"dataset": name})["summary"])


def _num_classes(dataset: Dataset, summary: str) -> int | None:
    """Number of classes of a data set; None if it has not been prepared yet."""
    if dataset.kind == "digits":
        return _NUM_DIGITS
    with suppress(KdstepsError):  # there is none, or it is damaged and will be written again
        return len(read_json(summary).get("class_names", ())) or None
    return None
