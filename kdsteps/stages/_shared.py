"""What several stages do alike: networks from entries and checkpoints, and a file's origin."""

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

from kdsteps.data.images import ImagePart
from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.metrics import judge, predict
from kdsteps.files.checkpoints import read_checkpoint, read_checkpoint_header, write_checkpoint
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import write_table
from kdsteps.jobs import code_identity
from kdsteps.jobs.job import Job
from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.checkpoints import load_weights
from kdsteps.models.cost import multiply_adds
from kdsteps.training.device import keep_busy
from kdsteps.training.loop import Fit, Resume

log = logging.getLogger("kdsteps")

Entry = Mapping[str, Any]


def prepared(job: Job, device: torch.device) -> Prepared:
    """The dataset a job reads, on its device."""
    images, index, summary = (job.inputs[name] for name in ("images", "index", "summary"))
    return load_prepared(images, index, summary, device)


def fresh_model(entry: Entry, data: Prepared, *, will_train: bool) -> Chain:
    """The network of an entry {family, options}, made for the images of a dataset."""
    channels, *size = data.image_shape
    chain = build_model(
        entry["family"],
        num_classes=len(data.class_names),
        in_channels=channels,
        image_size=size,
        will_train=will_train,
        **entry["options"],
    )
    for note in chain.notes:
        log.info("%s", note)
    return chain


def trained_model(path: Path, data: Prepared) -> Chain:
    """The network in a checkpoint of ours, frozen and in eval mode.

    Raises:
        KdstepsError: The file is damaged or foreign, or was made for other classes or images.
    """
    weights, header = read_checkpoint(path)
    made_for = (header["num_classes"], header["image_shape"])
    found = (len(data.class_names), list(data.image_shape))
    if made_for != found:
        raise KdstepsError(
            f"{path}: was made for {made_for[0]} classes of images {made_for[1]}, the data have "
            f"{found[0]} classes of {found[1]}; train it on these data"
        )
    entry = header["model"]
    plain = dict(entry) | {"options": architecture(entry["options"])}
    chain = fresh_model(plain, data, will_train=False)
    load_weights(chain.plain(), weights, where=str(path))
    return chain.requires_grad_(False).eval()


def share_cores(network: nn.Module, data: Prepared, batch_size: int) -> int:
    """Compute on no more CPU cores than a batch feeds; gives the multiply-adds of one image."""
    cost = multiply_adds(network, torch.zeros(1, *data.image_shape, device=data.device))
    if data.device.type == "cpu":
        keep_busy(batch_size * cost)
    return cost


def entry_of(path: Path) -> Entry:
    """The entry {family, options} of the network in a checkpoint of ours."""
    entry: Entry = read_checkpoint_header(path)["model"]
    return entry


RESUME = Path(".kdsteps/resume")  # one file for each run that was cut off


def save_model(
    path: Path, network: nn.Module, entry: Entry, data: Prepared, settings: Entry
) -> None:
    """The deployed weights, with all that is needed to build the network again."""
    header = {
        "model": dict(entry),
        "num_classes": len(data.class_names),
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "settings": dict(settings),
    }
    write_checkpoint(path, network.state_dict(), header)


def validator(
    student: nn.Module, part: ImagePart, batch_size: int = 500
) -> Callable[[], dict[str, float]]:
    """A function that measures the student on the validation images, if there are any."""

    def validate() -> dict[str, float]:
        if not len(part):
            return {}
        found = judge(*predict(student, part.in_order(batch_size)))
        return {"validation_accuracy": found["accuracy"], "validation_loss": found["nll"]}

    return validate


def resume_file(job: Job, *modules: str) -> Resume:
    """Where a run saves its progress: by the file it will write, with all that this depends on.

    Args:
        modules: Of the code that the job rests on.
    """
    key = hashlib.sha256(
        repr([sorted(job.settings.items()), code_identity.digest(modules)]).encode()
    )
    for name, path in sorted(job.inputs.items()):
        with Path(path).open("rb") as file:
            key.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    target = job.outputs["model"]
    place = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    path = RESUME / f"{'-'.join(target.parts[-5:-1])[-100:]}-{place}.pt"
    for torn in RESUME.glob(f".{path.name}.*.part"):  # of a run that was killed while it saved
        torn.unlink(missing_ok=True)
    return Resume(path, key.hexdigest(), job.checkpoint_seconds)


def write_history(path: Path, fit: Fit, settings: Entry, device: torch.device) -> None:
    write_table(path, fit.history.rows(), HISTORY, settings, provenance(device, fit.seconds))


def provenance(device: torch.device, seconds: float) -> dict[str, Any]:
    """Where numbers came from: versions, the commit of the study, the kind of device, seconds."""
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
    """The commit of the folder the study lies in, `+` behind it where files were changed since."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
