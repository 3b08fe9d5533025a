"""Split images into training, validation and test images, and find copies across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from kdsteps.data.source import SPLITS
from kdsteps.errors import KdstepsError


def complete_split(
    split: np.ndarray,
    labels: np.ndarray,
    hashes: Sequence[str],
    class_names: Sequence[str],
    *,
    validation: float,
    test: float,
    seed: int,
) -> np.ndarray:
    """The split of each image: that of the source, otherwise the same fraction of every class.

    A split of the source is used as it is; a missing one is taken from its training images. Images
    without labels are one class, and none of them are taken for testing.
    Within a class, images are ordered by a hash of seed and pixels, so the result does not depend
    on the order of the images, and copies of one image stay together: those that are of several
    classes are training images.

    Args:
        split: (N,) "train", "validation", "test", or "" throughout.
        labels: (N,).
        hashes: (N,) of the pixels.
        class_names: K names, for messages; none for images without labels.
        validation: Fraction of the images that are not for testing; 0: no validation images.
        test: Fraction of all images, or of the training images where the source has some.
        seed: A different one results in a different split.

    Raises:
        KdstepsError: There would be no test images, or a class is too small for every split.
    """
    complete = np.where(split == "", "train", split).astype("<U10")
    if "test" not in complete and class_names:
        if test == 0:
            raise KdstepsError(
                "prepare.test is 0 and the data set has no test images, so nothing could be "
                "evaluated; set a fraction above 0"
            )
        _take(complete, "test", test, labels, hashes, class_names, seed)
    if "validation" not in complete and validation > 0:
        _take(complete, "validation", validation, labels, hashes, class_names, seed)
    return complete


def duplicates(
    hashes: Sequence[str], split: np.ndarray
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Duplicate images: for each pair of splits, the rows of the first copy and of the other one.

    Each image of the later split is counted once, with its first copy in the earlier split; within
    one split, each copy after the first.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(hashes):
        rows[digest].append(row)
    split_of: list[str] = split.tolist()
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for same in rows.values():
        if len(same) == 1:
            continue
        first: dict[str, int] = {}
        for row in sorted(same, key=lambda row: (SPLITS.index(split_of[row]), row)):
            for name, earlier in first.items():
                found[name, split_of[row]].append((earlier, row))
            first.setdefault(split_of[row], row)
    return dict(found)


def _take(
    split: np.ndarray,
    name: str,
    fraction: float,
    labels: np.ndarray,
    hashes: Sequence[str],
    class_names: Sequence[str],
    seed: int,
) -> None:
    """Move a fraction of every class from train to the split `name`, in place."""
    ambiguous = _of_several_classes(labels, hashes)
    of_class = [(f"class {shown!r}", labels == label) for label, shown in enumerate(class_names)]
    for what, belongs in of_class or [("the data set", np.ones(len(labels), dtype=bool))]:
        rows = np.flatnonzero((split == "train") & belongs)
        groups: dict[str, list[int]] = defaultdict(list)
        for row in rows.tolist():
            groups[hashes[row]].append(row)
        if len(groups) < 2:
            left = "" if name == "test" else " left"
            raise KdstepsError(
                f"{what} has {len(groups)} different image"
                f"{'' if len(groups) == 1 else 's'}{left} for the splits train and {name}; "
                f"{'every class' if class_names else 'it'} needs one for each split; add images, "
                + ("leave the class out, " if class_names else "")
                + ("or name test images" if name == "test" else f"or set prepare.{name} to 0")
            )
        wanted = max(1, round(fraction * len(rows)))
        taken: list[int] = []
        ordered = sorted(groups, key=lambda digest: _key(seed, digest))
        for digest in ordered[:-1]:  # the last one stays for training
            if len(taken) >= wanted:
                break
            if digest not in ambiguous:
                taken += groups[digest]
        split[taken] = name


def _of_several_classes(labels: np.ndarray, hashes: Sequence[str]) -> set[str]:
    """The hashes of images that have copies of another class."""
    first: dict[str, int] = {}
    pairs = zip(hashes, labels.tolist(), strict=True)
    return {digest for digest, label in pairs if first.setdefault(digest, label) != label}


def _key(seed: int, digest: str) -> bytes:
    return blake2b(f"{seed} {digest}".encode(), digest_size=16).digest()
