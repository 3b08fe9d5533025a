"""Measure the frozen features of one network: of a teacher, a student, or a student untrained."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdsteps.data.images import ImageSplit, Order, Views
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.probes import probe
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import NetworkProbeSettings, UntrainedProbeSettings
from kdsteps.models import Chain
from kdsteps.models.chain import HEAD
from kdsteps.models.cost import num_parameters
from kdsteps.models.feature_shapes import pooled
from kdsteps.stages._shared import fresh_model, prepared, provenance, share_cores, trained_model
from kdsteps.teachers.features import balanced_sample
from kdsteps.training.device import choose_device
from kdsteps.training.random_states import seed_all

log = logging.getLogger("kdsteps")


def measure(job: Job[NetworkProbeSettings]) -> None:
    """Write how good the features of a network are on the labeled images of `probe`."""
    section = job.settings.probe
    started = time.monotonic()
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu)
    data = prepared(job, device)
    if not len(data.rows("test")):
        raise KdstepsError("probe.dataset: has no test images; set prepare.test above 0")
    network, data = _network(job, data)
    network = network.to(device)
    share_cores(network, data, section.batch_size)
    labeled = bool(data.class_names)  # whether the network has a classifier
    train, test = data.part("train"), data.part("test")
    chosen = torch.arange(len(train))
    if len(train) > section.images:
        chosen = balanced_sample(train.labels.cpu(), section.images, section.seed)
    references, labels = _features(network, train, chosen, section.batch_size, labeled)
    every = torch.arange(len(test))
    queries, expected = _features(network, test, every, section.batch_size, labeled)
    found = probe(
        *(references, labels, queries, expected),
        neighbors=section.neighbors,
        fractions=section.fractions,
        draws=section.draws,
        seed=section.seed,
    )
    content = {
        "values": found,
        "width": references.shape[1],
        "parameters": num_parameters(network.plain()),
        "references": len(labels),
        "queries": len(expected),
        "settings": job.settings.as_json(),
        "provenance": provenance(device, time.monotonic() - started),
    }
    write_json(next(iter(job.outputs.values())), content)
    log.info("%s", ", ".join(f"{name} {value}" for name, value in found.items()))


def _network(job: Job[Any], data: Prepared) -> tuple[Chain, Prepared]:
    """The network, and the images normalized as those that it learned from.

    Raises:
        KdstepsError: It is for images of another shape.
    """
    settings = job.settings
    if "model" in job.inputs:
        data = _as_trained_on(data, read_checkpoint_header(job.inputs["model"]))
        return trained_model(job.inputs["model"], data, even_diverged=True), data
    assert isinstance(settings, UntrainedProbeSettings)
    data = _as_trained_on(data, read_json(job.inputs["training"]))
    seed_all(settings.seed)
    return fresh_model(settings.student, data).requires_grad_(False).eval(), data


def _as_trained_on(data: Prepared, described: Mapping[str, Any]) -> Prepared:
    """The images of `probe` with the normalization and the classes of other ones.

    Args:
        described: The header of a checkpoint, or a summary of the stage `prepare`.
    """
    shape = tuple(described["image_shape"])
    if shape != data.image_shape:
        raise KdstepsError(
            f"probe.dataset: has images of {data.image_shape} (channels, height, width), and the "
            f"network learns from images of {shape}; give both data sets the same `image_size` and "
            "`channels`"
        )
    return replace(
        data,
        class_names=tuple(described["class_names"]),
        mean=torch.tensor(described["mean"]),
        std=torch.tensor(described["std"]),
    )


@torch.inference_mode()
def _features(
    network: Chain, split: ImageSplit, index: Tensor, batch_size: int, labeled: bool
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of some images of a split, on the CPU.

    Args:
        index: (N,).
        labeled: Whether the network has a classifier, so that features are read before it.
    """
    layer = network.layers[-1]
    found, labels = [], []
    orders = [Order(some, torch.zeros_like(some), seed=0) for some in index.split(batch_size)]
    for batch in split.batches(orders, Views()):
        if labeled:
            output = network.trace(batch.images, [layer])[layer]
            found.append(pooled(output, network.layout(layer)).float().cpu())
        else:
            found.append(network.trace(batch.images, ())[HEAD].float().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(found), torch.cat(labels)
