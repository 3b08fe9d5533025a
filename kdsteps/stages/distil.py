"""Distill one student: one pair, one method, one seed.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
        teacher    teacher.safetensors, for methods that use a teacher
        plan       plan.json of the stage build, for methods that use one
        check      check.json of the stage train; its content is not used
        ticket     outputs_<views>.json of the stage cache, for methods that use logits: identifies
                   the teacher's logits, which may be cached
        teachers, checks, tickets
                   the same files of each teacher, for a pair with several
        audit      audit.json of the stage train, for a pair with several teachers; its content is
                   not used
        choice     choice.json of the stage tune, for methods that are tuned
writes  model      student.safetensors: the deployed network after the last epoch; if the training
                   diverged, the header has `diverged`: term, epoch, step
        history    history.parquet: loss terms and validation metrics of every epoch; if the
                   training diverged, it ends with that epoch, whose losses may be NaN
        digest     digest.json: digests of the other files
"""

from __future__ import annotations

from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import DistilSettings
from kdsteps.stages import _several, _student


def run(job: Job[DistilSettings]) -> None:
    """Train a student that learns from one teacher or none, or from several."""
    if "teachers" in job.lists:
        _several.run(job)
    else:
        _student.run(job)
