"""Train one teacher on one dataset, with labels alone.

reads   data       images.npy, index.parquet, summary.json of the stage prepare
writes  model      teacher.safetensors: the weights of the last epoch, as the plain network has them
        history    history.parquet: every loss and validation measure of every epoch
"""

from __future__ import annotations

import logging

import torch

from kdsteps.device import choose_device
from kdsteps.methods._method import Task
from kdsteps.methods.labels import Labels
from kdsteps.stages._job import Job
from kdsteps.stages._shared import fresh_model, prepared, resume_file, save_model, validator, write_history
from kdsteps.training import Fit, Recipe

log = logging.getLogger("kdsteps")


def run(job: Job) -> None:
    """Train a network by cross-entropy and keep its last epoch."""
    settings = dict(job.settings["train"])
    seed = settings.pop("seed")
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    torch.manual_seed(seed)
    network = fresh_model(job.settings["model"], data).to(device)
    part = data.part("train")
    task = Task(data.image_shape, len(data.class_names), part.labels)
    fit = Fit(
        Labels(None, network, task),
        part,
        Recipe(**settings),
        seed=seed,
        validate=validator(network, data.part("validation")),
        resume=resume_file(job.settings, job.inputs, job.checkpoint_minutes),
    )
    fit.run()
    save_model(job.outputs["model"], network.plain(), job.settings["model"], data, job.settings)
    write_history(job.outputs["history"], fit, job.settings, device)
