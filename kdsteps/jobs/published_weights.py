"""Whether published weights have a classifier for a data set, as far as planning can tell."""

from __future__ import annotations

from contextlib import suppress

from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.study.settings import Dataset, Model

_FAMILIES = ("timm", "torchvision")
_OF_ANYONE = ("hf-hub:", "local-dir:")  # names of weights that timm passes through
_FEWEST = 384  # outputs of any classifier that timm 1.0 or torchvision 0.28 publishes
_NUM_DIGITS = 10


def check_classifier(model: Model, dataset: Dataset, summary: str, where: str, method: str) -> None:
    """Refuse published weights for other classes, for a teacher that is used as it is.

    Its classifier would have random weights. Where the number of classes is not known yet, or the
    weights are not timm's or torchvision's, the check of the teacher refuses instead.

    Args:
        summary: What the stage `prepare` writes for the data set.
        where: The beginning of an error's sentence.
        method: One that needs the classifier.

    Raises:
        KdstepsError: The weights are published with another number of classes.
    """
    name = str(model.options.get("name", ""))
    known = model.family in _FAMILIES and not name.startswith(_OF_ANYONE)
    if not (known and model.options.get("pretrained")) or model.options.get("checkpoint"):
        return
    num_classes = len(model.classes) if model.classes else _num_classes(dataset, summary)
    if num_classes is not None and num_classes < _FEWEST:
        raise KdstepsError(
            f"{where} has 0 epochs of training, and {name} is not published with a classifier for "
            f"{num_classes} classes, which {method} needs; train it for one epoch or more, set a "
            "checkpoint, or name the outputs of the published classifier in `classes`"
        )


def _num_classes(dataset: Dataset, summary: str) -> int | None:
    """Number of classes of a data set; None if it has not been prepared yet."""
    if dataset.kind == "digits":
        return _NUM_DIGITS
    with suppress(KdstepsError):  # there is none, or it is damaged and will be written again
        return len(read_json(summary).get("class_names", ())) or None
    return None
