"""Keep what a teacher gives: its features for the scores, and its answers for training.

reads   data       images.npy, index.parquet, summary.json of the stage prepare
        model      teacher.safetensors
writes  features   features.parquet: a row group a layer, a row an image; float16 (D,) of each of a
                   class-balanced sample of the training images, unaugmented
or, by --views,
writes  ticket     outputs_<views>.json: the key and shape (N, V, K) of the teacher's logits for
                   every view of every training image, the same whether they were kept or not.
                   They are kept where that pays, float16, in .kdsteps/outputs/<key>.npy, which
                   changes no result and may be deleted at any time.
"""

from __future__ import annotations

import logging

from kdsteps.data.images import Views
from kdsteps.errors import KdstepsError
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.stages._shared import prepared, trained_model
from kdsteps.stages._teaching import answers_key, ask
from kdsteps.teachers.features import balanced_sample, forecast_bytes, write_features
from kdsteps.teachers.frozen import frozen
from kdsteps.training.device import choose_device

log = logging.getLogger("kdsteps")


def run(job: Job) -> None:
    """Write the features of every layer, or the ticket of a teacher's answers."""
    if "ticket" in job.outputs:
        _keep_answers(job)
    else:
        _keep_features(job)


def _keep_features(job: Job) -> None:
    """Write the features of every layer, if they stay within the budget."""
    settings = job.settings["cache"]
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    teacher = trained_model(job.inputs["model"], data).to(device)
    part = data.part("train")
    index = balanced_sample(part.labels.cpu(), settings["images"], settings["seed"])
    size = forecast_bytes(feature_shapes(teacher, data.image_shape), len(index)) / 2**20
    log.info(
        "features of %d images at %d layers: %.0f MiB before compression, budget %d MiB",
        *(len(index), len(teacher.layers), size, job.budget_mib),
    )
    if size > job.budget_mib:
        fitting = int(len(index) * job.budget_mib / size)
        raise KdstepsError(
            f"cache: {len(index)} images need {size / 1024:.2f} GiB and cache.budget_gib is "
            f"{job.budget_mib / 1024:g}; raise it, or set cache.images to {fitting}"
        )
    write_features(job.outputs["features"], teacher, part, index, job.settings)


def _keep_answers(job: Job) -> None:
    """Keep the teacher's logits where that pays, and say in the ticket which they are."""
    recipe = job.settings["views"]
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    teacher = frozen(trained_model(job.inputs["model"], data).to(device), data.image_shape)
    part = data.part("train")
    ask(job, "model", teacher, data, part, recipe, passes=job.passes)
    count = Views(recipe["crop_padding"], recipe["flip"]).count
    ticket = {
        "key": answers_key(job, "model", data, recipe),
        "shape": [len(part), count, data.num_classes],
        "dtype": "float16",
        "settings": job.settings,
    }
    write_json(job.outputs["ticket"], ticket)
