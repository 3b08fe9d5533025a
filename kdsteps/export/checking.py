"""Evaluate exported files on the test images, and refuse those that compute something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdsteps.data.prepared import Prepared
from kdsteps.data.views import Views
from kdsteps.export.onnx_files import relative_difference
from kdsteps.export.record import FILES, ExportedFile, Format, FormatError
from kdsteps.export.runners import Predict, Runner, images_per_second, latency_ms
from kdsteps.files.digests import file_digest

TOLERANCE = 1e-4  # of float32 logits, relative to the largest one: rounding, and little more
POINT = 0.01  # of accuracy, that an int8 file may lose without a note


@dataclass(frozen=True)
class Checks:
    """The test images, what the student makes of them, and how files are timed.

    Attributes:
        data: The data set.
        labels: (N,) of the test images.
        predicted: (N,) classes that the stage evaluate predicted.
        expected: (N, K) logits of the student in torch on this CPU.
        runs: Single images that are timed.
        batch_size: Images of a batch.
        threads: Cores that compute batches.
    """

    data: Prepared
    labels: np.ndarray
    predicted: np.ndarray
    expected: np.ndarray
    runs: int
    batch_size: int
    threads: int

    def file(self, format: Format, path: Path, runner: Runner) -> ExportedFile:
        """The entry of a file that was written, evaluated on all test images and timed.

        Raises:
            FormatError: Its logits are not finite, or not those of the student; int8 may differ.
        """
        predict = runner.on(self.threads)
        logits = logits_of_test(predict, self.data, self.batch_size)
        if not np.isfinite(logits).all():
            raise FormatError("its logits contain NaN or infinity for some test images")
        difference = relative_difference(logits, self.expected)
        if format != "int8" and difference > TOLERANCE:
            raise FormatError(
                f"its logits differ from those of torch by up to {difference:.1e} of the largest "
                f"logit on the test images; up to {TOLERANCE:.0e} is accepted"
            )
        classes = logits.argmax(axis=1)
        some = pixels(self.data, self.data.rows("test")[: self.batch_size])
        batch = np.resize(some, (self.batch_size, *some.shape[1:]))  # repeated if there are fewer
        throughput = images_per_second(predict, batch)
        return ExportedFile(
            format=format,
            name=FILES[format],
            bytes=path.stat().st_size,
            digest=file_digest(path),
            accuracy=float((classes == self.labels).mean()),
            agreement=float((classes == self.predicted).mean()),
            max_difference=difference,
            latency_ms=latency_ms(runner.on(1), batch[:1], self.runs),
            images_per_second=throughput,
            batch_size=self.batch_size,
            threads=self.threads,
            runtime=runner.runtime,
        )


def pixels(data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Images as networks see them before normalization: uint8 (N, H, W, C).

    Args:
        rows: (N,) of `data.images`.

    Raises:
        KdstepsError: An image is damaged.
    """
    stored = data.images[rows]
    if (damaged := data.hashes.damaged(stored, rows)) is not None:
        raise data.hashes.refuse(damaged)
    plain = torch.zeros(len(rows), dtype=torch.int64)
    size = data.image_shape[1], data.image_shape[2]
    shown = Views().show(torch.from_numpy(stored), plain, size=size)
    return np.ascontiguousarray(shown.permute(0, 2, 3, 1).numpy())


def logits_of_test(predict: Predict, data: Prepared, batch_size: int) -> np.ndarray:
    """Logits (N, K) of all test images."""
    return np.concatenate([predict(images) for images in _batches(data, batch_size)])


def _batches(data: Prepared, batch_size: int) -> Iterator[np.ndarray]:
    rows = data.rows("test")
    for start in range(0, len(rows), batch_size):
        yield pixels(data, rows[start : start + batch_size])


def with_notes(int8: ExportedFile, float32: ExportedFile) -> ExportedFile:
    """The entry of an int8 file, with notes on where it is worse than the file in float32."""
    assert int8.accuracy is not None and float32.accuracy is not None
    assert int8.latency_ms is not None and float32.latency_ms is not None
    notes = []
    if (lost := float32.accuracy - int8.accuracy) > POINT:
        notes.append(f"It loses {100 * lost:.1f} points of test accuracy against float32.")
    if int8.latency_ms > float32.latency_ms:
        notes.append(
            f"It is slower than float32 on this CPU: {int8.latency_ms:.2f} ms for one image "
            f"instead of {float32.latency_ms:.2f} ms."
        )
    return replace(int8, notes=tuple(notes))
