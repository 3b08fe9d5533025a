"""What images and networks cost: computation, and memory besides the libraries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.jobs.known import network_outlines
from kdsteps.jobs.outputs import outputs
from kdsteps.study.image_size import ImageShape, declared_shape
from kdsteps.study.study import Study
from kdsteps.study.training_settings import AugmentationSettings, Training

PIXEL_SECONDS = 2e-8  # of one core, to augment one number of an image
ROW_BYTES = 1000  # label, hash and name of an image
RESIDENT_MB = 8192  # images of more are not in memory as a whole (see `data.prepared`)
WORKERS_MB = 4000  # processes that make batches, for larger images or augmentation one by one
MB = 1 << 20

# of a data set that is not prepared and of which params.yaml does not say it
UNKNOWN_IMAGES, UNKNOWN_CLASSES = 200_000, 1000
UNKNOWN_SHAPE: ImageShape = (3, 64, 64)


@dataclass(frozen=True)
class Need:
    """What a job computes, and what it holds in memory besides the libraries."""

    multiply_adds: float = 0
    steps: float = 0
    core_seconds: float = 0
    megabytes: float = 0

    def __add__(self, other: Need) -> Need:
        return Need(
            self.multiply_adds + other.multiply_adds,
            self.steps + other.steps,
            self.core_seconds + other.core_seconds,
            self.megabytes + other.megabytes,
        )

    def augmented(self, recipe: AugmentationSettings) -> Need:
        """The same with images that are augmented as `recipe` says."""
        if not recipe.per_image:
            return self
        more = self.megabytes + WORKERS_MB
        return replace(self, core_seconds=10 * self.core_seconds, megabytes=more)


class Data(NamedTuple):
    """A data set: images of all splits, those for training, shapes (C, H, W), and classes."""

    number: int
    train: int
    shape: ImageShape  # as networks see them
    stored: ImageShape
    classes: int

    @property
    def in_memory(self) -> Need:
        """The images while a job uses them, with labels, hashes and names."""
        images = self.number * prod(self.stored) / MB
        workers = WORKERS_MB if images > RESIDENT_MB / 2 else 0
        rows = self.number * ROW_BYTES / MB
        return Need(megabytes=2 * min(images, RESIDENT_MB) + workers + rows)


class Network(NamedTuple):
    """What a network costs; activations and multiply-adds are those of one image.

    The defaults are for a network that is not known: more than a ResNet-152 on 224 x 224 pixels.
    """

    parameters: int = 100_000_000
    multiply_adds: int = 20_000_000_000
    activations: int = 100_000_000
    stages: int = 4

    def passes(self, images: float, data: Data, batch: int) -> Need:
        """Forward passes over images; few activations are in memory at the same time."""
        return Need(
            multiply_adds=images * self.multiply_adds,
            steps=images / batch,
            core_seconds=images * prod(data.shape) * PIXEL_SECONDS,
            megabytes=4 * (2 * self.parameters + self.activations * batch / 8) / MB,
        )

    def training(self, data: Data, recipe: Training) -> Need:
        """A training run: passes, and backward passes, which cost twice as much.

        In memory are weights, gradients, the moments of the optimizer and a state that is being
        saved, and activations with their gradients.
        """
        images = recipe.epochs * data.number  # validation included
        each = self.passes(images, data, recipe.batch_size)
        numbers = 8 * self.parameters + 2 * self.activations * recipe.batch_size
        return Need(
            multiply_adds=3 * each.multiply_adds,
            steps=each.steps,
            core_seconds=each.core_seconds,
            megabytes=4 * numbers / MB,
        ).augmented(recipe)


def data_of(study: Study, dataset: str) -> Data:
    """A data set as it was prepared, or as far as params.yaml says it."""
    try:
        found = read_json(summary_path(dataset))
        images, shape = found["images"], found["image_shape"]
        stored = tuple(found.get("stored_shape") or shape)
        number = sum(images.values())
        return Data(number, images["train"], tuple(shape), stored, len(found["class_names"]))
    except (KdstepsError, KeyError, TypeError, AttributeError):
        shape = declared_shape(study.datasets[dataset]) or UNKNOWN_SHAPE
        return Data(UNKNOWN_IMAGES, UNKNOWN_IMAGES, shape, shape, UNKNOWN_CLASSES)


@lru_cache(maxsize=64)
def networks(study: Study, dataset: str, shape: ImageShape) -> dict[str, Network]:
    """The networks of a data set, by model."""
    outlines = network_outlines(study, [dataset], {dataset: shape})
    return {
        model: Network()
        if found is None or not found.parameters
        else Network(*(found.parameters, found.multiply_adds, found.activations, len(found.stages)))
        for (_, model), found in outlines.items()
    }


def summary_path(dataset: str) -> str:
    """Where the summary of a prepared data set is."""
    return outputs("prepare", {"dataset": dataset})["summary"]
