"""Latency and throughput of all networks of a pair, one after the other in one process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdsteps.evaluation.metrics import Metric, all_metrics, compute
from kdsteps.evaluation.speed import time_network
from kdsteps.files.text import write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import LatencySettings
from kdsteps.models import architecture
from kdsteps.models.checkpoints import load_weights
from kdsteps.models.input import behind_resize
from kdsteps.stages._headers import model_in, read_network
from kdsteps.stages._shared import provenance, untrained_model
from kdsteps.study.settings import TimingSettings
from kdsteps.training.device import choose_device

log = logging.getLogger("kdsteps")


def time_networks(job: Job[LatencySettings]) -> None:
    """Time the teacher and one student of each method; equal architectures are timed once."""
    section = job.settings.evaluate
    started = time.monotonic()
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu)
    metrics = all_metrics(section.metrics)
    paths = dict(zip(job.settings.methods, job.lists["students"], strict=True))
    if "teacher" in job.inputs:
        paths[_TEACHER] = job.inputs["teacher"]
    known: dict[str, dict[str, Any]] = {}
    timed = {}
    for name, path in paths.items():
        weights, header = read_network(path)
        key = _architecture(header)
        if key not in known:
            known[key] = _time(path, weights, header, device, metrics, section)
        timed[name] = known[key]
    content = {
        "teacher": timed.pop(_TEACHER, None),
        "students": timed,
        "batch_size": section.throughput_batch,
        "settings": job.settings.as_json(),
        "provenance": provenance(device, time.monotonic() - started),
    }
    write_json(job.outputs["latency"], content)
    log.info("timed %d networks of %d architectures", len(paths), len(known))


_TEACHER = ""  # cannot be the name of a method


def _architecture(header: Mapping[str, Any]) -> str:
    """What determines the speed of a network: its entry without weights, and the images' shape."""
    entry = model_in(header)
    resizing = [entry.image_size, entry.interpolation]
    known = [architecture(entry.options), header["image_shape"], _num_outputs(header), *resizing]
    return json.dumps([entry.family, *known], sort_keys=True)


def _num_outputs(header: Mapping[str, Any]) -> int:
    return len(header["model"].get("classes") or header["class_names"])


def _time(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    header: Mapping[str, Any],
    device: torch.device,
    metrics: Sequence[Metric],
    section: TimingSettings,
) -> dict[str, Any]:
    """The speed metrics of one network, and the number of threads that computed its batches."""
    channels, height, width = header["image_shape"]
    shape = (channels, height, width)
    network = untrained_model(model_in(header), shape, _num_outputs(header))
    finite = not header.get("diverged")  # the values do not decide the speed
    load_weights(network.plain(), weights, where=str(path), finite=finite)
    timing = time_network(
        behind_resize(network.to(device)),
        shape,
        runs=section.latency_runs,
        batch_size=section.throughput_batch,
    )
    found = compute(
        metrics, "speed", timing, num_classes=header["num_classes"], options=section.model_dump()
    )
    return {**found, "threads": timing.threads}
