"""Networks in 8-bit integers: onnxruntime's static quantization, calibrated on training images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsteps.export.description import INPUT, Description
from kdsteps.export.onnx_files import finish, first_line
from kdsteps.export.record import FormatError, check_space

if TYPE_CHECKING:
    from onnx import ModelProto

NUM_CALIBRATION = 100  # training images that show the range of each activation
_BATCH = 10
_WITH_WEIGHTS = ("Gemm", "MatMul", "Conv")


def calibration_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of the training images to calibrate on: evenly spaced, so that all classes are seen."""
    count = min(NUM_CALIBRATION, len(rows))
    chosen: np.ndarray = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    return chosen


def quantized(model: ModelProto, images: np.ndarray, description: Description) -> ModelProto:
    """A model with 8-bit weights and activations; the last layer stays in float32.

    Weights are signed, with one scale per output channel; activations are unsigned, since signed
    ones are several times slower on common CPUs, and have the range that they have on `images`. In
    8 bits, the last layer would cut logits off at the largest one of these images.

    Args:
        model: In float32.
        images: Training images, uint8 (N, H, W, C).
        description: Goes into the file.

    Raises:
        FormatError: onnxruntime cannot quantize the network.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    with TemporaryDirectory() as folder, _quiet():
        prepared, target = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            try:
                quant_pre_process(model, prepared)
            except Exception:  # symbolic shapes are not inferred for every network, nor needed
                quant_pre_process(model, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_last_layer(onnx.load(prepared)),
            )
        except Exception as error:  # the tools raise anything for what they do not support
            check_space(error)
            raise FormatError(
                f"onnxruntime cannot quantize this network ({first_line(error)})"
            ) from error
        return finish(onnx.load(target), description)


def _last_layer(model: ModelProto) -> list[str]:
    """The name of the last node with weights."""
    names = [node.name for node in model.graph.node if node.op_type in _WITH_WEIGHTS]
    return names[-1:]


class _Reader:
    """Training images as onnxruntime reads them (`CalibrationDataReader`)."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(np.split(images, range(_BATCH, len(images), _BATCH)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice, which goes to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
