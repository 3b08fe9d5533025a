"""How a stage asks a teacher: its answers to training images, kept or live."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kdsteps.data.images import ImagePart, Views
from kdsteps.data.prepared import Prepared
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table
from kdsteps.jobs import code_identity
from kdsteps.jobs.job import Job
from kdsteps.models import Chain
from kdsteps.study import registry
from kdsteps.teachers.logit_cache import Terms, answers
from kdsteps.teachers.logits import Kept, Live

FOLDER = Path(".kdsteps/outputs")  # nothing in it is a result: it may be deleted at any time
_RECIPE = ("crop_padding", "flip", "precision", "batch_size")
_CODE = ("kdsteps.teachers.logit_cache", "kdsteps.teachers.frozen")


def ask(
    job: Job,
    model: str,
    teacher: Chain,
    data: Prepared,
    part: ImagePart,
    recipe: Mapping[str, Any],
    *,
    layers: Sequence[str] = (),
    passes: int,
) -> Kept | Live:
    """What `teacher` answers to the views of `part`, from a file where that is or pays.

    Args:
        model: The input that holds the teacher's checkpoint.
        teacher: Frozen.
        recipe: With `crop_padding`, `flip`, `precision` and `batch_size`.
        layers: Whose outputs are asked for; none: the logits.
        passes: Over the training images that would use the file.
    """
    views = Views(recipe["crop_padding"], recipe["flip"])
    live = Live(teacher, recipe["batch_size"], layers=layers, precision=recipe["precision"])
    terms = Terms(job.keep, passes, job.budget_mib)
    path = FOLDER / f"{answers_key(job, model, data, recipe, layers)}.npy"
    return answers(path, live, part, views, terms)


def answers_key(
    job: Job, model: str, data: Prepared, recipe: Mapping[str, Any], layers: Sequence[str] = ()
) -> str:
    """All that a teacher's answers depend on, as one name."""
    checkpoint = Path(job.inputs[model])
    family = read_checkpoint_header(checkpoint)["model"]["family"]
    hashes = read_table(job.inputs["index"], INDEX)["hash"].to_pylist()
    said = {
        "teacher": blake2b(checkpoint.read_bytes(), digest_size=20).hexdigest(),
        "images": [hashes[row] for row in data.rows("train")],
        "scaling": [data.mean.tolist(), data.std.tolist()],
        "views": {key: recipe[key] for key in _RECIPE},
        "layers": list(layers),
        "code": code_identity.digest((*_CODE, registry.module("models", family))),
    }
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()
