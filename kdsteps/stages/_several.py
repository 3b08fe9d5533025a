"""Train one student that learns from the combined logits of several teachers."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b

from kdsteps.data.draws import DrawnSplit
from kdsteps.data.images import ImageSplit, Views
from kdsteps.data.prepared import Prepared
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import DistilSettings
from kdsteps.methods.base import Method
from kdsteps.stages import _student
from kdsteps.stages._headers import entry_of
from kdsteps.stages._shared import trained_model
from kdsteps.stages._teacher_outputs import FOLDER, outputs_key, outputs_of
from kdsteps.study import registry
from kdsteps.study.training_settings import ViewSettings
from kdsteps.teachers.combined_cache import CombinedTeachers, combined_outputs
from kdsteps.teachers.combining import Combining
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.processes import Processes, in_processes

_CODE = ("kdsteps.teachers.combining:combined_logits", "kdsteps.data.draws:targets_of")


def run(job: Job[DistilSettings]) -> None:
    """Train a student by one method and save its last epoch, as `_student.run` does."""
    teachers = {_name(number): path for number, path in enumerate(job.lists["teachers"])}
    in_processes(_distil, replace(job, inputs={**job.inputs, **teachers}), job.settings.distil)


def _name(number: int) -> str:
    """The name of a teacher's checkpoint among the inputs of its job."""
    return f"teacher {number}"


def _distil(job: Job[DistilSettings], processes: Processes) -> None:
    settings = job.settings
    families = [entry_of(path)["family"] for path in job.lists["teachers"]]
    roots = [registry.target("models", name) for name in (settings.student.family, *families)]
    method = registry.target("methods", settings.method)
    _student.train(job, processes, _no_teacher, _outputs, (f"{__name__}:run", method, *roots))


def _no_teacher(job: Job[DistilSettings], data: Prepared) -> None:
    """There is none whose layers a method could read."""


def _outputs(
    job: Job[DistilSettings], method: Method, data: Prepared, split: ImageSplit
) -> TeacherOutputs:
    """The combined logits of all teachers for a batch, from a file if that saves time."""
    settings, recipe = job.settings, job.settings.distil
    assert settings.combination is not None, "there are several teachers"
    networks = [
        frozen(trained_model(path, data).to(data.device), data.image_shape)
        for path in job.lists["teachers"]
    ]
    lives = [LiveTeacher(each, recipe.batch_size, precision=recipe.precision) for each in networks]
    how = Combining(settings.combination.combine, settings.combination.space)
    shown = settings.numbered_views
    if shown is None:
        return CombinedTeachers(lives, how)
    fixed = split.draws if isinstance(split, DrawnSplit) else None
    return combined_outputs(
        FOLDER / f"{_key(job, data, split, shown, how)}.npy",
        *(lives, how, split, fixed or Views(shown.crop_padding, shown.flip)),
        members=lambda: [
            outputs_of(job, _name(number), each, data, split, shown, passes=recipe.epochs)
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
    code = job.code.digest(_CODE)
    known = json.dumps([members, how._asdict(), labels, code], sort_keys=True)
    return blake2b(known.encode(), digest_size=16).hexdigest()
