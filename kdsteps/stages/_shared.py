"""Functions of several stages: networks from settings and checkpoints, and provenance."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdsteps.data.images import ImageSplit
from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.predictions import accuracy, nll, predict
from kdsteps.files.checkpoints import read_checkpoint, read_checkpoint_header, write_checkpoint
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import write_table
from kdsteps.jobs import code_identity
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import JobSettings
from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.checkpoints import load_weights
from kdsteps.models.cost import multiply_adds
from kdsteps.study.settings import Model
from kdsteps.training.device import keep_busy
from kdsteps.training.loop import Fit, Resume

log = logging.getLogger("kdsteps")

Entry = Mapping[str, Any]


def prepared(job: Job[Any], device: torch.device) -> Prepared:
    """The data set a job reads, on its device."""
    images, index, summary = (job.inputs[name] for name in ("images", "index", "summary"))
    return load_prepared(images, index, summary, device)


def fresh_model(entry: Model, data: Prepared, *, will_train: bool) -> Chain:
    """The network of a model's settings, made for the images of a data set."""
    channels, *size = data.image_shape
    options: dict[str, Any] = dict(entry.options)
    chain = build_model(
        entry.family,
        num_classes=len(data.class_names),
        in_channels=channels,
        image_size=size,
        will_train=will_train,
        **options,
    )
    for note in chain.notes:
        log.info("%s", note)
    return chain


def trained_model(path: Path, data: Prepared) -> Chain:
    """The network of a kdsteps checkpoint, frozen and in eval mode.

    Raises:
        KdstepsError: The file is damaged, is not from kdsteps, or is for other classes or images.
    """
    weights, header = read_checkpoint(path)
    made_for = (header["num_classes"], header["image_shape"])
    found = (len(data.class_names), list(data.image_shape))
    if made_for != found:
        raise KdstepsError(
            f"{path}: was made for {made_for[0]} classes of images {made_for[1]}, but the data set "
            f"has {found[0]} classes of {found[1]}; train it on this data set"
        )
    family, options = header["model"]["family"], header["model"]["options"]
    plain = Model(family=family, options=architecture(options))
    chain = fresh_model(plain, data, will_train=False)
    load_weights(chain.plain(), weights, where=str(path))
    return chain.requires_grad_(False).eval()


def share_cores(network: nn.Module, data: Prepared, batch_size: int) -> int:
    """Use no more CPU cores than a batch keeps busy; return the MACs of one image."""
    cost = multiply_adds(network, torch.zeros(1, *data.image_shape, device=data.device))
    if data.device.type == "cpu":
        keep_busy(batch_size * cost)
    return cost


def entry_of(path: Path) -> Entry:
    """The entry {family, options} of the network in a kdsteps checkpoint."""
    entry: Entry = read_checkpoint_header(path)["model"]
    return entry


RESUME = Path(".kdsteps/resume")  # one file for each interrupted run


def save_model(
    path: Path, network: nn.Module, entry: Model, data: Prepared, settings: JobSettings
) -> None:
    """Write the deployed weights with everything needed to build the network again."""
    header = {
        "model": entry.model_dump(),
        "num_classes": len(data.class_names),
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "settings": settings.as_json(),
    }
    write_checkpoint(path, network.state_dict(), header)


def validator(
    student: nn.Module, part: ImageSplit, batch_size: int = 500
) -> Callable[[], dict[str, float]]:
    """A function that evaluates the student on the validation images, if there are any."""

    def validate() -> dict[str, float]:
        if not len(part):
            return {}
        logits, labels = predict(student, part.in_order(batch_size))
        return {
            "validation_accuracy": accuracy(logits, labels),
            "validation_loss": nll(logits, labels),
        }

    return validate


def resume_file(job: Job[Any], *roots: str) -> Resume:
    """The file in which a run saves its state, with a key of everything the result depends on.

    Args:
        roots: The definitions at which the code of the job begins.
    """
    key = hashlib.sha256(repr([job.settings.as_text(), code_identity.digest(roots)]).encode())
    for name, path in sorted(job.inputs.items()):
        with Path(path).open("rb") as file:
            key.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    target = job.target
    place = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    path = RESUME / f"{'-'.join(target.parts[-5:-1])[-100:]}-{place}.pt"
    for torn in RESUME.glob(f".{path.name}.*.part"):  # from a run that was killed while saving
        torn.unlink(missing_ok=True)
    return Resume(path, key.hexdigest(), job.checkpoint_seconds)


def write_history(path: Path, fit: Fit, settings: JobSettings, device: torch.device) -> None:
    origin = provenance(device, fit.seconds)
    write_table(path, fit.history.rows(), HISTORY, settings.as_json(), origin)


def provenance(device: torch.device, seconds: float) -> dict[str, Any]:
    """Where numbers come from: versions, commit of the study, device, threads and seconds."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "torchvision", "timm")
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages},
        "git_commit": _commit(),
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }


def _commit() -> str | None:
    """The commit of the study's folder, with a `+` if files were changed since."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
