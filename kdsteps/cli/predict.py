"""The command `predict`: classify images with an exported student, without torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsteps.cli.whole_numbers import positive
from kdsteps.errors import KdstepsError
from kdsteps.files.text import unprintable
from kdsteps.files.walk import Walk

if TYPE_CHECKING:
    from kdsteps.export.student import Prediction


def add_commands(commands: Any) -> None:
    """Add `predict` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "predict",
        help="classify images with an exported student",
        description="Classify images with an exported student. Prints a line per image: its path, "
        "the most probable class and its probability, separated by tabs in a file or a pipe. "
        "Images that cannot be read are reported, and the exit status is then 2. Needs "
        "onnxruntime, numpy and Pillow, but not torch.",
    )
    parser.add_argument("student", help="a folder of results/export, or an ONNX file in it")
    parser.add_argument(
        "images", nargs="+", metavar="image", help="image files, and folders with image files"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per image")
    parser.add_argument(
        "--top",
        type=positive,
        default=1,
        metavar="K",
        help="show the K most probable classes (%(default)s)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="use the int8 file of the folder, if it was exported"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="images computed at a time (%(default)s)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU cores (all)")
    parser.set_defaults(run=predict)


def predict(given: argparse.Namespace) -> None:
    """Print the most probable classes of each image.

    Raises:
        KdstepsError: The student cannot be used, or some images cannot be read.
    """
    try:
        from kdsteps.data.decoding import SUFFIXES
        from kdsteps.data.source import Broken
        from kdsteps.export.student import load_student
    except ModuleNotFoundError as error:
        raise KdstepsError(
            f"{error.name} is not installed; run `pip install onnxruntime numpy pillow`"
        ) from error
    student = load_student(given.student, int8=given.int8, threads=given.threads)
    inside = {argument: list(_files(argument, SUFFIXES)) for argument in given.images}
    paths = [path for argument in given.images for path in inside[argument]]
    endings = ", ".join(SUFFIXES)
    empty = [
        f"{argument}: has no images; files should end in {endings}"
        for argument, found in inside.items()
        if not found
    ]
    if not paths:
        raise KdstepsError(empty[0])
    for sentence in empty:
        print(sentence, file=sys.stderr)
    line = _line_of(given, paths, student.classes)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    unread = len(empty)
    found = student.logits_of(map(Path, paths), given.batch_size)
    for path, logits in zip(paths, found, strict=True):
        if isinstance(logits, Broken):
            unread += 1
            print(f"{shown(path)}: {logits.reason}", file=sys.stderr)
        else:
            print(line(path, student.prediction(logits, given.top)))
    if unread:
        number = len(paths) + len(empty)
        raise KdstepsError(f"{unread} of {number} images or folders could not be classified")


def shown(path: str) -> str:
    """A path in characters that a terminal can print: others are escaped."""
    return "".join(
        character if unprintable(character) is None else ascii(character)[1:-1]
        for character in path
    )


def _files(argument: str, endings: tuple[str, ...]) -> Iterator[str]:
    """The image file, or the image files of a folder, sorted and without links to each other."""
    if not os.path.isdir(argument):
        yield argument
        return
    root = Path(argument).resolve()  # which is not a link, as the argument may be
    (files,) = Walk(root, follow_links=True).files([root])
    images = [file for file in files if file.lower().endswith(endings)]
    yield from (os.path.join(argument, os.path.relpath(image, root)) for image in images)


def _line_of(
    given: argparse.Namespace, paths: list[str], classes: tuple[str, ...]
) -> Callable[[str, Prediction], str]:
    """What makes the line of an image: JSON, aligned for a terminal, or with tabs."""
    if given.json:
        return _json_line
    if not sys.stdout.isatty():
        return _tab_line
    path_width = max(map(_width, map(shown, paths)), default=0)
    return partial(_aligned_line, path_width, max(map(_width, classes)))


def _json_line(path: str, prediction: Prediction) -> str:
    top = [{"class": name, "probability": value} for name, value in prediction.top]
    return json.dumps({"image": path, **top[0], "top": top})


def _tab_line(path: str, prediction: Prediction) -> str:
    pairs = (text for name, value in prediction.top for text in (name, f"{value:.4f}"))
    return "\t".join([shown(path), *pairs])


def _aligned_line(path_width: int, class_width: int, path: str, prediction: Prediction) -> str:
    pairs = [f"{_padded(name, class_width)}  {value:.4f}" for name, value in prediction.top]
    return "  ".join([_padded(shown(path), path_width), *pairs])


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in ("W", "F") for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
