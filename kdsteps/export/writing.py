"""Write a student in every format, as far as each can express it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdsteps.export.checking import Checks, with_notes
from kdsteps.export.description import Description
from kdsteps.export.onnx_files import FromPixels, as_bytes, to_onnx
from kdsteps.export.record import ExportedFile, Format, FormatError
from kdsteps.export.runners import OnnxRunner, TorchRunner
from kdsteps.files.text import write_bytes, write_text
from kdsteps.models.chain import Chain
from kdsteps.models.checkpoints import load_weights
from kdsteps.models.input import InputChain, Normalize, Resize
from kdsteps.models.wrapped import ClassChain

_TRIED = 7  # images that a conversion is tried on


@dataclass(frozen=True)
class Student:
    """A trained student, and how it is built.

    Attributes:
        chain: Takes images that are normalized with `mean` and `std`; in eval mode, on the CPU.
        rebuild: Builds it again, with other weights.
        family: Its family, with its `options`.
        mean, std: (C,) of the data set, on the scale 0 to 1.
        description: Of what it takes and returns.
        samples: Training images to calibrate int8 on, uint8 (N, H, W, C).
    """

    chain: Chain
    rebuild: Callable[[], Chain]
    family: str
    options: Mapping[str, Any]
    mean: Tensor
    std: Tensor
    description: Description
    samples: np.ndarray

    @property
    def resize(self) -> Resize | None:
        """The step that resizes its images; None if it has none."""
        return self.chain.resize if isinstance(self.chain, InputChain) else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its network's outputs, if these are not the classes in their order."""
        inner = self.chain.chain if isinstance(self.chain, InputChain) else self.chain
        return inner.outputs if isinstance(inner, ClassChain) else ()

    def from_pixels(self, chain: Chain | None = None) -> nn.Module:
        """The student, or a copy of it, as it takes images as they are stored."""
        return FromPixels(chain or self.chain, self.mean, self.std).eval()


def write_formats(
    student: Student,
    formats: Sequence[str],
    places: Mapping[str, Path],
    checks: Checks,
    *,
    int8: bool,
) -> list[ExportedFile]:
    """Write files; one that cannot be written has the reason in its entry.

    Args:
        formats: "onnx", "safetensors" and "timm".
        places: The path of each format.
        int8: Whether the ONNX file is also written in 8-bit integers.
    """
    found: list[ExportedFile] = []
    if "onnx" in formats:
        found += _write_onnx(student, places, checks, int8=int8)
    if "safetensors" in formats or "timm" in formats:
        found += _write_weights(student, formats, places, checks)
    return found


def _write_onnx(
    student: Student, places: Mapping[str, Path], checks: Checks, *, int8: bool
) -> list[ExportedFile]:
    models: list[Any] = []

    def plain() -> ExportedFile:
        images = torch.from_numpy(np.resize(student.samples, (_TRIED, *student.samples.shape[1:])))
        models.append(to_onnx(student.from_pixels(), images, student.description))
        return _onnx_entry("onnx", models[0], places, checks)

    def small() -> ExportedFile:
        from kdsteps.export.int8 import quantized

        model = quantized(models[0], student.samples, student.description)
        return with_notes(_onnx_entry("int8", model, places, checks), found[0])

    found = [_entry("onnx", places, plain)]
    if int8:
        missing = "there is no ONNX file in float32 to make it from"
        accepted = found[0].name is not None
        found.append(_entry("int8", places, small) if accepted else _refused("int8", missing))
    return found


def _write_weights(
    student: Student, formats: Sequence[str], places: Mapping[str, Path], checks: Checks
) -> list[ExportedFile]:
    """Write safetensors, and what timm needs besides; without either, nothing is left of it."""
    weights = _entry("safetensors", places, lambda: _weights(student, places, checks))
    if "timm" not in formats:
        return [weights]
    if weights.name is None:
        folder = _refused("timm", weights.reason)
    else:
        folder = _entry("timm", places, lambda: _timm(student, places, checks))
    if "safetensors" in formats:
        return [weights, folder]
    if folder.name is None:
        places["safetensors"].unlink(missing_ok=True)
    return [folder]


def _onnx_entry(
    format: Format, model: Any, places: Mapping[str, Path], checks: Checks
) -> ExportedFile:
    content = as_bytes(model)
    write_bytes(places[format], content)
    return checks.file(format, places[format], OnnxRunner(content))


def _weights(student: Student, places: Mapping[str, Path], checks: Checks) -> ExportedFile:
    """Plain safetensors, which a network built again loads."""
    from safetensors.torch import load_file, save

    state = student.chain.plain().state_dict()
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    write_bytes(places["safetensors"], save(tensors, metadata={"format": "pt"}))
    again = student.rebuild()
    file = places["safetensors"]
    load_weights(again.plain(), load_file(file), where=str(file), finite=False)
    runner = TorchRunner(student.from_pixels(again.eval()))
    return checks.file("safetensors", places["safetensors"], runner)


def _timm(student: Student, places: Mapping[str, Path], checks: Checks) -> ExportedFile:
    from tempfile import TemporaryDirectory

    from kdsteps.export.timm_folder import load_timm, put_folder, timm_config

    if student.family != "timm":
        raise FormatError(f"the student is of the family {student.family}, not a network of timm")
    resize = student.resize
    if student.outputs:
        raise FormatError(
            "the network has other outputs than the classes of the data set, which are selected "
            "after it; timm would return all of them"
        )
    steps: list[nn.Module] = [] if resize is None else [Resize(resize.size, resize.interpolation)]
    steps.append(Normalize(student.description.mean, student.description.std))
    take = nn.Sequential(*steps)
    some = torch.from_numpy(student.samples[:_TRIED]).permute(0, 3, 1, 2).contiguous()
    text = timm_config(
        student.chain.plain().eval(),
        places["safetensors"],
        take(some),
        options=student.options,
        class_names=student.description.classes,
        mean=student.description.mean,
        std=student.description.std,
        interpolation="bilinear" if resize is None else resize.interpolation,
    )
    write_text(places["timm"], text)
    with TemporaryDirectory() as folder:
        put_folder(folder, places["safetensors"], text)
        runner = TorchRunner(_Plain(take, load_timm(folder)), "timm")
    found = checks.file("timm", places["timm"], runner)
    together = sum(places[name].stat().st_size for name in ("timm", "safetensors"))
    return replace(found, bytes=together)


class _Plain(nn.Module):
    """A network with the steps that its folder's `config.json` describes."""

    def __init__(self, take: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.take, self.network = take, network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.take(images.permute(0, 3, 1, 2)))
        return logits


def _entry(
    format: Format, places: Mapping[str, Path], write: Callable[[], ExportedFile]
) -> ExportedFile:
    """What a function writes, or the reason why it does not; then there is no file."""
    try:
        return write()
    except FormatError as error:
        places[format].unlink(missing_ok=True)
        return _refused(format, str(error))


def _refused(format: Format, reason: str) -> ExportedFile:
    return ExportedFile(format=format, name=None, reason=reason)
