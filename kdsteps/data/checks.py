"""Checks of a source and its labels before its images are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kdsteps.data.source import SPLITS, Source
from kdsteps.errors import KdstepsError
from kdsteps.files.text import unprintable


def check_returned(returned: object, kind: str) -> Source:
    """What a kind of data returned, which may be the user's own: a `Source` as that class says.

    Raises:
        KdstepsError: It returned something else.
    """
    if not isinstance(returned, Source):
        raise KdstepsError(
            f"datasets: {kind} returned a value of type {type(returned).__name__}; it should be a "
            "kdsteps.data.source.Source"
        )
    if problem := _form_problem(returned):
        raise KdstepsError(f"datasets: {kind} returned a Source with {problem}")
    return returned


def _form_problem(source: Source) -> str | None:
    """What is wrong with the types, shapes and lengths of a source, and its splits; or None."""
    images, labels, split = source.images, source.labels, source.split
    if isinstance(images, np.ndarray):
        shape = images.shape
        if len(shape) != 4 or (shape[3] in (1, 3) and shape[1] not in (1, 3)):  # channels last
            return f"images of the shape {shape}; it should be (N, channels, height, width)"
    elif not hasattr(images, "pictures"):
        return f"images of type {type(images).__name__}; they should be an array (N, C, H, W)"
    for name, values in {"labels": labels, "split": split}.items():
        if not isinstance(values, np.ndarray) or values.ndim != 1:
            return f"{name} of type {type(values).__name__}; it should be an array (N,)"
    if not np.issubdtype(labels.dtype, np.integer):
        return f"labels of {labels.dtype}; they should be whole numbers from 0"
    if not all(isinstance(name, str) for name in source.class_names):
        return f"the class names {source.class_names}; they should be text"
    lengths = {"labels": len(labels), "split": len(split), "names": len(source.names)}
    for name, length in lengths.items():
        if length != len(images):
            return f"{name} of length {length} for {len(images)} images; each image needs one"
    if unknown := set(split.tolist()) - {*SPLITS, ""}:
        return f"the split {unknown.pop()!r}; use train, validation and test, or '' for all images"
    if source.image_size is not None and len(np.shape(source.image_size)) != 1:
        return f"image_size {source.image_size}; it should be (height, width)"
    return None


def check_source(source: Source, *, labeled: bool = True) -> None:
    """Check the images and labels of a source.

    Args:
        labeled: Whether it should have labels.

    Raises:
        KdstepsError: There are no images, fewer than two classes, a class name that cannot be
            printed, or a label out of range.
    """
    if len(source.images) == 0:
        needed = "every class needs some" if labeled else "put some there"
        raise KdstepsError(f"the data set has no images; {needed}")
    if labeled:
        _check_classes(source)


def _check_classes(source: Source) -> None:
    if len(source.class_names) < 2:
        raise KdstepsError(
            f"the data set has only one class ({''.join(source.class_names)}); at least two are "
            "needed"
        )
    for name in source.class_names:
        if not name.strip():
            raise KdstepsError(f"the class name {name!r} is empty; every class needs a name")
        if (character := unprintable(name)) is not None:
            raise KdstepsError(
                f"the class name {name!r} has the character {character!r}, which cannot be "
                "printed; rename the class"
            )
    known: dict[str, str] = {}
    for name in source.class_names:
        if (other := known.setdefault(name.strip(), name)) != name:
            raise KdstepsError(
                f"the classes {other!r} and {name!r} differ in spaces alone; write one name "
                "without them, or use different names"
            )
    twice = {name for name in source.class_names if source.class_names.count(name) > 1}
    if twice:
        raise KdstepsError(f"two classes are called {min(twice)!r}; use different names")
    check_labels(source.labels, source.class_names, source.names)


def check_labels(labels: np.ndarray, class_names: Sequence[str], names: Sequence[str]) -> None:
    """Raise KdstepsError for a label out of range, with the first image that has one."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise KdstepsError(
            f"{names[wrong[0]]}: has the label {labels[wrong[0]]}; with {len(class_names)} classes "
            f"labels go from 0 to {len(class_names) - 1}"
            + (f" ({len(wrong)} images have one out of range)" if len(wrong) > 1 else "")
        )


def check_classes(labels: np.ndarray, split: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise KdstepsError for a class without training images, or if there are none at all.

    Args:
        labels, split: (N,).
        class_names: None for images without labels.
    """
    if "train" not in split:
        raise KdstepsError(
            "the data set has no training images; name its training split, or let prepare split it"
        )
    if not class_names:
        return
    counts = np.bincount(labels[split == "train"], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        raise KdstepsError(
            f"class {empty[0]!r} has no training images"
            + (f" (and {len(empty) - 1} more)" if len(empty) > 1 else "")
            + (
                "; if labels start at 1, subtract 1 from each"
                if empty == ["0"]
                else "; add some, or remove the class"
            )
        )


def doubt_of_bits(modes: Iterable[str], mean: float) -> str | None:
    """A doubt about images of 16 bits that are on average no brighter than 12 bits can be.

    Args:
        modes: Of the pixels of all images, as Pillow names them.
        mean: Of all pixels, 0 to 1.
    """
    if mean > 2**12 / 2**16 or not all(mode.startswith("I") for mode in modes):
        return None
    return (
        "images of 16 bits are nearly black: if their values have fewer bits, scale them to 16 "
        "first (12 bits: multiply by 16)"
    )
