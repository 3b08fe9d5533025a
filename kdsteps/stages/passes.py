"""Time forward passes of a checkpoint, for forecasts; no job of a study runs this.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
        model      student.safetensors or teacher.safetensors
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from kdsteps.data.prepared import Prepared
from kdsteps.jobs.job import Job
from kdsteps.models import Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.models.precision import autocast
from kdsteps.stages._shared import prepared, share_cores, trained_model
from kdsteps.teachers.frozen import frozen
from kdsteps.training.device import choose_device

_TIMES, _SECONDS = 5, 0.5  # passes that are timed; fewer once they took this long


def forward_seconds(
    job: Job[Any], batch_size: int, *, fold: bool = False, precision: str = "float32"
) -> float:
    """Seconds of a forward pass over a batch.

    Args:
        batch_size: Images of the batch; those of the job's images are repeated.
        fold: Whether the network runs as a frozen teacher does.
        precision: Of the passes.
    """
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu, precision)
    data = prepared(job, device)
    network = trained_model(job.inputs["model"], data).to(device)
    if fold:
        network = frozen(network, data.image_shape)
    share_cores(network, data, batch_size)
    return _timed(network, data, batch_size, precision)


@torch.inference_mode()
def _timed(network: Chain, data: Prepared, batch_size: int, precision: str) -> float:
    split = data.part("train")
    batch = next(split.in_order(min(batch_size, len(split)))).images
    images = batch[torch.arange(batch_size, device=batch.device) % len(batch)]
    images = images.contiguous(memory_format=batch_format(network))
    took: list[float] = []
    for _ in range(1 + _TIMES):
        started = time.perf_counter()
        with autocast(precision, images.device.type):
            network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        took.append(time.perf_counter() - started)
        if sum(took) > _SECONDS and len(took) > 1:
            break
    return median(took[1:])  # the first pass is a warm-up
