"""Images in folders, one folder a class: `cat/1.png`, or `train/cat/1.png`, `test/cat/2.png`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from kdsteps.data.decoding import Content, EncodedImages, form_of
from kdsteps.data.source import PARTS, Source
from kdsteps.data.subset import thinned
from kdsteps.errors import KdstepsError

log = logging.getLogger("kdsteps")

_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg",
    ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: file name, class, box, tab between them


def load(
    *,
    path: str,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    channels: Literal[1, 3] | None = None,
    resize: PositiveInt | None = None,
    crop: PositiveInt | None = None,
    per_class: PositiveInt | None = None,
) -> Source:
    """The images under `path`, classes in alphabetical order of their folders.

    Args:
        path: A folder of class folders, or of folders for parts such as train, val and test.
        train, validation, test: Folders of the parts within `path`. Where none is given, those of
            the usual names are taken; a part that is not there is taken from train by the section
            `prepare`. `{train: train, test: val}` measures on what others call validation.
        channels: 1 for grey, 3 for colour; None: grey if all images are.
        resize: Pixels of the shorter side that images are resized to.
        crop: Height and width of the middle that is kept.
        per_class: At most so many images of each class in each part.

    Raises:
        KdstepsError: A folder is not there, holds no images, or a part has a class that train has
            not.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise KdstepsError(f"datasets: path {path!r} is no folder; give one with a folder a class")
    given = dict(zip(PARTS, (train, validation, test), strict=True))
    folders = _part_folders(root, {part: name for part, name in given.items() if name is not None})
    found = {part: _images(folder) for part, folder in folders.items()}
    class_names = _class_names(found, folders)
    rows = [(part, file, name) for part, files in found.items() for file, name in files]
    number = {name: place for place, name in enumerate(class_names)}
    labels = np.array([number[name] for _, _, name in rows], dtype=np.int64)
    split = np.array([part for part, _, _ in rows], dtype="<U10")
    kept = thinned(labels, split, per_class)
    files = [rows[row][1] for row in kept]

    def contents() -> Iterator[Content]:
        yield from files

    return Source(
        images=EncodedImages(contents, len(files), form_of(contents, channels, resize, crop)),
        labels=labels[kept],
        class_names=class_names,
        split=split[kept],
        names=tuple(file.relative_to(root).as_posix() for file in files),
    )


def _part_folders(root: Path, given: Mapping[str, str]) -> dict[str, Path]:
    """The folder of each part; {"": root} where the classes lie in `root` itself."""
    if given:
        folders = {part: root / name for part, name in ({"train": "train"} | dict(given)).items()}
        for part, folder in folders.items():
            if not folder.is_dir():
                raise KdstepsError(
                    f"datasets: {part}: {folder} is no folder; give one within {root}"
                )
        return folders
    entries = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    inside = {entry.name.lower(): entry for entry in entries if not entry.name.startswith(".")}
    found = {
        part: inside[name]
        for part, spellings in _SPELLINGS.items()
        for name in reversed(spellings)
        if name in inside
    }
    # a single `train` among other folders is a class, beside cars and planes
    divided = "train" in found and (len(found) > 1 or len(inside) == 1)
    return found if divided else {"": root}


def _images(folder: Path) -> list[tuple[Path, str]]:
    """Each image below `folder` with its class, in order of names."""
    if (folder / _ANNOTATIONS).is_file():
        return _annotated(folder)
    found: list[tuple[Path, str]] = []
    empty, others = [], 0
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        before = len(found)
        for place, inner, names in os.walk(entry, followlinks=True):
            inner.sort()
            images = [name for name in sorted(names) if name.lower().endswith(_SUFFIXES)]
            found += [(Path(place, name), entry.name) for name in images]
            others += len(names) - len(images)
        if len(found) == before:
            empty.append(entry)
    if found and empty:
        raise KdstepsError(
            f"{empty[0]}: has no images; give the class some, or move the folder away"
        )
    if not found:
        raise KdstepsError(
            f"{folder}: has no images in class folders; they should lie as {folder}/cat/1.png, "
            f"with one of the endings {', '.join(_SUFFIXES)}"
        )
    if others:
        log.info("%s: %d files are no images by their names and were passed over", folder, others)
    return found


def _annotated(folder: Path) -> list[tuple[Path, str]]:
    """The images of a part whose classes stand in a text file, as Tiny ImageNet's do."""
    lines = (folder / _ANNOTATIONS).read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise KdstepsError(
            f"{folder / _ANNOTATIONS}: line {short[0]} has no class; write a file name, a tab and "
            "a class"
        )
    return [(folder / "images" / name, class_name) for name, class_name in rows]


def _class_names(
    found: Mapping[str, list[tuple[Path, str]]], folders: Mapping[str, Path]
) -> tuple[str, ...]:
    """The classes of the training part, which all other parts keep to."""
    classes = {part: {name for _, name in files} for part, files in found.items()}
    first = "train" if "train" in classes else ""
    for part, names in classes.items():
        strange = sorted(names - classes[first])
        if strange:
            raise KdstepsError(
                f"{folders[part]}: has a class {strange[0]!r} that {folders[first]} has not; every "
                "part needs the same class folders (leave a part out by naming the others)"
            )
    return tuple(sorted(classes[first]))
