"""Train one student by one method, for the stages `distil` and `tune`.

Code identity finds `run` by its name: a result of the same settings is the same in both stages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kdsteps.data.draws import DrawnSplit
from kdsteps.data.images import ImageSplit
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import DistilSettings
from kdsteps.methods.base import Method, Task
from kdsteps.models import Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.models.wrapped import Wrapped
from kdsteps.stages._headers import entry_of
from kdsteps.stages._shared import (
    as_built,
    check_recipe,
    fresh_model,
    prepared,
    resume_file,
    save_model,
    trained_model,
    validator,
    write_history,
)
from kdsteps.stages._teacher_outputs import outputs_of
from kdsteps.study import registry
from kdsteps.study.settings import Model
from kdsteps.study.training_settings import Distil, DrawSettings, num_views
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logits import CachedOutputs, TeacherOutputs
from kdsteps.training.device import choose_device
from kdsteps.training.drawn import DrawnFit, draws_of
from kdsteps.training.loop import Fit
from kdsteps.training.processes import Processes, in_processes
from kdsteps.training.random_states import check_seed, seed_all
from kdsteps.training.terms import check_modules

log = logging.getLogger("kdsteps")


def run(job: Job[DistilSettings]) -> None:
    """Train a student by one method and save its last epoch.

    A student whose training diverges is saved all the same, so that the other runs are compared.
    """
    in_processes(_distil, job, job.settings.distil)


def _distil(job: Job[DistilSettings], processes: Processes) -> None:
    train(job, processes, _teacher, _teacher_outputs, (f"{__name__}:run", *_roots(job)))


def train(
    job: Job[DistilSettings],
    processes: Processes,
    teacher_of: Callable[[Job[DistilSettings], Prepared], Chain | None],
    outputs_for: Callable[
        [Job[DistilSettings], Method, Prepared, ImageSplit], TeacherOutputs | None
    ],
    roots: Sequence[str],
) -> None:
    """Train a student in one of the processes of a job.

    Args:
        teacher_of: Returns the frozen teacher, if the method has one.
        outputs_for: Returns the outputs of teachers for a batch, if the method learns from them.
        roots: The definitions that a saved state depends on.
    """
    settings, recipe = job.settings, job.settings.distil
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu, recipe.precision)
    data = prepared(job, device)
    teacher = teacher_of(job, data)
    seed_all(settings.seed)
    student = fresh_model(settings.student, data)
    check_seed(settings.seed, f"models: {settings.student.family}")
    data = replace(data, memory_format=batch_format(student))
    split = data.part("train", stream=recipe.per_image)
    if isinstance(settings.numbered_views, DrawSettings):
        num_classes = data.num_classes if data.labeled else 0
        split = DrawnSplit(split, draws_of(settings.numbered_views, num_classes))
    check_recipe(recipe, split, "distil")
    method = _method(job, teacher, student, data, split).to(device)
    check_seed(settings.seed, f"methods: {settings.method}")
    _deployed_entry(job, method, data)  # raises before training what cannot be deployed
    fit = _fit(
        method,
        split,
        recipe,
        seed=settings.seed,
        validate=validator(method.deployed(), data.part("validation")),
        teacher=outputs_for(job, method, data, split),
        resume=resume_file(job, *roots),
        processes=processes,
    )
    fit.run()
    if not processes.first:
        return
    if fit.diverged is not None:
        log.warning(
            "diverged: %s; the training ends here and the report shows the run as diverged; a "
            "lower learning_rate or weight, or clip_grad_norm, may help",
            fit.diverged,
        )
    entry = _deployed_entry(job, method, data)
    deployed = method.deployed().plain()
    save_model(job.outputs["model"], deployed, entry, data, settings, fit.diverged)
    write_history(job.outputs["history"], fit, settings, device)
    fit.forget()


def _fit(method: Method, split: ImageSplit, recipe: Distil, **options: Any) -> Fit:
    if isinstance(split, DrawnSplit):
        return DrawnFit(method, split, recipe, **options)
    return Fit(method, split, recipe, **options)


def _teacher(job: Job[DistilSettings], data: Prepared) -> Chain | None:
    """The frozen teacher as the method needs it: folded to run faster, or as it was trained."""
    if "teacher" not in job.inputs:
        return None
    teacher = trained_model(job.inputs["teacher"], data).to(data.device)
    method = registry.load("methods", job.settings.method)
    as_trained = method.keeps_teacher(job.settings.options)
    return frozen(teacher, data.image_shape, fold=not as_trained)


def _method(
    job: Job[DistilSettings],
    teacher: Chain | None,
    student: Chain,
    data: Prepared,
    split: ImageSplit,
) -> Method:
    plan = read_json(job.inputs["plan"]) if "plan" in job.inputs else None
    settings = job.settings
    recipe = settings.distil
    task = Task(
        *(data.image_shape, data.num_classes, split.labels),
        *(plan, recipe.batch_size, recipe.epochs),
        labeled=data.labeled,
    )
    build = registry.load("methods", settings.method)
    method: Method = build(teacher, student, task, **settings.options)
    check_modules(method)
    return method


def _teacher_outputs(
    job: Job[DistilSettings], method: Method, data: Prepared, split: ImageSplit
) -> TeacherOutputs | None:
    """The teacher's outputs for a batch, cached or computed; None if the method runs the teacher.

    Logits always come from the folded teacher, like those of the stage cache. Features are cached
    by the run itself if its epochs are more than the views or draws of an image. `cache.outputs:
    always` is about logits; it means features only if there is one view, since those of many are
    large.
    """
    recipe, views = job.settings.distil, job.settings.numbered_views
    if views is None or method.teacher is None:
        return None
    if method.wants in ("logits", "blocks"):
        teacher = method.teacher
        if method.keeps_teacher(job.settings.options):
            teacher = frozen(teacher, data.image_shape)
        return outputs_of(job, "teacher", teacher, data, split, views, passes=recipe.epochs)
    count = num_views(views)
    if not method.feature_layers or 1 < recipe.epochs <= count:
        return None
    if count > 1 and job.keep == "always":
        job = replace(job, keep="auto")
    found = outputs_of(
        *(job, "teacher", method.teacher, data, split, views),
        layers=method.feature_layers,
        passes=recipe.epochs,
    )
    return found if isinstance(found, CachedOutputs) else None


def _deployed_entry(job: Job[DistilSettings], method: Method, data: Prepared) -> Model:
    """The settings from which the deployed network is built again.

    Raises:
        KdstepsError: It consists of blocks of networks whose images or classes differ.
    """
    settings, student = job.settings, method.student
    taught_by = entry_of(job.inputs["teacher"]) if "teacher" in job.inputs else None
    own = as_built(settings.student, student, data).model_dump()
    entry = Model(**method.deployed_entry(own, taught_by))
    joined = entry.family != settings.student.family
    if joined and (isinstance(student, Wrapped) or (taught_by and taught_by.get("classes"))):
        raise KdstepsError(
            f"methods: {settings.method} deploys blocks of student and teacher; set "
            "`normalize: dataset` and no `image_size` for the student, and use a teacher without "
            "`classes`"
        )
    return entry


def _roots(job: Job[DistilSettings]) -> Iterator[str]:
    """The definitions behind the names in a job's settings."""
    yield registry.target("methods", job.settings.method)
    yield registry.target("models", job.settings.student.family)
    if "teacher" in job.inputs:
        yield registry.target("models", entry_of(job.inputs["teacher"])["family"])
