"""What every kind of data hands over: images with labels, before they are checked and split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Source:
    """Labelled images in memory, all of one size.

    Attributes:
        images: (N, C, H, W), uint8.
        labels: (N,), whole numbers from 0.
        class_names: K names, by class number.
        split: (N,) "train", "validation" or "test" for each image, "" where the source does not say.
        names: (N,) where each image came from, for messages and for looking it up.
        broken: What could not be read and was left out, a sentence each.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: np.ndarray
    names: tuple[str, ...]
    broken: tuple[str, ...] = field(default=())
