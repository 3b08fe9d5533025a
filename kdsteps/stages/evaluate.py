"""Evaluate one trained network on the test images, or measure the speed of all networks of a pair.

reads   images, index, summary
                      images.npy, index.parquet, summary.json of the stage prepare
        model         student.safetensors or teacher.safetensors
        teacher       predictions.parquet of the teacher, to compare with; not for methods without a
                      teacher, nor for the teacher itself
writes  measures      measures.json: accuracy, NLL, ECE, parameters, MACs and all other metrics
                      (null if one does not apply), accuracy per class, whether and where its
                      training diverged (`divergence`: term, epoch, step)
        predictions   predictions.parquet: one row per test image, with logits (K,)
        digest        digest.json: digests of the other files (for a teacher only)
or, with --pair alone,
reads   students      student.safetensors of one student per method, in the order of the settings
        teacher       teacher.safetensors
writes  latency       latency.json: latency and throughput of each deployed network
or, for the frozen features of a network,
reads   images, index, summary
                      as above, of the labeled data set of `probe`
        model         student.safetensors or teacher.safetensors
        training      summary.json of the training images, for an untrained student
writes  probe, teacher_probe or untrained_probe
                      probe.json: accuracy and purity of nearest neighbors, and accuracy of linear
                      classifiers with some and all labels
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.evaluation.chance import at_chance
from kdsteps.evaluation.metrics import all_metrics, compute
from kdsteps.evaluation.predictions import AGAIN, VARYING, accuracy_per_class, predict, varies
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import EvaluateSettings
from kdsteps.models.input import behind_resize
from kdsteps.stages._latency import time_networks
from kdsteps.stages._probe import measure
from kdsteps.stages._shared import prepared, provenance, share_cores, trained_model
from kdsteps.training.device import choose_device
from kdsteps.training.divergence import Divergence

log = logging.getLogger("kdsteps")


def run(job: Job[Any]) -> None:
    """Write the metrics of one network, the latency of those of a pair, or a probe's result."""
    if "latency" in job.outputs:
        time_networks(job)
    elif any(name.endswith("probe") for name in job.outputs):
        measure(job)
    else:
        _evaluate(job)


def _evaluate(job: Job[EvaluateSettings]) -> None:
    """Predict every test image and write what follows from it."""
    section = job.settings.evaluate
    started = time.monotonic()
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu)
    data = prepared(job, device)
    network = trained_model(job.inputs["model"], data, even_diverged=True).to(device)
    divergence = read_checkpoint_header(job.inputs["model"]).get("diverged")
    share_cores(network, data, section.batch_size)
    split = data.part("test")
    logits, labels = predict(network, split.in_order(section.batch_size))
    if varies(network.eval(), logits, next(split.in_order(AGAIN)).images):
        raise KdstepsError(f"{job.inputs['model']}: its logits {VARYING}")
    rows = {
        "image": data.rows("test"),
        "label": labels.numpy(),
        "predicted": logits.argmax(dim=1).numpy(),
        "logits": list(logits.numpy()),
    }
    write_table(job.outputs["predictions"], rows, PREDICTIONS, job.settings.as_json())
    diverged = divergence is not None or not bool(logits.isfinite().all())
    metrics = all_metrics(section.metrics)
    found: dict[str, Any] = {metric.name: None for metric in metrics if metric.source != "speed"}
    known: dict[str, Any] = {"num_classes": logits.shape[1], "options": section.model_dump()}
    image = torch.zeros(1, *data.image_shape, device=device)
    found |= compute(metrics, "network", behind_resize(network), image, **known)
    found |= {"accuracy_per_class": None}
    if not diverged:
        found |= compute(metrics, "predictions", logits, labels, **known)
        found |= {"accuracy_per_class": accuracy_per_class(logits, labels)}
        if "teacher" in job.inputs:
            teacher = _teacher_logits(job.inputs["teacher"], logits)
            found |= compute(metrics, "teacher", logits, teacher, **known)
    content = {
        "num_images": len(labels),
        "diverged": diverged,
        "divergence": divergence,
        **found,
        "settings": job.settings.as_json(),
        "provenance": provenance(device, time.monotonic() - started),
    }
    write_json(job.outputs["measures"], content)
    if divergence is not None:
        log.warning("not measured, because the training diverged: %s", Divergence(**divergence))
    elif diverged:
        log.warning("not measured, because the logits contain NaN or infinity")
    else:
        log.info("test accuracy %.4f on %d images", found["accuracy"], len(labels))
        chance = labels.bincount().max().item() / len(labels)
        if at_chance(found["accuracy"], chance):
            log.warning("that is the level of chance: %.4f for the most common class", chance)


def _teacher_logits(path: Path, logits: Tensor) -> Tensor:
    """The teacher's logits, (N, K), from its own evaluation."""
    column = read_table(path, PREDICTIONS)["logits"]
    found = np.stack(column.to_numpy()) if len(column) else np.empty((0, 0), np.float32)
    if found.shape != tuple(logits.shape):
        raise KdstepsError(
            f"{path}: the teacher's logits have shape {found.shape}, the student's "
            f"{tuple(logits.shape)}; evaluate the teacher again on this data set"
        )
    return torch.from_numpy(found)
