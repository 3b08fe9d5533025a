"""Train one teacher on one dataset, with labels alone; with 0 epochs, take it as it is.

reads   data       images.npy, index.parquet, summary.json of the stage prepare
writes  model      teacher.safetensors: the weights of the last epoch, named as in the plain network
        history    history.parquet: every loss and validation measure of every epoch; of none, the
                   validation measures alone, as epoch 0
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from kdsteps.jobs.job import Job
from kdsteps.methods.base import Task
from kdsteps.methods.labels import Labels
from kdsteps.models.memory_format import batch_format
from kdsteps.stages._shared import (
    fresh_model,
    prepared,
    resume_file,
    save_model,
    share_cores,
    validator,
    write_history,
)
from kdsteps.training.device import choose_device
from kdsteps.training.loop import Fit, Recipe

log = logging.getLogger("kdsteps")


def run(job: Job) -> None:
    """Train a network by cross-entropy and keep its last epoch."""
    settings = dict(job.settings["train"])
    seed = settings.pop("seed")
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    torch.manual_seed(seed)
    recipe = Recipe(**settings)
    network = fresh_model(job.settings["model"], data, will_train=recipe.epochs > 0).to(device)
    data = replace(data, memory_format=batch_format(network))
    share_cores(network, data, recipe.batch_size)
    part = data.part("train", stream=recipe.streams)
    task = Task(data.image_shape, len(data.class_names), part.labels)
    fit = Fit(
        Labels(None, network, task),
        part,
        recipe,
        seed=seed,
        validate=validator(network, data.part("validation")),
        resume=resume_file(
            job, __name__, f"kdsteps.models.families.{job.settings['model']['family']}"
        ),
    )
    fit.run()
    if not recipe.epochs:
        fit.history.add(0, fit.validate())
    save_model(job.outputs["model"], network.plain(), job.settings["model"], data, job.settings)
    write_history(job.outputs["history"], fit, job.settings, device)
    fit.forget()
