"""Run exported files, with onnxruntime or torch, on images as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Protocol

import numpy as np
import torch
from torch import nn

from kdsteps.evaluation.speed import time_batches, time_images
from kdsteps.export import onnx_files
from kdsteps.export.session import open_session

Predict = Callable[[np.ndarray], np.ndarray]
"""From uint8 images (N, H, W, C) to logits (N, K)."""


class Runner(Protocol):
    """An exported network.

    Attributes:
        runtime: Name and version of what runs it.
    """

    runtime: str

    def on(self, threads: int) -> Predict:
        """A function that predicts on a number of CPU cores."""


class OnnxRunner:
    """An ONNX file, by its content."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.runtime = f"onnxruntime {version('onnxruntime')}"

    def on(self, threads: int) -> Predict:
        return partial(onnx_files.run, open_session(self._content, threads))


class TorchRunner:
    """A module that takes uint8 images (N, H, W, C)."""

    def __init__(self, network: nn.Module, library: str = "torch") -> None:
        self._network = network.eval()
        self.runtime = f"{library} {version(library)}"

    def on(self, threads: int) -> Predict:
        torch.set_num_threads(threads)
        return self._predict

    @torch.inference_mode()
    def _predict(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._network(torch.from_numpy(images)).float().numpy()
        return logits


def latency_ms(predict: Predict, image: np.ndarray, runs: int) -> float:
    """Median time of one image, (1, H, W, C), in milliseconds."""
    return float(np.median(time_images(partial(predict, image), runs)))


def images_per_second(predict: Predict, images: np.ndarray) -> float:
    """Throughput in batches of these images, (N, H, W, C)."""
    return 1000 * len(images) / float(np.median(time_batches(partial(predict, images))))
