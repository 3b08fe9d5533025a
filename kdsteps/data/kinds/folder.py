"""Images in folders, one folder per class: `cat/1.png`, or `train/cat/1.png`, `test/cat/2.png`.

Without labels, folders mean nothing: every image below the path counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from kdsteps.data.decoding import SUFFIXES, Content
from kdsteps.data.encoded import encoded_source
from kdsteps.data.form import size_problem
from kdsteps.data.overlaps import check_once
from kdsteps.data.source import SPLITS, Source
from kdsteps.data.split_lists import splits_by_list
from kdsteps.data.split_names import SPELLINGS, split_of_folder
from kdsteps.data.subset import thinned
from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.files.walk import Walk, is_debris

log = logging.getLogger("kdsteps")

options_problem = size_problem  # no other options contradict each other

_SHOWN = 3  # names of classes in a sentence
_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: file name, class, box, tab between them

Row = tuple[str, Path, str]
"""An image: its split ("" where the folders do not say), its file and its class."""


def load(
    *,
    path: str | tuple[str, ...],
    train: str | tuple[str, ...] | None = None,
    validation: str | tuple[str, ...] | None = None,
    test: str | tuple[str, ...] | None = None,
    follow_links: bool = False,
    channels: Literal[1, 3] | None = None,
    store: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    per_class: PositiveInt | None = None,
    labeled: bool = True,
) -> Source:
    """The images under `path`, classes in alphabetical order of their folders.

    Args:
        path: A folder of class folders, or of folders for splits such as train, val and test; or
            a list of such folders, whose classes are merged by name.
        train, validation, test: What belongs to each split: a folder within `path` or a list of
            folders, or a text file with one image per line. Where none is set, folders with the
            usual names are used. A missing split is taken from train, as the section `prepare`
            says. `{train: train, test: val}` tests on the images that are called validation.
        follow_links: Whether symbolic links may lead out of `path`.
        channels: 1 for gray, 3 for color; by default gray if all images are.
        store: Height and width that images are stored at: resized to cover it, center crop.
        image_size: Height and width that networks see; by default all of the stored image.
        resize: Pixels of the shorter side after resizing, or exactly [height, width].
        crop: Height and width of the center crop after `resize`.
        per_class: At most this many images of each class in each split.
        labeled: Whether folders are classes.

    Raises:
        KdstepsError: A folder does not exist, has no images or links to elsewhere, an image is in
            two of the folders, or a split has a class that train does not have.
    """
    roots = [_root(text) for text in ([path] if isinstance(path, str) else path)]
    given = {
        split: (value,) if isinstance(value, str) else value
        for split, value in zip(SPLITS, (train, validation, test), strict=True)
        if value is not None
    }
    rows = [row for root in roots for row in _rows(root, given, roots, follow_links, labeled)]
    if len(roots) > 1 or given:
        check_once((split, file) for split, file, _ in rows)
    class_names = _class_names(rows)
    number = {name: place for place, name in enumerate(class_names)}
    labels = np.array([number[name] for _, _, name in rows], dtype=np.int64)
    split = np.array([split for split, _, _ in rows], dtype="<U10")
    chosen = thinned(labels, split, per_class)
    files = [rows[row][1] for row in chosen]

    def contents() -> Iterator[Content]:
        yield from files

    names = [(file.relative_to(roots[0]) if len(roots) == 1 else file).as_posix() for file in files]
    return encoded_source(
        contents,
        labels=labels[chosen],
        class_names=class_names,
        split=split[chosen],
        names=names,
        channels=channels,
        resize=resize,
        crop=crop,
        store=store,
        image_size=image_size,
    )


def _root(text: str) -> Path:
    root = expanded(text)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise KdstepsError(
            f"datasets: path {text!r} {what}; name a folder with one folder per class"
        )
    return root


def _rows(
    root: Path,
    given: Mapping[str, Sequence[str]],
    roots: Sequence[Path],
    follow_links: bool,
    labeled: bool,
) -> list[Row]:
    """Every image below a root, split by split, in the order of their paths."""
    lists = {split: names for split, names in given.items() if _are_lists(root, names)}
    if not lists:
        return _images(root, _split_folders(root, given), follow_links, labeled)
    if len(lists) < len(given):
        other = next(split for split in given if split not in lists)
        raise KdstepsError(
            f"datasets: {next(iter(lists))} is a list of images and {other} is not; use lists or "
            "folders for all splits"
        )
    if len(roots) > 1:
        raise KdstepsError("datasets: path: lists of images need one folder, not several")
    rows = _images(root, {"": [root]}, follow_links, labeled)
    return splits_by_list(rows, root, lists)


def _are_lists(root: Path, names: Sequence[str]) -> bool:
    return all(_within(root, name).is_file() for name in names)


def _within(root: Path, name: str) -> Path:
    return root / expanded(name)


def _split_folders(root: Path, given: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """The folders of each split; {"": [root]} where `root` itself has the class folders."""
    if given:
        wanted = {"train": ("train",)} | dict(given)
        for split in (*given, "train"):
            for folder in (_within(root, name) for name in wanted[split]):
                if not folder.is_dir():
                    what = "is not a folder" if folder.exists() else "does not exist"
                    raise KdstepsError(
                        f"datasets: {split}: {folder} {what}; name a folder, or a text file with "
                        f"one image per line, within {root}"
                    )
        return {split: [_within(root, name) for name in names] for split, names in wanted.items()}
    inside = _folders_in(root)
    named = {
        split: [entry for entry in inside if split_of_folder(entry.name) == split]
        for split in SPELLINGS
    }
    found = {split: folders for split, folders in named.items() if folders}
    others = len(inside) - sum(map(len, found.values()))
    # a single `train` among other folders is a class, next to cars and planes
    if "train" not in found or (len(found) == 1 and others):
        return {"": [root]}
    for split, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(entry.name for entry in folders)
            raise KdstepsError(
                f"datasets: {root} has several folders for {split}, {names}; name the folders of "
                "every split, such as `train: train` and `test: test`"
            )
    if others:
        log.info("%s: skipped %d folders that are not those of splits", root, others)
    return found


def _folders_in(folder: Path) -> list[Path]:
    return [
        entry for entry in sorted(folder.iterdir()) if not is_debris(entry.name) and entry.is_dir()
    ]


def _images(
    root: Path, folders: Mapping[str, list[Path]], follow_links: bool, labeled: bool
) -> list[Row]:
    """Every image of each split with its class, "" where it has no label."""

    def entries_in(folder: Path) -> list[Path]:
        if not labeled:
            return [folder]
        return [] if (folder / _ANNOTATIONS).is_file() else _folders_in(folder)

    classes = {
        (split, folder): entries_in(folder)
        for split, of_split in folders.items()
        for folder in of_split
    }
    walk = Walk(root, follow_links)
    files = iter(walk.files([entry for entries in classes.values() for entry in entries]))
    rows: list[Row] = []
    others = 0
    for (split, folder), entries in classes.items():
        if labeled and (folder / _ANNOTATIONS).is_file():
            rows += [(split, file, name) for file, name in _annotated(folder)]
            continue
        found = {entry: next(files) for entry in entries}
        images = {
            entry: [Path(file) for file in inside if file.lower().endswith(SUFFIXES)]
            for entry, inside in found.items()
        }
        others += sum(map(len, found.values())) - sum(map(len, images.values()))
        if labeled:
            _check_classes(folder, images)
            if not split:
                _doubt_classes(folder, images)
        elif not any(images.values()):
            raise KdstepsError(
                f"{folder}: has no images; put files there that end in {', '.join(SUFFIXES)}"
            )
        rows += [
            (split, file, entry.name if labeled else "")
            for entry, inside in images.items()
            for file in inside
        ]
    if others:
        log.info("%s: skipped %d files whose names are not those of images", root, others)
    if walk.links:
        what = "links to images or folders that are counted where they are"
        log.info("%s: skipped %d %s, such as %s", root, len(walk.links), what, walk.links[0])
    if walk.special:
        what = "named pipes, sockets or devices"
        log.warning("%s: skipped %d %s, such as %s", root, len(walk.special), what, walk.special[0])
    return rows


def _check_classes(folder: Path, images: Mapping[Path, Sequence[Path]]) -> None:
    """Raise KdstepsError for a class without images; links to class folders do not count."""
    if not any(images.values()):
        raise KdstepsError(
            f"{folder}: has no images in class folders; put them at {folder}/cat/1.png, as files "
            f"that end in {', '.join(SUFFIXES)}, or set `labels: none`"
        )
    empty = [entry for entry, inside in images.items() if not inside and not entry.is_symlink()]
    if empty:
        raise KdstepsError(f"{empty[0]}: has no images; add some, or move the folder away")


def _doubt_classes(folder: Path, images: Mapping[Path, Sequence[Path]]) -> None:
    """Warn of folders that may be splits rather than classes: all have the same subfolders."""
    inside = {
        frozenset(file.relative_to(entry).parts[0] for file in found if file.parent != entry)
        for entry, found in images.items()
    }
    direct = any(file.parent == entry for entry, found in images.items() for file in found)
    if direct or len(inside) != 1 or len(images) < 2 or len(*inside) < 2:
        return
    first, second, *_ = (entry.name for entry in images)
    classes = ", ".join(sorted(*inside)[:_SHOWN])
    log.warning(
        "%s: %s, %s and so on count as classes, but all have the same folders (%s); if these are "
        "the classes, name the folders of the splits, such as `train: %s` and `test: %s`",
        *(folder, first, second, classes, first, second),
    )


def _annotated(folder: Path) -> list[tuple[Path, str]]:
    """The images of a split whose classes are in a text file, as in Tiny ImageNet."""
    lines = (folder / _ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise KdstepsError(
            f"{folder / _ANNOTATIONS}: line {short[0]} has no class; write a file name, a tab and "
            "a class"
        )
    return [(folder / "images" / name, class_name) for name, class_name in rows]


def _class_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The classes of the training images, which include those of all other splits."""
    known = {name for split, _, name in rows if split in ("", "train")}
    for split, file, name in rows:
        if name not in known:
            raise KdstepsError(
                f"{file}: the {split} images have a class {name!r} that the training images do not "
                "have; every split needs the same class folders (leave a split out by naming the "
                "others)"
            )
    return tuple(sorted(known))
