"""The images of a study as far as a rehearsal needs them: how many there are, and a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdsteps.data.checks import check_classes, check_source
from kdsteps.data.hashes import pixel_hash
from kdsteps.data.sampling import Sample, sample_of, sample_rows
from kdsteps.data.source import SPLITS
from kdsteps.data.splitting import complete_split
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import read_array, write_array
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs import graph
from kdsteps.stages.prepare import load_source
from kdsteps.study.settings import Dataset, Prepare

SAMPLE = 300  # images that are read; more where there are more classes


@dataclass(frozen=True)
class Images:
    """A data set.

    Attributes:
        counts: Images of each split; until they are prepared, as if no image had a copy.
        class_names: K names; none for images without labels, unless known.
        shape: (C, h, w) that networks see.
        sample: Some of the images, as they are stored.
        prepared: Whether the stage `prepare` has stored them.
        labeled: Whether they have labels.
    """

    counts: Mapping[str, int]
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    sample: Sample
    prepared: bool
    labeled: bool = True

    @property
    def number(self) -> int:
        return sum(self.counts.values())

    @property
    def bytes(self) -> int:
        """Of all images as they are stored."""
        return self.number * int(np.prod(self.sample.pixels.shape[1:]))

    def write(self, folder: Path, counts: Mapping[str, int]) -> dict[str, Path]:
        """Write images as the stage `prepare` does, those of the sample repeated as needed.

        Args:
            counts: Images of each split; more for training if there are more classes.

        Returns:
            The files by their names as inputs of a job.
        """
        counts = {**counts, "train": max(counts["train"], len(self.class_names))}
        split = np.repeat(np.array(SPLITS), [counts[name] for name in SPLITS])
        rows = np.arange(len(split)) % len(self.sample.labels)
        labels = self.sample.labels[rows]
        classes = len(self.class_names)
        train = counts["train"]
        each = min(2, train // max(1, classes))  # images that every class needs for training
        if self.labeled and np.bincount(labels[:train], minlength=classes).min() < each:
            labels[: each * classes] = np.tile(np.arange(classes), each)
        hashes = np.array([pixel_hash(image) for image in self.sample.pixels])
        _, height, width = self.sample.pixels.shape[1:]
        scaled = self.sample.pixels / 255
        files = {
            "images": folder / "images.npy",
            "index": folder / "index.parquet",
            "summary": folder / "summary.json",
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_array(files["images"], self.sample.pixels[rows])
        table = {
            "image": np.arange(len(split)),
            "label": labels,
            "split": split,
            "source": [self.sample.names[row] for row in rows],
            "hash": hashes[rows].tolist(),
        }
        write_table(files["index"], table, INDEX, settings={})
        summary = {
            "class_names": list(self.class_names),
            "image_shape": list(self.shape),
            "stored_shape": [self.shape[0], height, width],
            "mean": scaled.mean(axis=(0, 2, 3)).tolist(),
            "std": scaled.std(axis=(0, 2, 3)).clip(min=1e-3).tolist(),
            "images": counts,
        }
        summary |= {} if self.labeled else {"labels": "none"}
        write_json(files["summary"], summary)
        return files


def look_at_prepared(dataset: str) -> Images:
    """A data set that the stage `prepare` has stored."""
    files = graph.outputs("prepare", {"dataset": dataset})
    found, pixels = read_json(files["summary"]), read_array(files["images"])
    table = read_table(files["index"], INDEX)
    labels, names = table["label"].to_numpy(), table["source"].to_pylist()
    rows = sample_rows(labels, SAMPLE)
    chosen = tuple(names[row] for row in rows)
    sample = Sample(np.array(pixels[rows]), labels[rows].astype(np.int64), chosen, (), 0.0)
    shape = tuple(found["image_shape"])
    labeled = found.get("labels") != "none"
    return Images(found["images"], tuple(found["class_names"]), shape, sample, True, labeled)


def look_at_source(entry: Dataset, section: Prepare, threads: int) -> Images:
    """A data set as its files are, with a sample of its images.

    Raises:
        KdstepsError: It has no images or none that a study can use, or too few of a class.
    """
    labeled = entry.labels is None
    source = load_source(entry)
    check_source(source, labeled=labeled)
    class_names = source.class_names if labeled else ()
    given = np.where(source.split == "", "train", source.split)
    check_classes(source.labels, given, class_names)
    split = complete_split(
        source.split,
        source.labels,
        [str(row) for row in range(len(source.labels))],  # as if no image had a copy
        class_names,
        validation=section.validation,
        test=section.test,
        seed=section.seed,
    )
    sample = sample_of(source, SAMPLE, threads)
    channels, height, width = sample.pixels.shape[1:]
    size = source.image_size or (height, width)
    if size[0] > height or size[1] > width:
        raise KdstepsError(
            f"image_size is {size[0]} x {size[1]}, images are stored with {height} x {width}; set "
            "`store` to that or more"
        )
    counts = {name: int(np.sum(split == name)) for name in SPLITS}
    return Images(counts, source.class_names, (channels, *size), sample, False, labeled)
