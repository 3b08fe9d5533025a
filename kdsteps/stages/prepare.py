"""Read a dataset once, check everything, and store it as one array.

Writes
  images   images.npy, (N, C, H, W) uint8: every image that could be read, all of one size
  index    index.parquet, one row an image: label, part, where it came from, hash of the pixels
  summary  summary.json: class names, images of each part and class, shape, mean and standard
           deviation of each channel of the training part (scale 0 to 1), duplicates, what could
           not be read
  digest   digest.json: the digests of the other files

Reads nothing of other stages. The same source and settings give the same bytes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from kdsteps.data.checks import check_classes, check_source
from kdsteps.data.source import PARTS, Source
from kdsteps.data.splitting import complete_split, duplicates
from kdsteps.data.storing import Survey, decoded
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import array_rows
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import write_table
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.study import registry
from kdsteps.study.settings import Prepare

log = logging.getLogger("kdsteps")

_EXAMPLES = 10  # pairs of duplicates named in the summary


def run(job: Job[PrepareSettings]) -> None:
    """Prepare one dataset."""
    section = job.settings.prepare
    source = _load(job.settings.kind, job.settings.options)
    check_source(source)
    log.info("%d images in %d classes", len(source.labels), len(source.class_names))
    survey = Survey()
    with array_rows(job.outputs["images"]) as images:
        for piece in decoded(source, survey, broken=section.broken, threads=job.threads):
            images.add(piece)
        index = _index(source, survey, section)
        summary = _summary(source, survey, index, images.shape)
        write_table(job.outputs["index"], index, INDEX, settings=job.settings.as_json())
        write_json(job.outputs["summary"], summary | {"settings": job.settings.as_json()})
    _say(summary)


def _load(kind: str, options: dict[str, Any]) -> Source:
    source: Source = registry.load("data", kind)(**options)
    return source


def _index(source: Source, survey: Survey, section: Prepare) -> dict[str, Any]:
    """The columns of the index: one row for each image that was kept."""
    labels, given = source.labels[survey.kept], source.split[survey.kept]
    check_classes(labels, np.where(given == "", "train", given), source.class_names)
    parts = complete_split(
        given,
        labels,
        survey.hashes,
        source.class_names,
        validation=section.validation,
        test=section.test,
        seed=section.seed,
    )
    return {
        "image": np.arange(len(labels)),
        "label": labels,
        "split": parts,
        "source": [source.names[number] for number in survey.kept],
        "hash": survey.hashes,
    }


def _summary(
    source: Source, survey: Survey, index: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    labels, parts, names = index["label"], index["split"], index["source"]
    _, channels, height, width = shape
    mean, std = survey.mean_and_std(np.flatnonzero(parts == "train"), height * width)
    if min(std) == 0:
        raise KdstepsError(
            f"channel {std.index(0)} has the same value in every pixel of the training images; "
            "leave it out (`channels: 1` makes grey images)"
        )
    counts = {
        part: np.bincount(labels[parts == part], minlength=len(source.class_names)).tolist()
        for part in PARTS
    }
    sizes = sorted(survey.sizes.items(), key=lambda item: (-item[1], item[0]))
    return {
        "class_names": list(source.class_names),
        "image_shape": [channels, height, width],
        "mean": mean,
        "std": std,
        "images": {part: sum(counts[part]) for part in PARTS},
        "images_of_class": counts,
        "duplicates": _described(duplicates(survey.hashes, parts), labels, names),
        "broken": survey.broken,
        "sizes": {
            "different": len(sizes),
            "most_frequent": [
                {"height": size[0], "width": size[1], "images": count}
                for size, count in sizes[:_EXAMPLES]
            ],
        },
        "modes": dict(sorted(survey.modes.items())),
    }


def _described(
    found: dict[tuple[str, str], list[tuple[int, int]]], labels: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    """One entry for each two parts that have images in common."""
    return [
        {
            "parts": list(parts),
            "images": len(pairs),
            "of_other_class": sum(bool(labels[one] != labels[other]) for one, other in pairs),
            "examples": [[names[one], names[other]] for one, other in pairs[:_EXAMPLES]],
        }
        for parts, pairs in sorted(found.items())
    ]


def _say(summary: dict[str, Any]) -> None:
    """The findings that somebody should know of before they train."""
    images = ", ".join(f"{count} {part}" for part, count in summary["images"].items())
    log.info("%s images of %s (channels, height, width)", images, tuple(summary["image_shape"]))
    for entry in summary["duplicates"]:
        one, other = entry["parts"]
        where = f"in {one}" if one == other else f"in {one} and again in {other}"
        log.info("%d images stand twice %s, pixel for pixel", entry["images"], where)
    if summary["broken"]:
        log.info("%d images cannot be read and were left out", len(summary["broken"]))
    for part, counts in summary["images_of_class"].items():
        empty = [name for name, n in zip(summary["class_names"], counts, strict=True) if n == 0]
        if empty and summary["images"][part]:
            log.warning("%d classes have no %s images, %s among them", len(empty), part, empty[0])
    train = summary["images_of_class"]["train"]
    if max(train) > 10 * min(train):
        log.warning(
            "classes are far from balanced: %d to %d training images", min(train), max(train)
        )
