"""How fast a network is: single images on one core, and batches on all cores that they keep busy.

Only forward passes are timed. Measure with nothing else running on the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kdsteps.models.cost import multiply_adds
from kdsteps.models.evaluating import evaluating
from kdsteps.training.device import keep_busy

_MIN_PASSES, _MAX_PASSES = 3, 50  # of batches
_BATCH_WARMUP = 1
_BATCH_SECONDS = 1.0  # after which no further batch is timed


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of a network's forward passes.

    Attributes:
        image_ms: Of single images, milliseconds each.
        batch_ms: Of whole batches.
        batch_size: Images in a batch.
        threads: CPU threads that computed the batches.
    """

    image_ms: tuple[float, ...]
    batch_ms: tuple[float, ...]
    batch_size: int
    threads: int


def time_network(
    network: nn.Module, image_shape: tuple[int, int, int], *, runs: int, batch_size: int
) -> Timing:
    """Time a network on its device.

    On a CPU a single image is computed on one core: more would mostly wait for each other. A batch
    uses as many of the current threads as it keeps busy. The number of threads is restored.

    Args:
        network: Behind the step that resizes its images, if it has one, which is timed as well.
        image_shape: (C, H, W) of the data set's images.
        runs: Single images that are timed, after a warm-up.
        batch_size: Images in a batch.
    """
    device = next(network.parameters()).device
    image = torch.zeros(1, *image_shape, device=device)
    batch = torch.zeros(batch_size, *image_shape, device=device)
    threads = torch.get_num_threads()
    try:
        with evaluating(network), torch.inference_mode():
            torch.set_num_threads(1)
            image_ms = time_images(partial(_pass, network, image), runs)
            torch.set_num_threads(threads)
            if device.type == "cpu":
                keep_busy(batch_size * multiply_adds(network, image))
            batch_ms = time_batches(partial(_pass, network, batch))
            return Timing(image_ms, batch_ms, batch_size, torch.get_num_threads())
    finally:
        torch.set_num_threads(threads)


def latency_ms(timing: Timing) -> float:
    """Median time of a single image in milliseconds."""
    return float(np.median(timing.image_ms))


def latency_p90_ms(timing: Timing) -> float:
    """90th percentile of the time of a single image in milliseconds."""
    return float(np.percentile(timing.image_ms, 90))


def images_per_second(timing: Timing) -> float:
    """Throughput: the batch size over the median time of a batch."""
    return 1000 * timing.batch_size / float(np.median(timing.batch_ms))


def time_images(predict: Callable[[], object], runs: int) -> tuple[float, ...]:
    """Milliseconds of predictions for a single image, after a warm-up."""
    return _times(predict, warmup=_warmup(runs), runs=runs)


def time_batches(predict: Callable[[], object]) -> tuple[float, ...]:
    """Milliseconds of predictions for a batch, after a warm-up: fewer of them if they are slow."""
    return _times(predict, warmup=_BATCH_WARMUP, runs=_MAX_PASSES, seconds=_BATCH_SECONDS)


def num_image_passes(runs: int) -> int:
    """How often `time_images` predicts, warm-up included."""
    return runs + _warmup(runs)


def num_batch_passes(seconds: float) -> int:
    """How often `time_batches` predicts, warm-up included, if it takes `seconds` each time."""
    passes = max(_MIN_PASSES, math.ceil(_BATCH_SECONDS / seconds))
    return _BATCH_WARMUP + min(_MAX_PASSES, passes)


def _warmup(runs: int) -> int:
    """Passes over single images before those that are timed."""
    return max(3, runs // 10)


def _times(
    predict: Callable[[], object], *, warmup: int, runs: int, seconds: float = math.inf
) -> tuple[float, ...]:
    """Milliseconds of calls after a warm-up, at most `runs`, fewer once `seconds` pass."""
    took: list[float] = []
    for _ in range(warmup):
        predict()
    while len(took) < runs and (len(took) < _MIN_PASSES or sum(took) < 1000 * seconds):
        start = time.perf_counter()
        predict()
        took.append(1000 * (time.perf_counter() - start))
    return tuple(took)


def _pass(network: nn.Module, images: Tensor) -> None:
    """One forward pass, until it has ended."""
    network(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
