"""A prepared data set, checked, with its splits ready for training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor

from kdsteps.data.device_memory import allowed_bytes
from kdsteps.data.hashes import Hashes
from kdsteps.data.images import ImageSplit
from kdsteps.data.source import SPLITS, UNKNOWN
from kdsteps.data.streaming import StreamedSplit
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import read_array
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json

RESIDENT_BYTES = 4 * 2**30  # a split up to this size, and a quarter of a GPU, is on the device
_AGAIN = "run `kdsteps prepare` again"


class _Summary(BaseModel):
    """The entries of summary.json that stages need; the others are for the report."""

    class_names: tuple[str, ...]
    labels: Literal["none"] | None = None
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    stored_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None  # as image_shape
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]


@dataclass(frozen=True)
class Prepared:
    """What the stage `prepare` wrote.

    Attributes:
        class_names: K names, by class number; none for images without labels, unless known.
        image_shape: (C, h, w) that networks see.
        mean, std: (C,) of the training images, on the scale 0 to 1.
        images: (N, C, H, W) uint8 of all splits, mapped from the disk.
        labels: (N,) of all splits; `UNKNOWN` for images without labels.
        split: (N,) the split of each image.
        hashes: Of all images, which are checked as they are read.
        device: Where images are used.
        memory_format: Of the batches.
        labeled: Whether the images have labels.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    hashes: Hashes
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format
    labeled: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rows(self, part: str) -> np.ndarray:
        """Rows of `images` that belong to "train", "validation" or "test", in order."""
        if part not in SPLITS:
            raise ValueError(f"there is no split {part!r}")
        return np.flatnonzero(self.split == part)

    def part(self, name: str, *, stream: bool = False) -> ImageSplit:
        """The images of one split; number i in it is image `rows(name)[i]`.

        Args:
            name: "train", "validation" or "test".
            stream: Whether worker processes make the batches even where the split fits on the
                device: for `Augmentation.changes_pixels`, which changes images one by one.

        Raises:
            KdstepsError: An image is damaged; of streamed images, this shows once they are read.
        """
        rows = self.rows(name)
        labels = torch.from_numpy(self.labels[rows]).to(self.device)
        size = self.image_shape[1], self.image_shape[2]
        if stream or len(rows) * math.prod(self.images.shape[1:]) > _room(self.device):
            return StreamedSplit(
                self.images,
                rows,
                labels,
                self.mean,
                self.std,
                hashes=self.hashes,
                size=size,
                workers=_workers(self.device),
                memory_format=self.memory_format,
            )
        pixels = self.images[rows]
        if (damaged := self.hashes.damaged(pixels, rows)) is not None:
            raise self.hashes.refuse(damaged)
        images = torch.from_numpy(pixels).to(self.device)
        return ImageSplit(
            images, labels, self.mean, self.std, size=size, memory_format=self.memory_format
        )


def load_prepared(
    images: str | Path,
    index: str | Path,
    summary: str | Path,
    device: torch.device,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Prepared:
    """The data set in the three files that `prepare` wrote.

    Raises:
        KdstepsError: A file is missing, damaged or incomplete, or does not match the others.
    """
    described, pixels = _read_summary(summary), read_array(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise KdstepsError(
            f"{images}: has {pixels.dtype} of shape {pixels.shape}; images are uint8 of "
            f"(images, channels, height, width); {_AGAIN}"
        )
    stored_shape = described.stored_shape or described.image_shape
    if pixels.shape[1:] != stored_shape:
        raise KdstepsError(
            f"{images}: has images of {pixels.shape[1:]}, {summary} says {stored_shape}; {_AGAIN}"
        )
    labeled = described.labels is None
    labels, split, hashes, names = _read_index(index, described.class_names if labeled else ())
    if len(labels) != len(pixels):
        raise KdstepsError(
            f"{index}: has {len(labels)} rows for {len(pixels)} images in {images}; {_AGAIN}"
        )
    return Prepared(
        class_names=described.class_names,
        image_shape=described.image_shape,
        mean=torch.tensor(described.mean),
        std=torch.tensor(described.std),
        images=pixels,
        labels=labels,
        split=split,
        hashes=Hashes(str(images), hashes, names),
        device=device,
        memory_format=memory_format,
        labeled=labeled,
    )


def _room(device: torch.device) -> int:
    """The largest size in bytes of a split that is stored on the device."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    return min(RESIDENT_BYTES, allowed_bytes(device) // 4)


def _workers(device: torch.device) -> int:
    """Number of worker processes that prefetch for a GPU; on a CPU, training needs all cores."""
    return min(8, torch.get_num_threads()) if device.type == "cuda" else 0


def _read_summary(path: str | Path) -> _Summary:
    try:
        described = _Summary.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key, problem = ".".join(map(str, first["loc"])), first["msg"]
        sentence = f"{path}: {key}: {problem[0].lower()}{problem[1:]}; {_AGAIN}"
        raise KdstepsError(sentence) from error
    channels = described.image_shape[0]
    if not len(described.mean) == len(described.std) == channels:
        raise KdstepsError(
            f"{path}: has {len(described.mean)} means and {len(described.std)} standard deviations "
            f"for {channels} channels; {_AGAIN}"
        )
    return described


def _read_index(
    path: str | Path, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Labels, splits, hashes and names of the images, (N,) each."""
    table = read_table(path, INDEX)
    labels = table["label"].to_numpy().astype(np.int64)
    split = np.asarray(table["split"].to_pylist(), dtype="<U10")
    known = (labels >= 0) & (labels < len(class_names))
    wrong = np.flatnonzero(~known if class_names else labels != UNKNOWN)
    if len(wrong):
        right = f"classes labels go from 0 to {len(class_names) - 1}"
        right = right if class_names else f"classes every label is {UNKNOWN}"
        raise KdstepsError(
            f"{path}: row {wrong[0]} has the label {labels[wrong[0]]}; with {len(class_names)} "
            f"{right}; {_AGAIN}"
        )
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise KdstepsError(
            f"{path}: has the split {unknown[0]!r}; there are {', '.join(SPLITS)}; {_AGAIN}"
        )
    counts = np.bincount(labels[(split == "train") & known], minlength=len(class_names))
    if not counts.all():
        name = class_names[int(counts.argmin())]
        raise KdstepsError(f"{path}: class {name!r} has no training images; {_AGAIN}")
    hashes = np.asarray(table["hash"].to_pylist(), dtype="S32")
    return labels, split, hashes, table["source"].to_pylist()
