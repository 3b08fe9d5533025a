"""The files of a data set, and one digest that changes when any of them does.

Without torch, pandas and NumPy, because planning uses it. Published data sets (`digits`,
`torchvision`) are identified by their names, so none of their files is read here.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.home import expanded
from kdsteps.files.input_digests import (
    combined,
    content_hashes,
    dvc_hash,
    file_digest,
    files_below,
    folder_digest,
    list_digest,
)
from kdsteps.files.walk import is_debris

_PUBLISHED = ("digits", "torchvision")
_SPLITS = ("train", "validation", "test")


def source_digest(kind: str, options: Mapping[str, Any]) -> str:
    """A digest of the images that a data set reads: of their names and contents.

    It depends on nothing else, so it is the same on every machine that has the same images, and
    with `.dvc` files that track them, even on one that does not have them.

    Args:
        kind: Of data.
        options: Of that kind, defaults included.

    Returns:
        A string without spaces; "" if the images are missing and no `.dvc` file tracks them.

    Raises:
        KdstepsError: A file or folder cannot be read, or a link leads out of a folder.
    """
    if kind in _PUBLISHED:
        return kind
    if kind == "table":
        return _table_digest(expanded(options["path"]), options.get("image", "path"))
    follow = bool(options.get("follow_links", kind != "folder"))
    digests = [
        folder_digest(path, follow_links=follow) if _is_folder(path) else file_digest(path)
        for path in _paths(kind, options)
    ]
    return combined(digests) if digests and all(digests) else ""


def source_state(kind: str, options: Mapping[str, Any]) -> str:
    """Names, sizes and times of the files of a data set: whether it changed on this machine."""
    if kind in _PUBLISHED:
        return kind
    paths = list(_paths(kind, options))
    files = [str(path) for path in paths if path.is_file()]
    follow = bool(options.get("follow_links", kind != "folder"))
    for path in paths:
        if path.is_dir():
            files += files_below(path, follow_links=follow).values()
    if kind == "table":
        files += _listed(paths[0], options.get("image", "path")).values() if files else []
    states = [(file, os.stat(file)) for file in files if os.path.isfile(file)]
    return repr([(name, found.st_size, found.st_mtime_ns) for name, found in states])


def missing_images(kind: str, options: Mapping[str, Any]) -> str | None:
    """What is missing of the images that a data set reads, and what would be right; or None.

    What a `.dvc` file tracks is not missing, since DVC can fetch it.

    Args:
        kind: Of data; one that ships with kdsteps.
        options: Of that kind, defaults included.
    """
    if kind == "torchvision":
        root = options["root"]
        if options["download"] or expanded(root).is_dir():
            return None
        return (
            f"there is no folder {root!r}; set root to the folder that has the files of "
            f"{options['name']}, or `download: true`"
        )
    if kind == "digits":
        return None
    for path in _paths(kind, options):
        if is_missing(path):
            return (
                f"there is no file or folder {str(path)!r}; correct the path, or put the images "
                "there"
            )
    if kind == "table":
        table = expanded(options["path"])
        listed = _listed(table, options["image"]) if table.is_file() else {}
        if listed and all(is_missing(Path(file)) for file in listed.values()):
            return (
                f"none of the images in {table} exist, such as {next(iter(listed.values()))!r}; "
                "correct the paths, or put the images there"
            )
    return None


def is_missing(path: Path) -> bool:
    """Whether a file or folder does not exist, and no `.dvc` file tracks it."""
    return not path.exists() and dvc_hash(path) is None


def source_paths(kind: str, options: Mapping[str, Any]) -> list[Path]:
    """The files and folders that have to be watched for changes of a data set's images.

    The images of a list are represented by their folders, a pattern by the folder that it is in.
    Nothing has to exist.
    """
    if kind in _PUBLISHED:
        return []
    if kind == "parquet":
        given = (expanded(text) for split in _SPLITS for text in texts_in(options.get(split)))
        return [path for pattern in given for path in _without_pattern(pattern)]
    paths = list(_paths(kind, options))
    if kind == "table" and paths[0].is_file():
        paths += _folders(_listed(paths[0], options.get("image", "path")).values())
    return paths


def _folders(files: Iterable[str]) -> list[Path]:
    """The folder that has all files below it; their own ones if it has the current one as well."""
    folders = sorted({os.path.relpath(os.path.dirname(file) or ".") for file in files})
    together = os.path.commonpath(folders) if folders else ""
    return [Path(together)] if together.strip("./") else [Path(folder) for folder in folders]


def _without_pattern(pattern: Path) -> list[Path]:
    """A path without wildcards; the folder before the first wildcard, or the matching files."""
    plain = Path(*takewhile(lambda part: not set("*?[") & set(part), pattern.parts))
    return [plain] if plain != Path() else _matching(pattern)


def _paths(kind: str, options: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders that the options of a data set name."""
    if kind == "parquet":
        for split in _SPLITS:
            for pattern in texts_in(options.get(split)):
                yield from _matching(expanded(pattern))
        return
    roots = [expanded(text) for text in texts_in(options.get("path"))]
    yield from roots
    if kind == "table":
        return
    if kind == "folder":  # lists of images may be outside of the folder
        for text in (text for split in _SPLITS for text in texts_in(options.get(split))):
            path = expanded(text)
            if path.is_absolute() and not any(path.is_relative_to(root) for root in roots):
                yield path
        return
    for name, value in options.items():  # of a user's kind of data: whatever exists
        for text in texts_in(value):
            if name != "path" and os.path.exists(path := expanded(text)):
                yield path


def texts_in(value: Any) -> Iterator[str]:
    """The texts of an option: itself, or those in a list or dict."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or (dvc_hash(path) or "").endswith(".dir")


def _matching(pattern: Path) -> list[Path]:
    """The files of a pattern, those among them that only a `.dvc` file knows; or a folder."""
    if pattern.is_dir() or dvc_hash(pattern) is not None:
        return [pattern]
    there = set(glob(str(pattern))) | {name[:-4] for name in glob(f"{pattern}.dvc")}
    found = sorted(Path(name) for name in there if not is_debris(Path(name).name))
    return found or [pattern]


def _table_digest(table: Path, column: str) -> str:
    """The digest of a list and of the images that it names."""
    own = file_digest(table)
    if not own or not table.is_file():
        return ""
    listed = _listed(table, column)
    folders = {
        folder: dvc_hash(Path(folder)) for folder in set(map(os.path.dirname, listed.values()))
    }
    untracked = {
        name: file for name, file in listed.items() if folders[os.path.dirname(file)] is None
    }
    hashes = content_hashes(untracked, table.with_name(f"{table.name} images"))
    if untracked and not any(hashes.values()):
        return ""
    tracked = sorted({found for found in folders.values() if found is not None})
    return combined([own, *tracked, list_digest(hashes)])


def _listed(table: Path, column: str) -> dict[str, str]:
    """The paths of the images in a list, as written there."""
    try:
        if table.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            check_column(table, "image", column, pq.read_schema(table).names)
            names = pq.read_table(table, columns=[column])[column].to_pylist()
        else:
            with table.open(encoding="utf-8-sig", newline="") as lines:
                first = lines.readline()
                lines.seek(0)
                rows = csv.DictReader(lines, delimiter=max("\t,;", key=first.count))
                check_column(table, "image", column, rows.fieldnames or ())
                names = [row[column] for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        remedy = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "write it again"
        raise KdstepsError(
            f"{table}: cannot be read as a list of images ({reason}); {remedy}"
        ) from error
    return {name: str(table.parent / expanded(name)) for name in names if name}


def check_column(table: Path, option: str, column: str, columns: Sequence[str]) -> None:
    """Raise KdstepsError if a table lacks the column that an option of a data set names."""
    if column not in columns:
        raise KdstepsError(
            f"{table}: has no column {column!r} for the option `{option}`{nearest(column, columns)}"
        )
