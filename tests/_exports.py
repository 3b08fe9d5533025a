"""Tiny exported students, made without a study."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from kdsteps.export.description import INPUT, METADATA_KEY, OUTPUT, Description
from kdsteps.export.record import FILES
from kdsteps.export.seal import DIGEST_KEY, PLACEHOLDER, sealed

CLASSES = ("cat", "dog", "a class with a long name", "Ünïcode", "location")


class Network(nn.Module):
    """Random, but a function of every pixel; takes uint8 (N, 16, 12, 3)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 8 * 6, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.head(self.conv(pixels).relu().flatten(1)) * 5
        return logits


def described(**changes: Any) -> Description:
    """The description of such a network, for color images of 16 x 12 pixels."""
    values: dict[str, Any] = {
        "run": "pair/kd/0",
        "network": "small",
        "classes": CLASSES,
        "channels": 3,
        "image_size": (16, 12),
        "resize": None,
        "store": (16, 12),
        "crop": None,
        "mean": (0.5,) * changes.get("channels", 3),
        "std": (0.25,) * changes.get("channels", 3),
        "provenance": {"version": "0.1.0"},
    }
    return Description(**values | changes)


@cache
def exported() -> tuple[Network, onnx.ModelProto]:
    """A network in eval mode, and its ONNX model with the description of `described`."""
    description, network = described(), Network().eval()
    images = torch.zeros(2, *description.image_size, description.channels, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (images,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return network, with_description(program.model_proto, description.as_json())


def with_description(model: onnx.ModelProto, text: str | None) -> onnx.ModelProto:
    """The same model with another description; None: without one."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.metadata_props[:]
    entries = {DIGEST_KEY: PLACEHOLDER} | ({} if text is None else {METADATA_KEY: text})
    onnx.helper.set_model_props(changed, entries)
    return changed


def as_file(model: onnx.ModelProto) -> bytes:
    return sealed(model.SerializeToString(deterministic=True))


def write(folder: Path, model: onnx.ModelProto) -> Path:
    """The folder, with the model as its file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES["onnx"]).write_bytes(as_file(model))
    return folder
