"""What folders and lists usually call the splits."""

from __future__ import annotations

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
