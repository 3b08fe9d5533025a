"""Distill one student: one pair, one method, one seed.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
        teacher    teacher.safetensors, for methods that use a teacher
        plan       plan.json of the stage build, for methods that use one
        check      check.json of the stage train: only has to exist
        ticket     outputs_<views>.json of the stage cache, for methods that use logits: identifies
                   the teacher's logits, which may be cached
writes  model      student.safetensors: the deployed network after the last epoch; if the training
                   diverged, the header has `diverged`: term, epoch, step
        history    history.parquet: every loss term and validation metric of every epoch; it ends
                   with the epoch in which the training diverged, whose losses may be NaN
        digest     digest.json: digests of the other files
"""

from __future__ import annotations

from kdsteps.stages._student import run as run
