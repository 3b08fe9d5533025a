"""A teacher's outputs for training images: from the cache, or computed on the fly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kdsteps.data.images import ImageSplit, Views
from kdsteps.data.prepared import Prepared
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table
from kdsteps.jobs.job import Job
from kdsteps.models import Chain
from kdsteps.stages._headers import entry_of
from kdsteps.study import registry
from kdsteps.study.training_settings import DrawSettings, ViewSettings
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import CachedOutputs, LiveTeacher
from kdsteps.training.drawn import draws_of

FOLDER = Path(".kdsteps/outputs")  # a cache: it may be deleted at any time
_CODE = (
    "kdsteps.stages._shared:prepared",
    "kdsteps.stages._shared:trained_model",
    "kdsteps.stages._teacher_outputs:outputs_of",
    "kdsteps.teachers.frozen:frozen",
)


def outputs_of(
    job: Job[Any],
    model: str,
    teacher: Chain,
    data: Prepared,
    part: ImageSplit,
    settings: ViewSettings,
    *,
    layers: Sequence[str] = (),
    passes: int,
) -> CachedOutputs | LiveTeacher:
    """The outputs of `teacher` for the views or draws of `part`, cached if that saves time.

    Args:
        model: The name of the input with the teacher's checkpoint.
        teacher: Frozen.
        part: A `DrawnSplit` if `settings` are those of draws.
        settings: How the images are shown to the teacher.
        layers: The layers to read; none: the logits.
        passes: Passes over the training images that would use the file.
    """
    views = (
        draws_of(settings)
        if isinstance(settings, DrawSettings)
        else Views(settings.crop_padding, settings.flip)
    )
    live = LiveTeacher(teacher, settings.batch_size, layers=layers, precision=settings.precision)
    terms = Terms(job.keep, passes, job.budget_mib)
    path = FOLDER / f"{outputs_key(job, model, data, settings, layers)}.npy"
    return teacher_outputs(path, live, part, views, terms)


def outputs_key(
    job: Job[Any],
    model: str,
    data: Prepared,
    settings: ViewSettings,
    layers: Sequence[str] = (),
) -> str:
    """A digest of everything a teacher's outputs depend on; the name of their file."""
    checkpoint = Path(job.inputs[model])
    family = entry_of(checkpoint)["family"]
    hashes = read_table(job.inputs["index"], INDEX)["hash"].to_pylist()
    said = {
        "teacher": blake2b(checkpoint.read_bytes(), digest_size=20).hexdigest(),
        "images": [hashes[row] for row in data.rows("train")],
        "scaling": [data.mean.tolist(), data.std.tolist()],
        "views": settings.model_dump(),
        "layers": list(layers),
        "code": job.code.digest((*_CODE, registry.target("models", family))),
    }
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()
