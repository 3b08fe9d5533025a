"""Score every layer of a teacher by its knowledge quality, and select layers to learn from.

reads   features   features.parquet of the stage cache: float16 (N, D) for each layer
        summary    summary.json of the stage prepare: how many images the teacher was trained on
writes  scores     scores.parquet: one row per layer with S, I, E, sqrt(I E) and Q, the rank,
                   whether the layer was selected, and why
"""

from __future__ import annotations

import logging
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.columns import SCORES
from kdsteps.files.tables import write_table
from kdsteps.files.text import read_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import ScoreSettings
from kdsteps.scores.quality import score_layer
from kdsteps.scores.selection import choose_layers
from kdsteps.teachers.features import FeatureFile

log = logging.getLogger("kdsteps")


def run(job: Job[ScoreSettings]) -> None:
    """Score layer by layer, each read once."""
    import torch

    torch.set_num_threads(job.threads)
    settings = job.settings.score
    features = FeatureFile(job.inputs["features"])
    if settings.num_layers > len(features.shapes):
        raise KdstepsError(
            f"score.num_layers is {settings.num_layers}, but the teacher has "
            f"{len(features.shapes)} layers; it should be at most {len(features.shapes)}"
        )
    labels = features.labels()
    train_size = read_json(job.inputs["summary"])["images"]["train"]
    scores = {
        layer: score_layer(
            features.chunks(layer),
            labels,
            train_size=train_size,
            variant=settings.variant,
            where=f"{job.inputs['features']}: layer {layer}",
        )
        for layer in features.shapes
    }
    ranked = choose_layers(scores, by=settings.select, count=len(scores))
    chosen = {choice.layer for choice in ranked if choice.rank <= settings.num_layers}
    for choice in ranked:
        if choice.layer in chosen:
            log.info("%s: %s", choice.layer, choice.reason)
    rows: dict[str, list[Any]] = {
        name: [scores[layer][name] for layer in scores] for name in VALUES
    }
    rows |= {
        "layer": list(scores),
        "depth": list(range(len(scores))),
        "shape": [list(features.shapes[layer].shape) for layer in scores],
        "rank": [choice.rank for choice in ranked],
        "chosen": [choice.layer in chosen for choice in ranked],
        "reason": [choice.reason for choice in ranked],
    }
    write_table(job.outputs["scores"], rows, SCORES, job.settings.as_json())


VALUES = (
    "separation",
    "information",
    "efficiency",
    "root_information_efficiency",
    "quality",
)
