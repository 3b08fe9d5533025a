"""What must be true of the labels of a source before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdsteps.data.source import PARTS, Source
from kdsteps.errors import KdstepsError


def check_source(source: Source) -> None:
    """Refuse a source whose labels, names and parts do not fit together.

    Raises:
        KdstepsError: There are no images, fewer than two classes, a label out of range, or an
            unknown part.
        ValueError: The source has not one label, name and part for each image.
    """
    count = len(source.images)
    if count == 0:
        raise KdstepsError("the source has no images; a study needs some of every class")
    lengths = {len(source.labels), len(source.names), len(source.split), count}
    if len(lengths) > 1:
        raise ValueError(f"images, labels, names and split differ in length: {sorted(lengths)}")
    if not np.issubdtype(source.labels.dtype, np.integer):
        raise ValueError(f"labels are {source.labels.dtype}, not whole numbers")
    if len(source.class_names) < 2:
        raise KdstepsError(
            f"the source has one class only ({''.join(source.class_names)}); two are the least"
        )
    twice = {name for name in source.class_names if source.class_names.count(name) > 1}
    if twice:
        raise KdstepsError(f"two classes are called {min(twice)!r}; give each a name of its own")
    check_labels(source.labels, source.class_names, source.names)
    unknown = set(np.unique(source.split).tolist()) - set(PARTS) - {""}
    if unknown:
        raise ValueError(f"the source speaks of a part {min(unknown)!r}")


def check_labels(labels: np.ndarray, class_names: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a label that is no class, by the name of the first image that has one."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise KdstepsError(
            f"{names[wrong[0]]}: has the label {labels[wrong[0]]}; with {len(class_names)} classes "
            f"labels go from 0 to {len(class_names) - 1}"
            + (f" ({len(wrong)} images have one out of range)" if len(wrong) > 1 else "")
        )


def check_classes(labels: np.ndarray, parts: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse a class without a training image: nothing could be learnt of it.

    Args:
        labels, parts: (N,).
    """
    if "train" not in parts:
        raise KdstepsError(
            "the source has no training part; name one, or leave the split to prepare"
        )
    counts = np.bincount(labels[parts == "train"], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        raise KdstepsError(
            f"class {empty[0]!r} has no training images"
            + (f" (nor have {len(empty) - 1} others)" if len(empty) > 1 else "")
            + "; give it some or take it out of the classes"
        )
