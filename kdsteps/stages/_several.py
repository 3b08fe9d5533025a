"""Train one student that learns from the combined logits of several teachers.

It is apart from `_student`, so that students of one teacher do not depend on its code and are not
trained again when it changes.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from hashlib import blake2b

import torch

from kdsteps.data.images import ImageSplit, Views
from kdsteps.data.prepared import Prepared
from kdsteps.jobs import code_identity
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import DistilSettings
from kdsteps.models.memory_format import batch_format
from kdsteps.stages._headers import entry_of
from kdsteps.stages._shared import (
    check_batch,
    fresh_model,
    prepared,
    resume_file,
    save_model,
    trained_model,
    validator,
    write_history,
)
from kdsteps.stages._student import deployed_entry, make_method
from kdsteps.stages._teacher_outputs import FOLDER, outputs_key, outputs_of
from kdsteps.study import registry
from kdsteps.study.settings import ViewSettings
from kdsteps.teachers.combined_cache import CombinedTeachers, combined_outputs
from kdsteps.teachers.combining import Combining
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.device import choose_device
from kdsteps.training.loop import Fit
from kdsteps.training.processes import Processes, in_processes

log = logging.getLogger("kdsteps")


def run(job: Job[DistilSettings]) -> None:
    """Train a student by one method and save its last epoch, as `_student.run` does."""
    teachers = {_name(number): path for number, path in enumerate(job.lists["teachers"])}
    in_processes(_distil, replace(job, inputs={**job.inputs, **teachers}), job.settings.distil)


def _name(number: int) -> str:
    """The name of a teacher's checkpoint among the inputs of its job."""
    return f"teacher {number}"


def _distil(job: Job[DistilSettings], processes: Processes) -> None:
    settings, recipe = job.settings, job.settings.distil
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu, recipe.precision)
    data = prepared(job, device)
    torch.manual_seed(settings.seed)
    student = fresh_model(settings.student, data)
    data = replace(data, memory_format=batch_format(student))
    split = data.part("train", stream=recipe.per_image)
    check_batch(recipe, len(split), "distil")
    method = make_method(job, None, student, data, split).to(device)
    families = [entry_of(path)["family"] for path in job.lists["teachers"]]
    roots = [registry.target("models", name) for name in (settings.student.family, *families)]
    fit = Fit(
        method,
        split,
        recipe,
        seed=settings.seed,
        validate=validator(method.deployed(), data.part("validation")),
        teacher=_outputs(job, data, split),
        resume=resume_file(
            *(job, f"{__name__}:run", registry.target("methods", settings.method)), *roots
        ),
        processes=processes,
    )
    fit.run()
    if not processes.first:
        return
    if fit.diverged is not None:
        log.warning("diverged: %s; the report shows the run as diverged", fit.diverged)
    entry = deployed_entry(job, method, data)
    deployed = method.deployed().plain()
    save_model(job.outputs["model"], deployed, entry, data, settings, fit.diverged)
    write_history(job.outputs["history"], fit, settings, device)
    fit.forget()


def _outputs(job: Job[DistilSettings], data: Prepared, split: ImageSplit) -> TeacherOutputs:
    """The combined logits of all teachers for a batch, from a file if that saves time."""
    settings, recipe = job.settings, job.settings.distil
    assert settings.combination is not None, "there are several teachers"
    networks = [
        frozen(trained_model(path, data).to(data.device), data.image_shape)
        for path in job.lists["teachers"]
    ]
    lives = [LiveTeacher(each, recipe.batch_size, precision=recipe.precision) for each in networks]
    how = Combining(settings.combination.combine, settings.combination.space)
    views = recipe.views
    if views is None:
        return CombinedTeachers(lives, how)
    return combined_outputs(
        FOLDER / f"{_key(job, data, split, views, how)}.npy",
        *(lives, how, split, Views(views.crop_padding, views.flip)),
        members=lambda: [
            outputs_of(job, _name(number), each, data, split, views, passes=recipe.epochs)
            for number, each in enumerate(networks)
        ],
        keep=job.keep,
    )


def _key(
    job: Job[DistilSettings],
    data: Prepared,
    split: ImageSplit,
    views: ViewSettings,
    how: Combining,
) -> str:
    """A digest of everything that combined logits depend on; the name of their file."""
    members = [outputs_key(job, _name(n), data, views) for n in range(len(job.lists["teachers"]))]
    labels = split.labels.tolist() if how.combine == "confidence" else []
    code = code_identity.digest(("kdsteps.teachers.combining:combined_logits",))
    known = json.dumps([members, how._asdict(), labels, code], sort_keys=True)
    return blake2b(known.encode(), digest_size=16).hexdigest()
