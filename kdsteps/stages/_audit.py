"""Compare several teachers on training images before a student learns from all of them."""

from __future__ import annotations

import logging
from dataclasses import asdict

import torch

from kdsteps.data.images import Views
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.predictions import predict
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import AUDITED, AuditSettings
from kdsteps.stages._shared import prepared, trained_model
from kdsteps.teachers.audit import audit_teachers
from kdsteps.teachers.features import balanced_sample
from kdsteps.training.device import choose_device

log = logging.getLogger("kdsteps")


def audit(job: Job[AuditSettings]) -> None:
    """Write how each teacher compares with the others, on up to `AUDITED` training images.

    Raises:
        KdstepsError: A teacher has a problem, and its `teacher_check` is not `warn`.
    """
    settings = job.settings
    data = prepared(job, choose_device(job.gpus, job.threads, job.jobs_per_gpu))
    part = data.part("train")
    labels = part.labels.cpu()
    index = balanced_sample(labels, AUDITED, seed=0)
    logits = {}
    for name, path in zip(settings.teachers, job.lists["teachers"], strict=True):
        network = trained_model(path, data).to(data.device)
        batches = (
            part.take(some, Views(), torch.zeros_like(some))
            for some in index.split(settings.batch_size)
        )
        logits[name], _ = predict(network, batches)
    audits = audit_teachers(logits, labels[index] if data.labeled else None, space=settings.space)
    for each in audits:
        for line in each.warnings:
            log.warning("the teacher %s: %s", each.teacher, line)
        if each.problems and each.teacher not in settings.tolerated:
            raise KdstepsError(
                f"the teacher {each.teacher}: {each.problems[0]}; leave it out of `teachers`, or "
                "set `train: {teacher_check: warn}` for it to continue anyway"
            )
        for line in each.problems:
            log.warning("the teacher %s: %s", each.teacher, line)
    content = {"num_images": len(index), "teachers": list(map(asdict, audits))}
    write_json(job.outputs["audit"], content | {"settings": settings.as_json()})
