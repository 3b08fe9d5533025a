"""Read a data set once, check everything, and store it as one array.

Writes
  images   images.npy, (N, C, H, W) uint8: every image that could be read, all of one size
  index    index.parquet, one row per image: label (-1 if the data set has none), split, origin,
           hash of the pixels
  summary  summary.json: class names, number of images per split and class, which splits are
           random, shapes, mean and standard deviation of each channel of the training images
           (scale 0 to 1), duplicates, images that could not be read
  digest   digest.json: the digests of the other files

Reads nothing from other stages. The same source and settings produce the same bytes, even if the
job was interrupted and resumed; images that are already stored are not decoded again.
"""

from __future__ import annotations

import logging
from hashlib import blake2b
from typing import Any

import numpy as np

from kdsteps.data.checks import check_classes, check_returned, check_source, doubt_of_bits
from kdsteps.data.image_store import image_store
from kdsteps.data.source import SPLITS, UNKNOWN, Source, without_labels
from kdsteps.data.splitting import complete_split, duplicates
from kdsteps.data.storing import Survey, decoded
from kdsteps.errors import KdstepsError
from kdsteps.files.columns import INDEX
from kdsteps.files.manifest import source_state
from kdsteps.files.tables import write_table
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.jobs.words import plural
from kdsteps.study import registry
from kdsteps.study.part_options import signature_of
from kdsteps.study.settings import Dataset, Prepare

log = logging.getLogger("kdsteps")

_EXAMPLES = 10  # pairs of duplicates named in the summary


def run(job: Job[PrepareSettings]) -> None:
    """Prepare one data set."""
    section = job.settings.prepare
    labeled = job.settings.labels is None
    source = load_source(job.settings)
    check_source(source, labeled=labeled)
    classes = f"in {len(source.class_names)} classes" if labeled else "without labels"
    log.info("%d images %s", len(source.labels), classes)
    with image_store(
        job.outputs["images"], _key(job, source), len(source.labels), job.target
    ) as store:
        survey = store.survey
        for images in decoded(source, survey, broken=section.broken, threads=job.threads):
            store.add(images)
        index = _index(source, survey, section, labeled=labeled)
        summary = _summary(source, survey, index, store.shape)
        summary |= {} if labeled else {"labels": "none"}
        store.finish()
        write_table(job.outputs["index"], index, INDEX, settings=job.settings.as_json())
        write_json(job.outputs["summary"], summary | {"settings": job.settings.as_json()})
    _log_findings(summary)


def load_source(settings: Dataset) -> Source:
    """The images of a data set; labels that a kind reads in any case are dropped if not wanted."""
    load = registry.load("data", settings.kind)
    if settings.labels is None:
        return check_returned(load(**settings.options), settings.kind)
    optional = "labeled" in signature_of("data", load).parameters
    found = load(**settings.options, **({"labeled": False} if optional else {}))
    return without_labels(check_returned(found, settings.kind), settings.classes or ())


def _key(job: Job[PrepareSettings], source: Source) -> str:
    """Everything the stored images depend on, for a run that resumes after a kill."""
    kind, options = job.settings.kind, job.settings.options
    content = (
        job.settings.as_text(),
        source_state(kind, options),
        source.names,
        source.labels.tolist(),
        job.code.digest((f"{__name__}:run", registry.target("data", kind))),
    )
    return blake2b(repr(content).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _index(source: Source, survey: Survey, section: Prepare, *, labeled: bool) -> dict[str, Any]:
    """The columns of the index: one row for each image that was stored."""
    class_names = source.class_names if labeled else ()
    labels, given = source.labels[survey.stored], source.split[survey.stored]
    check_classes(labels, np.where(given == "", "train", given), class_names)
    split = complete_split(
        given,
        labels,
        survey.hashes,
        class_names,
        validation=section.validation,
        test=section.test,
        seed=section.seed,
    )
    names = [source.names[number] for number in survey.stored]
    return {
        "image": np.arange(len(labels)),
        "label": labels,
        "split": split,
        "source": [_printable(name) for name in names],
        "hash": survey.hashes,
    }


def _printable(name: str) -> str:
    """A file name as UTF-8, which not every name is."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _summary(
    source: Source, survey: Survey, index: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    labels, split, names = index["label"], index["split"], index["source"]
    _, channels, height, width = shape
    mean, std = survey.mean_and_std(np.flatnonzero(split == "train"), height * width)
    if min(std) == 0:
        raise KdstepsError(
            f"channel {std.index(0)} has the same value in every pixel of the training images; "
            "leave it out (`channels: 1` makes gray images)"
        )
    images = {name: int((split == name).sum()) for name in SPLITS}
    known = labels != UNKNOWN
    num_classes = len(source.class_names) if known.any() else 0
    counts = {
        name: np.bincount(labels[(split == name) & known], minlength=num_classes).tolist()
        for name in SPLITS
    }
    sizes = sorted(survey.sizes.items(), key=lambda item: (-item[1], item[0]))
    return {
        "class_names": list(source.class_names),
        "image_shape": [channels, *_image_size(source, height, width)],
        "stored_shape": [channels, height, width],
        "mean": mean,
        "std": std,
        "images": images,
        "drawn": [name for name in SPLITS[1:] if images[name] and name not in source.split],
        "images_of_class": counts,
        "duplicates": _described(duplicates(survey.hashes, split), labels, names),
        "broken": [_printable(sentence) for sentence in survey.broken],
        "sizes": {
            "different": len(sizes),
            "most_frequent": [
                {"height": size[0], "width": size[1], "images": count}
                for size, count in sizes[:_EXAMPLES]
            ],
        },
        "modes": dict(sorted(survey.modes.items())),
    }


def _image_size(source: Source, height: int, width: int) -> tuple[int, int]:
    """Height and width that networks see, of images that are stored with `height` and `width`."""
    wanted = source.image_size or (height, width)
    if wanted[0] > height or wanted[1] > width:
        raise KdstepsError(
            f"datasets: image_size is {wanted[0]} x {wanted[1]}, images are stored with {height} x "
            f"{width}; set `store` to that or more"
        )
    return wanted


def _described(
    found: dict[tuple[str, str], list[tuple[int, int]]], labels: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    """One entry for each pair of splits that have images in common.

    Among the examples, images of different labels are first.
    """
    entries = []
    for splits, pairs in sorted(found.items()):
        alike = sorted(pairs, key=lambda pair: bool(labels[pair[0]] == labels[pair[1]]))
        entries.append(
            {
                "splits": list(splits),
                "images": len(pairs),
                "of_other_class": sum(bool(labels[one] != labels[other]) for one, other in pairs),
                "examples": [[names[one], names[other]] for one, other in alike[:_EXAMPLES]],
            }
        )
    return entries


def _log_findings(summary: dict[str, Any]) -> None:
    """Log what the user should know before training."""
    images = ", ".join(f"{count} {name}" for name, count in summary["images"].items())
    log.info("%s images of %s (channels, height, width)", images, tuple(summary["image_shape"]))
    for entry in summary["duplicates"]:
        one, other = entry["splits"]
        where = f"appear twice in {one}" if one == other else f"of {one} appear again in {other}"
        log.info("%d images %s, pixel for pixel", entry["images"], where)
        if differ := entry["of_other_class"]:
            examples = " and ".join(entry["examples"][0])
            log.warning("copies with another label: %d, such as %s", differ, examples)
    if (doubt := doubt_of_bits(summary["modes"], max(summary["mean"]))) is not None:
        log.warning("%s", doubt)
    if summary["broken"]:
        lost = plural(len(summary["broken"]), "image")
        log.warning("%s could not be read and had to be left out", lost)
    for name, counts in summary["images_of_class"].items():
        names = summary["class_names"] if counts else ()
        empty = [known for known, n in zip(names, counts, strict=True) if n == 0]
        if empty and summary["images"][name]:
            log.warning("%d classes have no %s images, such as %s", len(empty), name, empty[0])
    train = summary["images_of_class"]["train"]
    if train and max(train) > 10 * min(train):
        log.warning(
            "classes are not balanced: %d to %d training images per class", min(train), max(train)
        )
