"""Distil one student: one pair, one method, one seed.

reads   data       images.npy, index.parquet, summary.json of the stage prepare
        teacher    teacher.safetensors, for methods that want a teacher
        plan       plan.json of the stage build, for methods that want one
writes  model      student.safetensors: what is deployed, after the last epoch; nothing of the method
        history    history.parquet: every named loss and validation measure of every epoch
"""

from __future__ import annotations

import inspect
import logging
from importlib import import_module
from typing import Any

import torch

from kdsteps.artifacts import read_json
from kdsteps.data._prepared import Prepared
from kdsteps.device import choose_device
from kdsteps.methods._method import Method, Task
from kdsteps.models import Chain
from kdsteps.stages._job import Job
from kdsteps.stages._shared import (
    entry_of,
    fresh_model,
    prepared,
    resume_file,
    save_model,
    trained_model,
    validator,
    write_history,
)
from kdsteps.training import Fit, Recipe

log = logging.getLogger("kdsteps")


def run(job: Job) -> None:
    """Train a student by one method and keep its last epoch."""
    settings = job.settings
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    teacher = trained_model(job.inputs["teacher"], data).to(device) if "teacher" in job.inputs else None
    torch.manual_seed(settings["seed"])
    student = fresh_model(settings["student"], data)
    method = _method(job, teacher, student, data).to(device)
    fit = Fit(
        method,
        data.part("train"),
        Recipe(**settings["distil"]),
        seed=settings["seed"],
        validate=validator(method.deployed(), data.part("validation")),
        resume=resume_file(settings, job.inputs, job.checkpoint_minutes),
    )
    fit.run()
    taught_by = entry_of(job.inputs["teacher"]) if teacher is not None else None
    entry = method.deployed_entry(settings["student"], taught_by)
    save_model(job.outputs["model"], method.deployed().plain(), entry, data, settings)
    write_history(job.outputs["history"], fit, settings, device)


def _method(job: Job, teacher: Chain | None, student: Chain, data: Prepared) -> Method:
    plan = read_json(job.inputs["plan"]) if "plan" in job.inputs else None
    labels = data.part("train").labels
    batch_size = job.settings["distil"]["batch_size"]
    task = Task(data.image_shape, len(data.class_names), labels, plan, batch_size)
    return method_class(job.settings["method"])(teacher, student, task, **job.settings["options"])


def method_class(name: str) -> Any:
    """The method in the module of that name: its class that says what it wants of the teacher."""
    module = import_module(f"kdsteps.methods.{name}")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} holds {len(found)} methods instead of one"
    return found[0]
