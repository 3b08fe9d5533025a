"""What the networks of a pair predict for each test image, for the gallery and the classes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdsteps.errors import KdstepsError
from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import open_table, whole_parquet
from kdsteps.report.results import Results
from kdsteps.report.tables import PairTable

_ROWS = 8192  # of logits in memory at a time


@dataclass(frozen=True)
class Predicted:
    """The predictions of one network.

    Attributes:
        classes: (N,) the most probable class of each test image.
        confidence: (N,) its probability; None where it was not read.
    """

    classes: np.ndarray
    confidence: np.ndarray | None


@dataclass(frozen=True)
class PairPredictions:
    """The predictions of all networks of a pair.

    Attributes:
        images: (N,) rows of images.npy.
        labels: (N,) the right classes.
        num_classes: K.
        teacher: None where no method has one, or where its classes are others.
        students: {method: {seed: Predicted}}, without runs that diverged.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    teacher: Predicted | None
    students: dict[str, dict[int, Predicted]]


def pair_predictions(
    results: Results, table: PairTable, confident: Collection[str]
) -> PairPredictions | None:
    """Read the predictions of a pair; None if no run finished, or test images have no labels.

    Args:
        confident: Methods whose confidence is read, and with it their logits. It is always read
            of the teacher.

    Raises:
        KdstepsError: A file is damaged.
    """
    num_classes = len(results.data[table.dataset]["class_names"])
    images = labels = None
    students: dict[str, dict[int, Predicted]] = {}
    for row in table.rows:
        for seed in sorted(row.values):
            path = results.predictions.get((table.pair, row.method, seed))
            if path is None:
                continue
            rows, right, found = _read(path, num_classes, confidence=row.method in confident)
            if images is None:
                images, labels = rows, right
            if found is not None and np.array_equal(rows, images):
                students.setdefault(row.method, {})[seed] = found
    if images is None or labels is None or not students or labels.min() < 0:
        return None
    teacher = None
    if table.teacher is not None and table.teacher["predictions"]:
        rows, _, found = _read(table.teacher["predictions"], num_classes, confidence=True)
        teacher = found if np.array_equal(rows, images) else None
    return PairPredictions(images, labels, num_classes, teacher, students)


def _read(
    path: str | Path, num_classes: int, *, confidence: bool
) -> tuple[np.ndarray, np.ndarray, Predicted | None]:
    """Images, labels and predictions; no predictions if there is a class of another data set."""
    file = open_table(path, PREDICTIONS)
    with whole_parquet(path):
        table = file.read(columns=["image", "label", "predicted"])
        images, labels, classes = (table[name].to_numpy() for name in table.column_names)
        top = [
            _confidence(batch.column(0), path)
            for batch in (file.iter_batches(_ROWS, columns=["logits"]) if confidence else ())
        ]
    if len(classes) and classes.max() >= num_classes:
        return images, labels, None
    return images, labels, Predicted(classes, np.concatenate(top) if top else None)


def _confidence(logits: pa.ListArray, path: str | Path) -> np.ndarray:
    """Highest probability of each image, (n,), from its logits (n, K)."""
    numbers = logits.flatten().to_numpy(zero_copy_only=False)
    if not len(logits) or len(numbers) % len(logits):
        raise KdstepsError(
            f"{path}: the images have different numbers of logits; evaluate the network again"
        )
    rows = numbers.reshape(len(logits), -1)  # (n, K)
    highest: np.ndarray = 1 / np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)
    return highest
