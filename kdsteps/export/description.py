"""The description of an exported network: its classes, the images it takes, its origin.

It is a JSON text in the metadata of an ONNX file, so that the file alone is enough to
predict with it. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kdsteps.data.form import Form, Size, pair
from kdsteps.errors import KdstepsError
from kdsteps.files.text import unprintable

METADATA_KEY = "kdsteps"
INPUT, OUTPUT = "images", "logits"
MAX_CLASSES = 1_000_000
MAX_SIDE = 10_000  # pixels of an image's height or width
_FORMAT = 1
_MAX_NUMBER = 1e6  # of mean and std, which are about 0.5; NaN is not below it either
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Description:
    """One exported network.

    Attributes:
        run: Pair, method and seed, as `resnet20-resnet8/kd/0`.
        network: Name of the student in the study.
        classes: One name for each output, in their order.
        channels: 1 for gray, 3 for color.
        image_size: Height and width in pixels of the images that the network was trained on, after
            the steps below: their center.
        resize, store, crop: How an image file becomes such an image, as in `Form`.
        mean, std: The normalization inside the network, for each channel on the scale 0 to 1.
        provenance: Where the network is from: version of kdsteps, commit, digests. No paths.
    """

    run: str
    network: str
    classes: Sequence[str]
    channels: Literal[1, 3]
    image_size: tuple[int, int]
    resize: Size | None
    store: Size | None
    crop: Size | None
    mean: Sequence[float]
    std: Sequence[float]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        """How image files are decoded."""
        return Form(self.channels, self.resize, self.store, self.crop)

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """Height and width of every decoded image; None: they depend on its file."""
        if self.form.cropped is None and isinstance(self.resize, Sequence):
            return pair(self.resize)
        return self.form.cropped

    def as_json(self) -> str:
        """The text for the metadata of a file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Description:
        """Read and check what `as_json` wrote.

        Args:
            where: The beginning of an error's sentence.

        Raises:
            KdstepsError: The text is damaged, or from a later version.
        """
        try:
            content = json.loads(text)
            found = content.pop("format")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise KdstepsError(
                f"{where}: its description is damaged; export the network again"
            ) from None
        if found != _FORMAT:
            raise KdstepsError(
                f"{where}: its description has format {_text(found)}, this version of kdsteps "
                f"reads {_FORMAT}; use the version that wrote it"
            )
        if content.keys() != _VALID.keys():
            different = ", ".join(sorted(content.keys() ^ _VALID.keys()))
            raise KdstepsError(
                f"{where}: its description has too few or too many keys ({_text(different)}); "
                "export the network again"
            )
        for name, is_valid in _VALID.items():
            if not is_valid(content[name]):
                raise KdstepsError(
                    f"{where}: its description has {name} {_text(content[name])}; export the "
                    "network again"
                )
        lists = {name: tuple(v) for name, v in content.items() if isinstance(v, list)}
        description = cls(**content | lists)
        if problem := _contradiction(description):
            raise KdstepsError(f"{where}: its description has {problem}; export the network again")
        return description


def _contradiction(description: Description) -> str | None:
    """What does not fit together in a description whose values are valid one by one."""
    for name in ("mean", "std"):
        if (length := len(getattr(description, name))) != description.channels:
            return f"{length} values of {name} for {description.channels} channels"
    stored, (height, width) = description.stored_size, description.image_size
    if stored is not None and (stored[0] < height or stored[1] < width):
        return f"images of {stored[0]} x {stored[1]} for a network of {height} x {width} pixels"
    return None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and unprintable(value) is None


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 2 <= len(value) <= MAX_CLASSES
        and all(map(_is_name, value))
        and len(set(value)) == len(value)
    )


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))


def _is_size(value: Any) -> bool:
    return value is None or _is_side(value) or _is_pair(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(each) in (int, float) and abs(each) <= _MAX_NUMBER for each in value
    )


_VALID: dict[str, Callable[[Any], bool]] = {
    "run": _is_name,
    "network": _is_name,
    "classes": _are_classes,
    "channels": lambda value: type(value) is int and value in (1, 3),
    "image_size": _is_pair,
    "resize": _is_size,
    "store": _is_size,
    "crop": _is_size,
    "mean": _are_numbers,
    "std": lambda value: _are_numbers(value) and all(each > 0 for each in value),
    "provenance": lambda value: isinstance(value, dict),
}
"""By field of `Description`: whether a value from JSON is one of it."""


def _text(value: Any) -> str:
    """The beginning of a value, in characters that can be printed."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
