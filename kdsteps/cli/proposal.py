"""The params.yaml that `kdsteps init` proposes for the images it found."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.messages import MAX_NAME
from kdsteps.study.settings import Prepare

if TYPE_CHECKING:
    from kdsteps.data.overview import Overview

_TEMPLATE = Path(__file__).parent / "templates" / "params.yaml"
_TEACHER = {"family": "cifar_resnet", "depth": 14}
# 16 channels or more: with fewer, the backward pass of a strided 1x1 convolution crashes in oneDNN
# 3.12 (PyTorch 2.13, AVX-512, channels last).
_STUDENT = {"family": "cifar_resnet", "depth": 8, "widths": [16, 16, 16, 32]}
_LARGEST = 64  # pixels, for networks that are trained from scratch on a CPU
_PUBLISHED_SIZE = 224  # pixels, for pretrained networks
_BUDGET = 20_000  # images of 32 x 32 pixels for one training: minutes on two cores
_EPOCHS = 10, 60
_PREPARE = """\
# Fractions: of all images for testing, and of the others for validation.
prepare: {test: 0.2, validation: 0.1}

"""
_BATCHES = 64, 32  # if an epoch has enough steps
_SMALLEST = 16
_STEPS = 8


def proposed_study(
    path: str, found: Overview, teacher: str | None = None, student: str | None = None
) -> str:
    """The text of params.yaml for some images.

    Args:
        path: Of the images, as the study names them.
        found: What is there.
        teacher, student: Networks, `FAMILY:NAME`, a family or a name that timm knows; None: small
            residual networks.

    Raises:
        KdstepsError: There is no such network.
    """
    networks = {
        "teacher": _network(teacher, "--teacher") or _TEACHER,
        "student": _network(student, "--student") or _STUDENT,
    }
    pretrained = any(network.get("pretrained") for network in networks.values())
    size = _size(found, _PUBLISHED_SIZE if pretrained else _LARGEST)
    count, epochs, batch = training_length(found, size)
    pixels = size if isinstance(size, int) else min(size)
    recipe = {"epochs": epochs, "batch_size": batch, "schedule": "cosine", "warmup": 0.1}
    recipe |= {"learning_rate": 0.01} if pretrained else {}
    recipe |= {"crop_padding": max(1, min(4, pixels // 8)), "flip": True}
    name = _entry_name(path)
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        found="\n".join(f"# {line}" for line in described(found)),
        name=_flow(name),
        source=_block({"kind": found.kind} | found.options, indent=4),
        size=_flow(size),
        prepare="" if any(found.counts) else _PREPARE,
        models=_block(networks, indent=2),
        count=f"{count:,}",
        recipe=_flow(recipe)[1:-1],
        title=_flow(f"{name}: a small network learns from a large one"),
    )


def described(found: Overview) -> list[str]:
    """What was found, in sentences."""
    names = [_printable(name) for name in found.class_counts]
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    low, high = min(found.class_counts.values()), max(found.class_counts.values())
    per_class = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    sizes = sorted(found.sizes, key=lambda size: size[0] * size[1])
    small, large = (f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
    pixels = small if small == large else f"{small} to {large}"
    splits = ", ".join(f"{count:,} for {name}" for name, count in found.counts.items() if name)
    kind = "gray images" if found.gray else "images"
    where = "Training images" if splits else "Images"
    lines = [
        f"{found.num_images:,} {kind} of {len(names)} classes: {some}.",
        f"{where} per class: {per_class}. Height x width: {pixels}.",
        f"Splits: {splits}." if splits else "There are no splits.",
    ]
    if found.broken:
        name, reason = next(iter(found.broken.items()))
        example = f"{_printable(name)} ({reason})"
        lines.append(f"Cannot be read: {len(found.broken)} of a sample, such as {example}.")
    return lines


def training_length(found: Overview, size: int | list[int]) -> tuple[int, int, int]:
    """The number of training images, epochs, and images per batch."""
    prepare = Prepare()  # whose defaults are those of the text above
    count = found.counts.get("train", found.counts.get("", 0))
    if "test" not in found.counts:
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


def _size(found: Overview, largest: int) -> int | list[int]:
    """The size to store images at: their own if they have one and it is small, or a square."""
    if len(set(found.sizes)) == 1 and max(found.sizes[0]) <= largest:
        height, width = found.sizes[0]
        return height if height == width else [height, width]
    side = int(median(min(size) for size in found.sizes))
    return largest if side >= largest else max(8, side // 8 * 8)


def _network(name: str | None, option: str) -> dict[str, Any] | None:
    """The entry of `models` for a network on the command line."""
    if name is None:
        return None
    if Path(name).is_file():
        raise KdstepsError(
            f"{option}: {name} is a file of weights, which does not say what network it is for; "
            "name the network here and add `checkpoint:` to it in params.yaml"
        )
    family, colon, rest = name.partition(":")
    if not colon and name in registry.names("models"):
        return {"family": name}
    if colon and family not in registry.names("models"):
        hint = nearest(family, registry.names("models"))
        raise KdstepsError(f"{option}: there is no model family {family!r}{hint}")
    if not colon:
        family, rest = "timm", name
    if family == "timm" and not re.match("hf[-_]hub:|local[-_]dir:", rest):
        import timm

        if not timm.is_model(rest):
            raise KdstepsError(f"{option}: timm has no {rest!r}{nearest(rest, timm.list_models())}")
    return {"family": family} | ({"name": rest, "pretrained": True} if rest else {})


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
