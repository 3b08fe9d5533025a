"""Keep the features of a teacher at every layer, for the scores.

reads   data       images.npy, index.parquet, summary.json of the stage prepare
        model      teacher.safetensors
writes  features   features.parquet: a row group a layer, a row an image; float16 (D,) of each of a
                   class-balanced sample of the training images, unaugmented
"""

from __future__ import annotations

import logging

from kdsteps.device import choose_device
from kdsteps.errors import KdstepsError
from kdsteps.features import balanced_sample, forecast_bytes, write_features
from kdsteps.models._adapters import places
from kdsteps.stages._job import Job
from kdsteps.stages._shared import prepared, trained_model

log = logging.getLogger("kdsteps")


def run(job: Job) -> None:
    """Write the features of every layer, if they stay within the budget."""
    settings = job.settings["cache"]
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    teacher = trained_model(job.inputs["model"], data).to(device)
    part = data.part("train")
    index = balanced_sample(part.labels.cpu(), settings["images"], settings["seed"])
    size = forecast_bytes(places(teacher, data.image_shape), len(index)) / 2**30
    log.info(
        "features of %d images at %d layers: %.2f GiB before compression, budget %g GiB",
        *(len(index), len(teacher.layers), size, settings["budget_gib"]),
    )
    if size > settings["budget_gib"]:
        fitting = int(len(index) * settings["budget_gib"] / size)
        raise KdstepsError(
            f"cache: {len(index)} images need {size:.2f} GiB and cache.budget_gib is "
            f"{settings['budget_gib']:g}; raise it, or set cache.images to {fitting}"
        )
    write_features(job.outputs["features"], teacher, part, index, job.settings)
