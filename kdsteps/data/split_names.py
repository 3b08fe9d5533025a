"""The usual names of splits in folders and lists."""

from __future__ import annotations

import re

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_BESIDE = frozenset(("set", "sets", "data", "images", "image", "imgs", "img", "seg", "split"))
"""Words beside the name of a split."""


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named after, such as `train`, `Test_set` or `seg_train`."""
    words = [word.removesuffix("set") for word in re.split(r"[^a-z]+", name.lower())]
    told = [word for word in words if word and word not in _BESIDE]
    meant = [split for split, spellings in SPELLINGS.items() if told and told[0] in spellings]
    return meant[0] if len(told) == 1 and meant else None
