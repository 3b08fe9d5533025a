"""Train one teacher on one data set with labels only; with 0 epochs, use it as it is.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
writes  model      teacher.safetensors: the weights of the last epoch, named as in the plain network
        history    history.parquet: every loss term and validation metric of every epoch; with 0
                   epochs, the validation metrics only, as epoch 0
        digest     digest.json: digests of the other files
or, to check a trained teacher,
reads   images, index, summary
                   as above
        model      teacher.safetensors
writes  check      check.json: validation accuracy against chance and `expected_accuracy`, class
                   order, calibration. A teacher that fails stops the study before any student
                   learns from it, unless `teacher_check` is `warn`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from kdsteps.data.images import Views
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.predictions import predict
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import CheckSettings, TrainSettings
from kdsteps.methods.base import Task
from kdsteps.methods.labels import Labels
from kdsteps.models import Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.stages._headers import entry_of
from kdsteps.stages._shared import (
    as_built,
    check_batch,
    fresh_model,
    prepared,
    resume_file,
    save_model,
    share_cores,
    trained_model,
    validator,
    write_history,
)
from kdsteps.study import registry
from kdsteps.teachers.checks import check_teacher, not_finite
from kdsteps.teachers.variants import input_variants
from kdsteps.training.device import choose_device
from kdsteps.training.loop import Fit

log = logging.getLogger("kdsteps")

COMPARED = 512  # validation images that a teacher from elsewhere also sees in other forms


def run(job: Job[Any]) -> None:
    """Train a teacher, or check a trained one."""
    if "check" in job.outputs:
        _check(job)
    else:
        _train(job)


def _train(job: Job[TrainSettings]) -> None:
    """Train a network by cross-entropy and save its last epoch.

    Raises:
        KdstepsError: The training diverged: no student can learn from this teacher.
    """
    entry, recipe = job.settings.model, job.settings.train
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    torch.manual_seed(recipe.seed)
    network = fresh_model(entry, data, will_train=recipe.epochs > 0).to(device)
    data = replace(data, memory_format=batch_format(network))
    share_cores(network, data, recipe.batch_size)
    split = data.part("train", stream=recipe.per_image)
    check_batch(recipe, len(split), "train")
    task = Task(data.image_shape, len(data.class_names), split.labels)
    fit = Fit(
        Labels(None, network, task),
        split,
        recipe,
        seed=recipe.seed,
        validate=validator(network, data.part("validation")),
        resume=resume_file(job, f"{__name__}:run", registry.target("models", entry.family)),
    )
    fit.run()
    if fit.diverged is not None:
        raise KdstepsError(
            f"the teacher diverged: {fit.diverged}; a lower learning_rate or clip_grad_norm in "
            "its section `train` may help"
        )
    if not recipe.epochs:
        fit.history.add(0, fit.validate())
    built = as_built(entry, network, data)
    save_model(job.outputs["model"], network.plain(), built, data, job.settings)
    write_history(job.outputs["history"], fit, job.settings, device)
    fit.forget()


def _check(job: Job[CheckSettings]) -> None:
    """Judge a teacher by its predictions for the validation images."""
    settings = job.settings
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    path = job.inputs["model"]
    network = trained_model(path, data).to(device)
    split = data.part("validation")
    if not len(split):
        log.warning("cannot check the teacher: there are no validation images")
        write_json(job.outputs["check"], {"settings": settings.as_json(), "accuracy": None})
        return
    if (broken := not_finite(network.plain().state_dict())) is not None:
        raise KdstepsError(f"{path}: the weight {broken!r} has NaN or infinity; train it again")
    logits, labels = predict(network, split.in_order(settings.batch_size))
    entry = entry_of(path)
    from_elsewhere = bool(entry["options"].get("checkpoint") or entry["options"].get("pretrained"))
    found = check_teacher(
        logits,
        labels,
        data.class_names,
        expected_accuracy=settings.expected_accuracy,
        variants=_shown_differently(network, data) if from_elsewhere else None,
    )
    if from_elsewhere:
        found = replace(found, warnings=(*found.warnings, *_assumptions(entry)))
    log.info("validation accuracy %s, chance %.1f %%", found.accuracy, 100 * found.chance)
    for warning in found.warnings:
        log.warning("the teacher %s: %s", path, warning)
    if found.problems and settings.on_failure == "stop":
        raise KdstepsError(
            f"{path}: {found.problems[0]}; or set `train: {{teacher_check: warn}}` to continue"
        )
    for problem in found.problems:
        log.warning("the teacher %s: %s", path, problem)
    write_json(job.outputs["check"], asdict(found) | {"settings": settings.as_json()})


def _shown_differently(network: Chain, data: Prepared) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and labels of some validation images, shown in other forms."""
    split = data.part("validation")
    number = torch.arange(min(len(split), COMPARED))
    batch = split.take(number, Views(), torch.zeros_like(number))
    shown = input_variants(network, data.mean.tolist(), data.std.tolist())
    with torch.inference_mode():
        return {what: (f(batch.images).cpu(), batch.labels.cpu()) for what, f in shown.items()}


def _assumptions(entry: Mapping[str, Any]) -> list[str]:
    """Assumptions about a network from elsewhere."""
    assumed = ["the images it was trained on are unknown; they may be among the test images"]
    if entry.get("normalize") is None:
        assumed.append(
            "images are normalized with the data set's mean and std, since `normalize` is not set"
        )
    return assumed
