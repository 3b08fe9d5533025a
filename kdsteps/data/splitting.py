"""Which image is for training, validation or testing, and which stands in two parts at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from kdsteps.data.source import PARTS
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
    """The part of each image: the source's where it says, else the same share of every class.

    A part that the source has stays as it is; one that it lacks is taken from its training part.
    Within a class, images are ordered by a hash of seed and pixels, so the split does not depend on
    the order of the images, and copies of one image stay together.

    Args:
        split: (N,) "train", "validation", "test", or "" throughout.
        labels: (N,).
        hashes: (N,) of the pixels.
        class_names: K names, for messages.
        validation: Share of the images that are not for testing; 0: no validation part.
        test: Share of all images, or of the training part where the source has one.
        seed: Another one gives another split.

    Raises:
        KdstepsError: There would be no test part, or a class is too small to be in every part.
    """
    parts = np.where(split == "", "train", split).astype("<U10")
    if "test" not in parts:
        if test == 0:
            raise KdstepsError(
                "prepare.test is 0 and the source has no test part: nothing could be measured; "
                "give a share above 0"
            )
        _take(parts, "test", test, labels, hashes, class_names, seed)
    if "validation" not in parts and validation > 0:
        _take(parts, "validation", validation, labels, hashes, class_names, seed)
    return parts


def duplicates(
    hashes: Sequence[str], parts: np.ndarray
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Images that stand twice: for each two parts, the rows of the first copy and the other one.

    Each image of the later part is counted once, with its first copy in the earlier part; within
    one part, each copy after the first.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(hashes):
        rows[digest].append(row)
    part_of: list[str] = parts.tolist()
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for same in rows.values():
        if len(same) == 1:
            continue
        first: dict[str, int] = {}
        for row in sorted(same, key=lambda row: (PARTS.index(part_of[row]), row)):
            for part, earlier in first.items():
                found[part, part_of[row]].append((earlier, row))
            first.setdefault(part_of[row], row)
    return dict(found)


def _take(
    parts: np.ndarray,
    name: str,
    share: float,
    labels: np.ndarray,
    hashes: Sequence[str],
    class_names: Sequence[str],
    seed: int,
) -> None:
    """Move `share` of every class from train to the part `name`, in place."""
    for label, class_name in enumerate(class_names):
        rows = np.flatnonzero((parts == "train") & (labels == label))
        groups: dict[str, list[int]] = defaultdict(list)
        for row in rows.tolist():
            groups[hashes[row]].append(row)
        if len(groups) < 2:
            raise KdstepsError(
                f"class {class_name!r} has {len(groups)} different image"
                f"{'' if len(groups) == 1 else 's'} to train on and to take its {name} part from; "
                "every class needs one for each part"
            )
        wanted = max(1, round(share * len(rows)))
        taken: list[int] = []
        ordered = sorted(groups, key=lambda digest: _key(seed, digest))
        for digest in ordered[:-1]:  # one stays for training
            if len(taken) >= wanted:
                break
            taken += groups[digest]
        parts[taken] = name


def _key(seed: int, digest: str) -> bytes:
    return blake2b(f"{seed} {digest}".encode(), digest_size=16).digest()
