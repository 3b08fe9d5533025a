"""Measure one trained network on the test images, once.

reads   data          images.npy, index.parquet, summary.json of the stage prepare
        model         student.safetensors or teacher.safetensors
        teacher       predictions.parquet of the teacher, to compare with; left out for methods
                      without a teacher and for the teacher itself
writes  measures      measures.json: accuracy, top-5, negative log-likelihood, calibration error,
                      agreement with and KL to the teacher, parameters, multiply-adds, size, latency
        predictions   predictions.parquet: a row a test image with label, prediction and logits (K,)
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
from kdsteps.evaluation.metrics import compare, judge, latency, predict, size_of
from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import EvaluateSettings
from kdsteps.stages._shared import prepared, provenance, share_cores, trained_model
from kdsteps.training.device import choose_device

log = logging.getLogger("kdsteps")


def run(job: Job[EvaluateSettings]) -> None:
    """Predict every test image and write what follows from it."""
    settings = job.settings.evaluate
    started = time.monotonic()
    device = choose_device(job.gpus, job.threads)
    data = prepared(job, device)
    network = trained_model(job.inputs["model"], data).to(device)
    cost = share_cores(network, data, settings.batch_size)
    part = data.part("test")
    logits, labels = predict(network, part.in_order(settings.batch_size))
    measures = judge(logits, labels, settings.calibration_bins)
    if "teacher" in job.inputs:
        measures |= compare(logits, _teacher_logits(job.inputs["teacher"], logits))
    measures |= size_of(network.plain()) | {"multiply_adds": cost}
    measures |= latency(network.plain(), data.image_shape, settings.latency_runs)
    rows = {
        "image": data.rows("test"),
        "label": labels.numpy(),
        "predicted": logits.argmax(dim=1).numpy(),
        "logits": list(logits.numpy()),
    }
    write_table(job.outputs["predictions"], rows, PREDICTIONS, job.settings.as_json())
    origin = provenance(device, time.monotonic() - started)
    nothing = {"agreement": None, "kl_to_teacher": None}
    content: dict[str, Any] = nothing | measures | {"num_images": len(labels)}
    content |= {"settings": job.settings.as_json(), "provenance": origin}
    write_json(job.outputs["measures"], content)
    log.info("accuracy %.4f on %d test images", measures["accuracy"], len(labels))


def _teacher_logits(path: Path, logits: Tensor) -> Tensor:
    """(N, K) as the teacher's own evaluation left them."""
    column = read_table(path, PREDICTIONS)["logits"]
    found = np.stack(column.to_numpy()) if len(column) else np.empty((0, 0), np.float32)
    if found.shape != tuple(logits.shape):
        raise KdstepsError(
            f"{path}: holds predictions of shape {found.shape}, the student's are "
            f"{tuple(logits.shape)}; evaluate the teacher again on these data"
        )
    return torch.from_numpy(found)
