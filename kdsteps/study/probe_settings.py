"""The section `probe`: how the features of frozen networks are measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdsteps.study.section import MAX_BATCH, MAX_IMAGES, MAX_RUNS, EachOnce, Section, Seed
from kdsteps.study.texts import Name


class ProbeSettings(Section):
    """The keys of `probe` for its measurements."""

    images: Annotated[int, Field(gt=0, le=MAX_IMAGES)] = 20000
    """Largest number of training images whose labels are used, balanced over the classes."""
    neighbors: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 10
    """Number of nearest neighbors, by the cosine similarity of features."""
    fractions: EachOnce[
        Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    ] = (0.01, 0.1, 1.0)
    """Fractions of the labels with which linear classifiers are trained, with at least one image of
    each class."""
    draws: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 5
    """Random choices of the labeled images for each fraction below 1; accuracies are averaged."""
    seed: Seed = 0
    """Seed for choosing images."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 256
    """Images per batch for computing features."""


class Probe(ProbeSettings):
    """How the features of frozen backbones are measured, on a labeled data set."""

    dataset: Name
    """A name under `datasets`, with labels. Its training images are the references, its test images
    the queries."""
