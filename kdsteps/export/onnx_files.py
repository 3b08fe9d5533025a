"""Networks as ONNX files that take uint8 images and contain all that prediction needs."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdsteps.export.description import INPUT, METADATA_KEY, OUTPUT, Description
from kdsteps.export.record import FormatError
from kdsteps.export.seal import DIGEST_KEY, PLACEHOLDER, sealed
from kdsteps.export.session import open_session
from kdsteps.models.input_contract import PIXEL_MAX

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCHES = (1, 3, 7)  # on which a file has to agree with torch before it counts as dynamic
_ROUGHLY = 1e-3  # relative to the largest logit: what a wrong graph exceeds and rounding does not
_COLORS = re.compile(r"\x1b\[[0-9;]*m")  # in the exporters' messages
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class FromPixels(nn.Module):
    """A network that takes images as they are stored: uint8 (N, H, W, C) to logits (N, K)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        """Args:
        network: Takes images (N, C, H, W) that are normalized with `mean` and `std`.
        mean, std: (C,) on the scale 0 to 1.
        """
        super().__init__()
        self.network = network
        self.register_buffer("scale", (1 / (PIXEL_MAX * std))[:, None, None], persistent=False)
        self.register_buffer("shift", (mean / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        logits: Tensor = self.network(pixels * self.scale - self.shift)
        return logits


def to_onnx(network: nn.Module, images: Tensor, description: Description) -> ModelProto:
    """A network as an ONNX model with a dynamic number of images.

    torch's exporters are tried one after the other until one result takes batches of other sizes
    and agrees with torch on them.

    Args:
        network: In eval mode, on the CPU; takes uint8 images (N, H, W, C).
        images: At least 7 of them, to try it on.
        description: Goes into the file.

    Raises:
        FormatError: No exporter makes such a file; the message has the reason of the first one.
    """
    reasons = []
    for attempt in _ATTEMPTS:
        try:
            with _quiet():
                model = attempt(network, images)
            _check_batches(model, network, images)
        except Exception as error:  # the exporters raise anything for what they do not support
            reasons.append(first_line(error))
        else:
            return finish(model, description)
    raise FormatError(f"torch cannot export this network to ONNX ({reasons[0]})")


def as_bytes(model: ModelProto) -> bytes:
    """The content of a file with its own digest; the same model results in the same bytes."""
    return sealed(model.SerializeToString(deterministic=True))


def finish(model: ModelProto, description: Description) -> ModelProto:
    """Remove what tools left in a model, describe it, and check it."""
    import onnx

    _clean(model)
    del model.metadata_props[:]
    described = {METADATA_KEY: description.as_json(), DIGEST_KEY: PLACEHOLDER}
    onnx.helper.set_model_props(model, described)
    onnx.checker.check_model(model)
    return model


def run(opened: Any, images: np.ndarray) -> np.ndarray:
    """Logits (N, K) of uint8 images (N, H, W, C)."""
    (logits,) = opened.run([OUTPUT], {INPUT: images})
    found: np.ndarray = logits
    return found


def relative_difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two arrays of logits, relative to the largest expected value."""
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(logits - expected).max()) / largest


def _by_name(network: nn.Module, images: Tensor) -> ModelProto:
    return _dynamo(network, images, torch.export.Dim("batch"))


def _automatic(network: nn.Module, images: Tensor) -> ModelProto:
    return _dynamo(network, images, torch.export.Dim.DYNAMIC)


def _dynamo(network: nn.Module, images: Tensor, batch: Any) -> ModelProto:
    program = torch.onnx.export(
        network,
        (images[:2],),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _traced(network: nn.Module, images: Tensor) -> ModelProto:
    import onnx

    with TemporaryDirectory() as folder:
        file = Path(folder, "traced.onnx")
        torch.onnx.export(
            network,
            (images[:2],),
            file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            dynamo=False,
        )
        return onnx.load(file)


_ATTEMPTS: Sequence[Callable[[nn.Module, Tensor], ModelProto]] = (_by_name, _automatic, _traced)


def _check_batches(model: ModelProto, network: nn.Module, images: Tensor) -> None:
    """Raise ValueError if a model fixes the number of images, or computes something else."""
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError("the number of images is fixed in the exported graph")
    opened = open_session(model.SerializeToString())
    with torch.inference_mode():
        for count in _BATCHES:
            expected = network(images[:count]).numpy()
            found = run(opened, images[:count].numpy())
            if found.shape != expected.shape:
                raise ValueError(f"{count} images result in logits of shape {found.shape}")
            if not relative_difference(found, expected) <= _ROUGHLY:
                raise ValueError(f"the logits of {count} images differ from those of torch")


def _clean(model: ModelProto) -> None:
    """Remove what the exporter notes about the source code, paths among it."""
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        named = [graph, *graph.node, *graph.value_info]
        for name in ("input", "output", "initializer"):
            named += [each for each in getattr(graph, name, ()) if not isinstance(each, str)]
        for each in named:
            each.doc_string = ""
            del each.metadata_props[:]
        for attribute in (a for node in graph.node for a in node.attribute):
            attribute.doc_string = ""
            graphs += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)
    model.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice to developers of networks."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The type of the error behind another one and the first line of its message."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLORS.sub("", str(error)).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
