"""The params.yaml that `kdsteps init` proposes for the images it found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from kdsteps.cli.networks import Network
from kdsteps.errors import KdstepsError
from kdsteps.study.messages import MAX_NAME
from kdsteps.study.settings import Prepare

if TYPE_CHECKING:
    from kdsteps.data.overview import Overview

_TEMPLATES = Path(__file__).parent / "templates"
TEACHER = Network({"family": "cifar_resnet", "depth": 14})
# 16 channels or more: with fewer, the backward pass of a strided 1x1 convolution crashes in oneDNN
# 3.12 (PyTorch 2.13, AVX-512, channels last).
STUDENT = Network({"family": "cifar_resnet", "depth": 8, "widths": [16, 16, 16, 32]})
_LARGEST = 64  # pixels, for networks that are trained from scratch on a CPU
_PUBLISHED_SIZE = 224  # pixels, for networks with weights from elsewhere
_BUDGET = 14_000  # images of 32 x 32 pixels for one training: a minute on a core
_EPOCHS = 8, 60
_DRAWN = {
    True: """\
# Fractions: of all images for testing, and of the others for validation.
prepare: {test: 0.2, validation: 0.1}

""",
    False: """\
# The fraction of the images for validation; nothing is tested without labels.
prepare: {validation: 0.1}

""",
}
_NO_SPLITS = {
    True: "No folders or lists for training and testing: images are drawn at random for each.",
    False: "No folder or list for validation: images are drawn at random for it.",
}
_BATCHES = 64, 32  # if an epoch has enough steps
_SMALLEST = 16
_STEPS = 8


def proposed_study(path: str, found: Overview, teacher: Network, student: Network) -> str:
    """The text of params.yaml for some images.

    Args:
        path: Of the images, as the study names them.
        found: What is there.
        teacher, student: The networks.

    Raises:
        KdstepsError: The images have only one class, or no labels while the teacher has no weights,
            or the networks are for images with different numbers of channels.
    """
    if found.labeled and len(found.class_counts) < 2:
        only = ", ".join(map(_printable, found.class_counts))
        folders = ": put the images of each class into a folder of its name"
        raise KdstepsError(
            f"--images: {path!r} has only one class ({only}); at least two are needed"
            f"{folders * (found.kind == 'folder')}"
        )
    if not found.labeled and not teacher.has_weights:
        raise KdstepsError(
            f"--images: {path!r} has no labels, so the student learns the features of a trained "
            "teacher; name one, such as --teacher timm:resnet18 or a file of weights, or put the "
            "images of each class into a folder of its name"
        )
    if not found.labeled:
        used_as_it_is = dict(teacher.entry) | {"train": {"epochs": 0}}
        teacher = replace(teacher, entry=used_as_it_is)
    networks = {"teacher": teacher, "student": student}
    size = stored_size(found, networks.values())
    count, epochs, batch = training_length(found, size)
    pixels = size if isinstance(size, int) else min(size)
    recipe = {"epochs": epochs, "batch_size": batch, "schedule": "cosine", "warmup": 0.1}
    shown = {"crop_padding": max(1, min(4, pixels // 8)), "flip": True}
    name = _entry_name(path)
    source = {"kind": found.kind} | found.options | _channels(found, networks)
    source |= {} if found.labeled else {"labels": "none"}
    text = "study.yaml" if found.labeled else "unlabeled.yaml"
    return Template((_TEMPLATES / text).read_text(encoding="utf-8")).substitute(
        found="\n".join(f"# {line}" for line in described(found)),
        name=_flow(name),
        source=_block(source, indent=4),
        size=_flow(size),
        prepare="" if any(found.counts) else _DRAWN[found.labeled],
        models="\n".join(_model(*item, size) for item in networks.items()),
        count=f"{count:,}",
        train=_train(teacher, recipe | _rate(teacher) | shown),
        distil=_flow(recipe | _rate(student, labeled=found.labeled) | shown)[1:-1],
        title=_flow(f"{name}: a small network learns from a large one"),
    )


def described(found: Overview) -> list[str]:
    """What was found, in sentences."""
    sizes = sorted(found.sizes, key=lambda size: size[0] * size[1])
    small, large = (f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
    pixels = small if small == large else f"{small} to {large}"
    splits = ", ".join(f"{count:,} for {name}" for name, count in found.counts.items() if name)
    kind = "gray images" if found.gray else "images"
    where = "Training images" if splits else "Images"
    if found.labeled:
        names = [_printable(name) for name in found.class_counts]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        low, high = min(found.class_counts.values()), max(found.class_counts.values())
        per_class = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        lines = [
            f"{found.num_images:,} {kind} of {len(names)} classes: {some}.",
            f"{where} per class: {per_class}. Height x width: {pixels}.",
        ]
    else:
        lines = [f"{found.num_images:,} {kind} without labels. Height x width: {pixels}."]
    lines.append(f"Splits: {splits}." if splits else _NO_SPLITS[found.labeled])
    if found.broken:
        name, reason = next(iter(found.broken.items()))
        example = f"{_printable(name)} ({reason})"
        lines.append(f"Cannot be read: {len(found.broken)} of a sample, such as {example}.")
    return lines


def training_length(found: Overview, size: int | list[int]) -> tuple[int, int, int]:
    """The number of training images, epochs, and images per batch."""
    prepare = Prepare()  # whose defaults are those of the texts above
    count = found.counts.get("train", found.counts.get("", 0))
    if "test" not in found.counts and found.labeled:
        count = round(count * (1 - prepare.test))
    if "validation" not in found.counts:
        count = round(count * (1 - prepare.validation))
    height, width = (size, size) if isinstance(size, int) else size
    least, most = _EPOCHS
    epochs = round(_BUDGET / (max(1, count) * height * width / 32**2))
    batch = next(
        (each for each in _BATCHES if each * _STEPS <= count), min(_SMALLEST, max(1, count // 2))
    )
    return count, min(most, max(least, epochs)), batch


def stored_size(found: Overview, networks: Iterable[Network]) -> int | list[int]:
    """The size to store images at.

    It is that of a network from a file, else their own size if they have one and it is small, else
    a square. Networks with weights from elsewhere mostly take larger images.
    """
    listed = list(networks)
    known = [network.size for network in listed if network.size is not None]
    if known:
        return known[0][0] if known[0][0] == known[0][1] else list(known[0])
    published = any(network.has_weights for network in listed)
    largest = _PUBLISHED_SIZE if published else _LARGEST
    if len(set(found.sizes)) == 1 and max(found.sizes[0]) <= largest:
        height, width = found.sizes[0]
        return height if height == width else [height, width]
    side = int(median(min(size) for size in found.sizes))
    return largest if side >= largest else max(8, side // 8 * 8)


def _channels(found: Overview, networks: Mapping[str, Network]) -> dict[str, Any]:
    """The option `channels` of the data set, where a network needs other images than there are."""
    wanted = {role: each.channels for role, each in networks.items() if each.channels is not None}
    if len(set(wanted.values())) > 1:
        raise KdstepsError(
            f"--teacher and --student: the weights are for images of {wanted['teacher']} and "
            f"{wanted['student']} channels; take files for the same images"
        )
    needed = next(iter(wanted.values()), None)
    return {} if needed in (None, 1 if found.gray else 3) else {"channels": needed}


def _model(role: str, network: Network, size: int | list[int]) -> str:
    """An entry of `models`, after what there is to know about it."""
    entry = dict(network.entry)
    own = None if network.size is None else list(network.size)
    if own is not None and own != (size if isinstance(size, list) else [size, size]):
        entry.setdefault("image_size", own)
    notes = [f"  # {_printable(note)}" for note in network.notes]
    return "\n".join([*notes, f"  {role}: {_flow(entry)}"])


def _train(teacher: Network, recipe: Mapping[str, Any]) -> str:
    """The section `train`; nothing for a teacher that is used as it is."""
    return f"train: {_flow(dict(recipe))}\n" if teacher.trained else ""


def _rate(network: Network, *, labeled: bool = True) -> dict[str, Any]:
    """Optimizer and learning rate, where the defaults are not for such a training."""
    if not labeled:
        return {"optimizer": "adamw", "learning_rate": 0.001}
    return {"learning_rate": 0.01} if network.has_weights else {}


def _entry_name(path: str) -> str:
    """A name for params.yaml after the folder or file of the images."""
    words = re.sub("[^A-Za-z0-9_-]+", "-", Path(os.path.abspath(path)).stem).strip("-_")
    return words[:MAX_NAME] or "images"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _block(values: Mapping[str, Any], indent: int) -> str:
    """One line for each key."""
    return "\n".join(f"{' ' * indent}{key}: {_flow(value)}" for key, value in values.items())


def _flow(value: Any) -> str:
    """A value as YAML on one line, quoted where YAML 1.1 and 1.2 could read it differently."""
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=100_000
    )
    return text.strip()[1:-1]
