"""What images are at a path, before a study of them exists: kind, number, classes and sizes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdsteps.data.decoding import GRAY_MODES, SUFFIXES
from kdsteps.data.encoded import EncodedImages
from kdsteps.data.kinds import folder, parquet, table
from kdsteps.data.source import Broken, Picture, Source
from kdsteps.data.split_names import SPELLINGS
from kdsteps.data.subset import matching, thinned
from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.files.walk import is_debris

_LOADERS: dict[str, Callable[..., Source]] = {
    "folder": folder.load,
    "parquet": parquet.load,
    "table": table.load,
}
_SAMPLE = 200  # images whose sizes are read
_SECONDS = 20.0  # after which no further one is read
_STORED = 32  # pixels that the sample is decoded to, so that large photos are read quickly
_LISTS = (".csv", ".tsv", ".tab", ".txt")
_IMAGES = ("path", "image", "image_path", "file", "filename", "file_name", "img")
_LABELS = ("label", "labels", "class", "class_name", "category", "species", "target", "fine_label")
_SPLITS = ("split", "fold", "subset", "set", "partition")


@dataclass(frozen=True)
class Overview:
    """The images at a path.

    Attributes:
        kind: The kind of data that reads them.
        options: Of that kind, those that differ from its defaults.
        counts: Images of each split; one entry "" where nothing says which split they belong to.
        class_counts: Training images by class (of all images, where there are no splits); empty
            where the images have no labels.
        sizes: Height and width of a sample.
        gray: Whether the sample is gray.
        broken: What is wrong with images of the sample that cannot be read, by name.
    """

    kind: str
    options: dict[str, Any]
    counts: dict[str, int]
    class_counts: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    gray: bool
    broken: dict[str, str]

    @property
    def labeled(self) -> bool:
        return bool(self.class_counts)

    @property
    def num_images(self) -> int:
        return sum(self.counts.values())


def look_at(path: str) -> Overview:
    """Find out what images a folder, a list or a Parquet file has.

    Every label is read, and the sizes of some images of every class.

    Args:
        path: A folder of class folders, of images without labels or of Parquet files, a CSV, TSV
            or Parquet list, or a Parquet file of images.

    Raises:
        KdstepsError: There are no images, or a list or Parquet file has no labels.
    """
    place = expanded(path)
    if not place.exists():
        raise KdstepsError(f"--images: {path!r} does not exist; name a folder or a list of images")
    kind, options = _kind(path, place)
    labeled = not _is_bare(place)
    source: Source = _LOADERS[kind](**options, store=_STORED, channels=3, labeled=labeled)
    labels, split = source.labels, source.split
    if not len(labels):
        raise KdstepsError(f"--images: {path}: lists no images; add one line for each image")
    counts = {str(name): int(np.sum(split == name)) for name in ("", *SPELLINGS) if name in split}
    train = labels[np.isin(split, ["", "train"])]
    numbers = np.bincount(train, minlength=len(source.class_names)).tolist()
    few = max(1, _SAMPLE // (len(source.class_names) * len(counts)))
    rows = thinned(labels, split, few)
    assert isinstance(source.images, EncodedImages), "only images in files are looked at"
    sample = source.images.subset(rows, _SECONDS)
    pictures = list(islice(sample.pictures(threads=2), 2 * _SAMPLE))
    found = [each for each in pictures if isinstance(each, Picture)]
    broken = {
        source.names[row]: each.reason
        for row, each in zip(rows, pictures, strict=False)
        if isinstance(each, Broken)
    }
    if not found:
        name, reason = next(iter(broken.items()))
        raise KdstepsError(
            f"--images: {path}: no image of a sample can be read, such as {name!r}, which {reason}"
        )
    return Overview(
        kind=kind,
        options=options,
        counts=counts,
        class_counts=dict(zip(source.class_names, numbers, strict=True)) if labeled else {},
        sizes=tuple(each.size for each in found),
        gray=all(each.mode in GRAY_MODES for each in found),
        broken=broken,
    )


def _kind(path: str, place: Path) -> tuple[str, dict[str, Any]]:
    """The kind of data that reads a path, and its options."""
    if place.is_file():
        if place.suffix.lower() == ".parquet":
            return _parquet(path, place, {"train": path})
        if place.suffix.lower() in _LISTS:
            try:
                with place.open(encoding="utf-8-sig", newline="") as lines:
                    first = lines.readline()
                    lines.read()
            except UnicodeDecodeError as error:
                raise KdstepsError(
                    f"--images: {path}: is not UTF-8; save it as UTF-8 (in Excel, `CSV UTF-8`)"
                ) from error
            if not first.strip():
                raise KdstepsError(
                    f"--images: {path}: is empty; its first line should name the columns, such as "
                    "`path,label`"
                )
            header = next(csv.reader([first], delimiter=max("\t,;", key=first.count)), [])
            return _table(path, header)
        raise KdstepsError(
            f"--images: {path!r} is a file that ends in {place.suffix!r}; name a folder, or a list "
            "that ends in .csv, .tsv or .parquet"
        )
    inside = [entry for entry in sorted(place.iterdir()) if not is_debris(entry.name)]
    files = [entry for entry in inside if entry.suffix.lower() == ".parquet"]
    files = files or sorted(place.glob("*/*.parquet"))
    if files:
        patterns = _by_split(path, place, files)
        sample = matching(patterns["train"], ".parquet", "--images")[0]
        return _parquet(path, sample, patterns)
    if any(entry.is_dir() for entry in inside):
        return "folder", {"path": path}
    lists = [entry for entry in inside if entry.suffix.lower() in _LISTS]
    if lists:
        raise KdstepsError(
            f"--images: {path!r} has no class folders, but the list {lists[0].name}; name that: "
            f"--images {Path(path, lists[0].name)}"
        )
    if _is_bare(place):
        return "folder", {"path": path}
    what = "has no images" if inside else "is empty"
    raise KdstepsError(f"--images: {path!r} {what}; put one folder of images per class there")


def _is_bare(place: Path) -> bool:
    """Whether a path is a folder of images without folders or a list that could name classes."""
    if not place.is_dir():
        return False
    inside = [entry for entry in place.iterdir() if not is_debris(entry.name)]
    suffixes = {entry.suffix.lower() for entry in inside}
    lists = suffixes.intersection((*_LISTS, ".parquet")) or any(map(Path.is_dir, inside))
    return not lists and bool(suffixes.intersection(SUFFIXES))


def _unlabeled(path: str, remedy: str) -> KdstepsError:
    return KdstepsError(
        f"--images: {path!r} has no labels, and students are trained and tested with them; "
        f"{remedy}, or write a study with `labels: none` (docs/without-labels.md)"
    )


def _table(path: str, columns: Sequence[str]) -> tuple[str, dict[str, Any]]:
    image, label = _among(_IMAGES, columns), _among(_LABELS, columns)
    if image is None:
        raise KdstepsError(
            f"--images: {path}: has the columns {', '.join(columns)}; call the one that has the "
            "paths of the images `path`"
        )
    if label is None:
        raise _unlabeled(path, f"add a column `label` (it has {', '.join(columns)})")
    named = {"image": image, "label": label, "split": _among(_SPLITS, columns)}
    defaults = {"image": "path", "label": "label", "split": None}
    return "table", {"path": path} | {
        option: name for option, name in named.items() if name != defaults[option]
    }


def _parquet(path: str, file: Path, files: dict[str, str]) -> tuple[str, dict[str, Any]]:
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise KdstepsError(f"{file}: is not a readable Parquet file; use a complete one") from error
    inside = [field.name for field in schema if not _is_plain(field.type)]
    if not inside:
        return _table(path, schema.names)
    image, label = _among(_IMAGES, inside) or inside[0], _among(_LABELS, schema.names)
    if label is None:
        raise _unlabeled(path, f"add a column `label` (it has {', '.join(schema.names)})")
    named = {"image": image, "label": label}
    return "parquet", files | {option: name for option, name in named.items() if option != name}


def _is_plain(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not (binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _by_split(path: str, root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Patterns of the files of each split; all of them are for training where names say nothing."""
    patterns: dict[str, str] = {}
    for file in files:
        word = re.split(r"[-_.]", file.name)[0]
        for split, spellings in SPELLINGS.items():
            if word.lower() in spellings:
                folder = file.parent.relative_to(root)
                patterns.setdefault(split, str(Path(path, folder, f"{word}*.parquet")))
    if "train" in patterns:
        return {split: patterns[split] for split in SPELLINGS if split in patterns}
    return {"train": str(Path(path, files[0].parent.relative_to(root)))}


def _among(wanted: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of the wanted names that is a column, in any case."""
    known = {name.lower(): name for name in columns}
    return next((known[name] for name in wanted if name in known), None)
