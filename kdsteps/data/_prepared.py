"""A prepared dataset as the stages read it: checked against itself, its parts ready for training."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsteps.artifacts import INDEX, read_array, read_json, read_table
from kdsteps.data._images import ImagePart
from kdsteps.data._source import PARTS
from kdsteps.data._stream import StreamedPart
from kdsteps.errors import KdstepsError

RESIDENT_BYTES = 8 * 2**30  # a part up to this size lives on the device as uint8
_SUMMARY_KEYS = ("class_names", "image_shape", "mean", "std")


@dataclass(frozen=True)
class Prepared:
    """What the stage `prepare` wrote.

    Attributes:
        class_names: K names, by class number.
        image_shape: (C, H, W).
        mean, std: (C,) of the training part, on the scale 0 to 1.
        images: (N, C, H, W) uint8 of all parts, mapped from the disk.
        labels: (N,) of all parts.
        split: (N,) the part of each image.
        device: Where parts are used.
        memory_format: Of the batches that parts give.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rows(self, part: str) -> np.ndarray:
        """Rows of `images` that belong to "train", "validation" or "test", in order."""
        if part not in PARTS:
            raise ValueError(f"there is no part {part!r}")
        return np.flatnonzero(self.split == part)

    def part(self, name: str, *, stream: bool = False) -> ImagePart:
        """The images of one part; number i in it is image `rows(name)[i]`.

        Args:
            name: "train", "validation" or "test".
            stream: Whether worker processes make the batches even where the part fits on the
                device: for `Distortion.changes_pixels`, which works on one image after the other.
        """
        rows = self.rows(name)
        labels = torch.from_numpy(self.labels[rows]).to(self.device)
        if stream or len(rows) * math.prod(self.image_shape) > RESIDENT_BYTES:
            return StreamedPart(
                self.images,
                rows,
                labels,
                self.mean,
                self.std,
                workers=_workers(self.device),
                memory_format=self.memory_format,
            )
        images = torch.from_numpy(self.images[rows]).to(self.device)
        return ImagePart(images, labels, self.mean, self.std, memory_format=self.memory_format)


def load_prepared(
    images: str | Path,
    index: str | Path,
    summary: str | Path,
    device: torch.device,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Prepared:
    """The dataset in the three files that `prepare` wrote.

    Raises:
        KdstepsError: A file is missing or damaged, lacks something, or does not fit the others.
    """
    described, pixels = read_json(summary), read_array(images)
    for key in _SUMMARY_KEYS:
        if key not in described:
            raise KdstepsError(f"{summary}: has no {key!r}; make it again with `kdsteps prepare`")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise KdstepsError(
            f"{images}: holds {pixels.dtype} of shape {pixels.shape}; images are uint8 of "
            "(images, channels, height, width); make it again with `kdsteps prepare`"
        )
    table = read_table(index, INDEX)
    labels = table["label"].to_numpy().astype(np.int64)
    split = np.asarray(table["split"].to_pylist(), dtype="<U10")
    _check_fit(images, index, summary, pixels, labels, split, described)
    channels, height, width = described["image_shape"]
    return Prepared(
        class_names=tuple(described["class_names"]),
        image_shape=(channels, height, width),
        mean=torch.tensor(described["mean"], dtype=torch.float32),
        std=torch.tensor(described["std"], dtype=torch.float32),
        images=pixels,
        labels=labels,
        split=split,
        device=device,
        memory_format=memory_format,
    )


def _workers(device: torch.device) -> int:
    """Processes that read ahead of a GPU; a CPU has its cores full with training."""
    return min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0


def _check_fit(
    images: str | Path,
    index: str | Path,
    summary: str | Path,
    pixels: np.ndarray,
    labels: np.ndarray,
    split: np.ndarray,
    described: dict[str, Any],
) -> None:
    again = "make them again with `kdsteps prepare`"
    if len(labels) != len(pixels):
        raise KdstepsError(
            f"{index}: has {len(labels)} rows for {len(pixels)} images in {images}; {again}"
        )
    if list(pixels.shape[1:]) != described["image_shape"]:
        raise KdstepsError(
            f"{images}: has images of {list(pixels.shape[1:])}, {summary} says "
            f"{described['image_shape']}; {again}"
        )
    num_classes = len(described["class_names"])
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise KdstepsError(
            f"{index}: row {wrong[0]} has the label {labels[wrong[0]]}; with {num_classes} classes "
            f"labels go from 0 to {num_classes - 1}; {again}"
        )
    unknown = sorted(set(np.unique(split)) - set(PARTS))
    if unknown:
        raise KdstepsError(
            f"{index}: speaks of a part {unknown[0]!r}; there are {', '.join(PARTS)}; {again}"
        )
    counts = np.bincount(labels[split == "train"], minlength=num_classes)
    if not counts.all():
        name = described["class_names"][int(counts.argmin())]
        raise KdstepsError(f"{index}: class {name!r} has no training images; {again}")
