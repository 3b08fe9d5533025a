"""Functions of several stages: networks from settings and checkpoints, and provenance."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdsteps.data.images import ImageSplit
from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.data.source import UNKNOWN
from kdsteps.errors import KdstepsError, nearest
from kdsteps.evaluation.predictions import accuracy, nll, predict
from kdsteps.files.checkpoints import write_checkpoint
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import write_table
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import JobSettings
from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.checkpoints import load_weights
from kdsteps.models.cost import multiply_adds
from kdsteps.models.image_size import as_text
from kdsteps.models.input import InputChain, InputContract
from kdsteps.models.num_outputs import num_outputs
from kdsteps.models.wrapped import ClassChain
from kdsteps.stages._headers import model_in, read_network
from kdsteps.study.settings import Model, Normalization
from kdsteps.study.training_settings import ViewSettings
from kdsteps.training.device import keep_busy
from kdsteps.training.divergence import Divergence
from kdsteps.training.loop import Fit, Resume

log = logging.getLogger("kdsteps")


def prepared(job: Job[Any], device: torch.device) -> Prepared:
    """The data set a job reads, on its device."""
    images, index, summary = (job.inputs[name] for name in ("images", "index", "summary"))
    return load_prepared(images, index, summary, device)


def fresh_model(entry: Model, data: Prepared) -> Chain:
    """The network of a model's settings, made for the images and classes of a data set.

    Where its weights are for other classes, its classifier has new ones (`chain.new_weights`).

    Raises:
        KdstepsError: It cannot be built, or its classes or normalization do not fit the data set.
    """
    channels, *size = data.image_shape
    options: dict[str, Any] = dict(entry.options)
    outputs = _outputs(entry, data)
    chain = build_model(
        entry.family,
        num_classes=len(outputs),
        in_channels=channels,
        image_size=entry.image_size or size,
        will_train=True,
        **options,
    )
    for note in chain.notes:
        log.info("%s", note)
    if entry.classes is not None:
        chain = ClassChain(chain, outputs, data.class_names)
    contract = _input_contract(entry, chain, data)
    if entry.normalize is None and "checkpoint" in options:
        log.info("images are normalized with the data set's mean and std: `normalize` is not set")
    if contract is None:
        return chain
    if contract.size is not None:
        log.info(
            "images of %s pixels are resized to %s (%s)",
            *(as_text(size), as_text(contract.size), contract.interpolation),
        )
    return InputChain(chain, contract.after(data.mean.tolist(), data.std.tolist()))


def untrained_model(entry: Model, image_shape: Sequence[int], num_classes: int) -> Chain:
    """The network of a model's settings with random weights, which resizes images as it would.

    Args:
        image_shape: (C, H, W) of the images, before they are resized.
        num_classes: Of its outputs.
    """
    channels, *size = image_shape
    chain = build_model(
        entry.family,
        num_classes=num_classes,
        in_channels=channels,
        image_size=entry.image_size or size,
        **architecture(entry.options),
    )
    if not _resizes(entry, size):
        return chain
    assert entry.image_size is not None  # it resizes
    how = entry.interpolation or "bilinear"
    return InputChain(chain, InputContract.of_size(entry.image_size, how, channels))


def _resizes(entry: Model, size: Sequence[int]) -> bool:
    """Whether a network is built for another size than that of the images."""
    return entry.image_size is not None and entry.image_size != tuple(size)


def _outputs(entry: Model, data: Prepared) -> Sequence[str]:
    """The names of a network's outputs, in their order.

    Where `classes` has numbers, outputs that are not used have made-up names. There are none for
    images without labels.

    Raises:
        KdstepsError: A class of the data set is not among them, there are more or fewer numbers
            than classes, or a number is not that of an output.
    """
    wanted = data.class_names
    if not wanted:
        return ()
    names: Sequence[Any] = entry.classes or wanted
    if isinstance(names[0], str):
        missing = [name for name in wanted if name not in names]
        if missing:
            near = nearest(missing[0], names)
            raise KdstepsError(f"classes: has no {missing[0]!r}, a class of the data set{near}")
        return names
    if len(names) != len(wanted):
        raise KdstepsError(
            f"classes: has {len(names)} numbers for {len(wanted)} classes; list the output of each "
            f"class, in the order {', '.join(wanted)}"
        )
    count = num_outputs(entry.family, entry.options, data.image_shape, entry.image_size)
    if (largest := max(names)) >= count:
        raise KdstepsError(
            f"classes: has output {largest} of a network with {count} outputs; they are numbered "
            f"from 0 to {count - 1}"
        )
    found = [f"output {number}, not used" for number in range(count)]
    for number, name in zip(names, wanted, strict=True):
        found[number] = name
        log.info("class %s is output %d of the network", name, number)
    return found


def _input_contract(entry: Model, chain: Chain, data: Prepared) -> InputContract | None:
    """How a network's images are normalized and resized; None if they are taken as they are."""
    channels, *size = data.image_shape
    contract = _normalization(entry, chain, channels)
    if not _resizes(entry, size):
        return contract
    own = contract or InputContract(tuple(data.mean.tolist()), tuple(data.std.tolist()))
    return replace(
        own, size=entry.image_size, interpolation=entry.interpolation or own.interpolation
    )


def _normalization(entry: Model, chain: Chain, channels: int) -> InputContract | None:
    """How a network's images are normalized; None if as the data set's."""
    if entry.normalize is None:
        return None
    if entry.normalize == "none":
        return InputContract((0.0,) * channels, (1.0,) * channels)
    if isinstance(entry.normalize, Normalization):
        mean, std = entry.normalize.mean, entry.normalize.std
        if len(mean) != len(std):
            raise KdstepsError(
                f"normalize: has {len(mean)} means and {len(std)} stds; it should "
                "have one of each per channel"
            )
        return InputContract(mean, std).for_channels(channels, f"models: {entry.family}")
    if chain.published is None:
        raise KdstepsError(
            f"normalize: pretrained is not available for the family {entry.family!r}; set "
            "{mean: [...], std: [...]}"
        )
    return chain.published.input.for_channels(channels, f"models: {entry.family}")


def as_built(entry: Model, chain: Chain, data: Prepared) -> Model:
    """The settings from which a network is built again without the weights it started from.

    Its normalization is in numbers, and all its outputs have names.
    """
    known: dict[str, Any] = {}
    contract = _input_contract(entry, chain, data)
    if contract is not None and entry.normalize is not None:
        known["normalize"] = Normalization(mean=contract.mean, std=contract.std)
    if contract is not None and contract.size is not None:
        known["interpolation"] = contract.interpolation
    inner = chain.chain if isinstance(chain, InputChain) else chain
    if isinstance(inner, ClassChain):
        known["classes"] = inner.outputs
    return entry.model_copy(update=known)


def trained_model(path: Path, data: Prepared, *, even_diverged: bool = False) -> Chain:
    """The network of a kdsteps checkpoint, frozen and in eval mode.

    Args:
        even_diverged: Whether to load a network whose training diverged.

    Raises:
        KdstepsError: The file is damaged, is not from kdsteps, or is for other classes or images,
            or the training diverged.
    """
    weights, header = read_network(path)
    diverged = header.get("diverged")
    if diverged and not even_diverged:
        raise KdstepsError(
            f"{path}: {Divergence(**diverged)}; train it again with a lower learning_rate or with "
            "clip_grad_norm"
        )
    made_for = (header["num_classes"], header["image_shape"])
    found = (len(data.class_names), list(data.image_shape))
    if made_for != found:
        raise KdstepsError(
            f"{path}: was made for {made_for[0]} classes of images {made_for[1]}, but the data set "
            f"has {found[0]} classes of {found[1]}; train it on this data set"
        )
    entry = model_in(header)
    plain = entry.model_copy(update={"options": architecture(entry.options)})
    chain = fresh_model(plain, data)
    load_weights(chain.plain(), weights, where=str(path), finite=not diverged)
    return chain.requires_grad_(False).eval()


def check_recipe(recipe: ViewSettings, images: ImageSplit, section: str) -> None:
    """Raise KdstepsError if a recipe does not fit the training images."""
    height, width = images.image_shape[1:]
    if problem := recipe.misfit(len(images), (height, width)):
        raise KdstepsError(f"{section}.{problem}")


def share_cores(network: nn.Module, data: Prepared, batch_size: int) -> int:
    """Use no more CPU cores than a batch keeps busy; return the MACs of one image."""
    cost = multiply_adds(network, torch.zeros(1, *data.image_shape, device=data.device))
    if data.device.type == "cpu":
        keep_busy(batch_size * cost)
    return cost


RESUME = Path(".kdsteps/resume")  # one file for each interrupted run


def save_model(
    path: Path,
    network: nn.Module,
    entry: Model,
    data: Prepared,
    settings: JobSettings,
    diverged: Divergence | None = None,
    untrained: Sequence[str] = (),
) -> None:
    """Write the deployed weights with everything needed to build the network again.

    Args:
        untrained: Names of weights that are random.
        diverged: Where the training diverged, if it did; the weights may be NaN then.
    """
    header: dict[str, Any] = {
        "model": entry.model_dump(),
        "num_classes": len(data.class_names),
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "settings": settings.as_json(),
    }
    if diverged is not None:
        header["diverged"] = asdict(diverged)
    if untrained:
        header["untrained"] = list(untrained)
    write_checkpoint(path, network.state_dict(), header)


def validator(
    student: nn.Module, part: ImageSplit, batch_size: int = 500
) -> Callable[[], dict[str, float]]:
    """A function that evaluates the student on the validation images, if there are labeled ones."""

    def validate() -> dict[str, float]:
        if not len(part) or int(part.labels[0]) == UNKNOWN:
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
    key = hashlib.sha256(repr([job.settings.as_text(), job.code.digest(roots)]).encode())
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
