"""The usual names of splits in folders and lists."""

from __future__ import annotations

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
