"""Cache a teacher's features for the scores, and its logits for training.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
        model      teacher.safetensors
        check      check.json of the stage train; its content is not used
writes  features   features.parquet: float16 features (D,) of a class-balanced sample of the
                   training images, unaugmented; one row group per layer, one row per image
        digest     digest.json: the digest of this file
or, with --views,
writes  ticket     outputs_<views>.json: the key and shape (N, V, K) of the teacher's logits for
                   every view or draw of every training image, whether cached or not. If it saves
                   time, they are cached as float16 in .kdsteps/outputs/<key>.npy. This file does
                   not affect any result and can be deleted at any time.
"""

from __future__ import annotations

import logging
from typing import Any

from kdsteps.data.draws import DrawnSplit
from kdsteps.data.images import ImageSplit
from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import FeatureSettings, LogitSettings
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.stages._shared import check_recipe, prepared, trained_model
from kdsteps.stages._teacher_outputs import outputs_key, outputs_of
from kdsteps.study.training_settings import DrawSettings, num_views
from kdsteps.teachers.features import balanced_sample, forecast_bytes, write_features
from kdsteps.teachers.frozen import frozen
from kdsteps.training.device import choose_device
from kdsteps.training.drawn import draws_of

log = logging.getLogger("kdsteps")


def run(job: Job[Any]) -> None:
    """Write the features of every layer, or the ticket of a teacher's logits."""
    if "ticket" in job.outputs:
        _cache_logits(job)
    else:
        _cache_features(job)


def _cache_features(job: Job[FeatureSettings]) -> None:
    """Write the features of every layer, if they fit the budget."""
    settings = job.settings.cache
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu)
    data = prepared(job, device)
    teacher = trained_model(job.inputs["model"], data).to(device)
    part = data.part("train")
    index = balanced_sample(part.labels.cpu(), settings.images, settings.seed)
    size = forecast_bytes(feature_shapes(teacher, data.image_shape), len(index)) / 2**20
    log.info(
        "features of %d images at %d layers: %.0f MiB before compression, budget %d MiB",
        *(len(index), len(teacher.layers), size, job.budget_mib),
    )
    if size > job.budget_mib:
        fitting = int(len(index) * job.budget_mib / size)
        raise KdstepsError(
            f"cache: {len(index)} images need {size / 1024:.2f} GiB, but cache.budget_gib is "
            f"{job.budget_mib / 1024:g}; raise it, or set cache.images to {fitting}"
        )
    write_features(job.outputs["features"], teacher, part, index, job.settings.as_json())


def _cache_logits(job: Job[LogitSettings]) -> None:
    """Cache the teacher's logits if that saves time, and identify them in the ticket."""
    views = job.settings.views
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu, views.precision)
    data = prepared(job, device)
    teacher = frozen(trained_model(job.inputs["model"], data).to(device), data.image_shape)
    part: ImageSplit
    if isinstance(views, DrawSettings):
        part = DrawnSplit(data.part("train", stream=views.per_image), draws_of(views))
    else:
        part = data.part("train")
    check_recipe(views, part, "distil")
    outputs_of(job, "model", teacher, data, part, views, passes=job.passes)
    ticket = {
        "key": outputs_key(job, "model", data, views),
        "shape": [len(part), num_views(views), data.num_classes],
        "dtype": "float16",
        "settings": job.settings.as_json(),
    }
    write_json(job.outputs["ticket"], ticket)
