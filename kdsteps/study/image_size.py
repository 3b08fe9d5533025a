"""The shape of a data set's images, as far as params.yaml says it."""

from __future__ import annotations

from typing import Any

from kdsteps.study.settings import Dataset

ImageShape = tuple[int, int, int]
"""(C, H, W)."""

_PUBLISHED = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST"), (1, 28, 28)),
    **dict.fromkeys(("CIFAR10", "CIFAR100", "SVHN"), (3, 32, 32)),
}
"""Of data sets of torchvision whose images all have one size."""


def declared_shape(dataset: Dataset) -> ImageShape | None:
    """The shape of a data set's images; None if it is known only when they are prepared.

    Where the channels are not declared, images count as color.
    """
    options: dict[str, Any] = dataset.options
    if dataset.kind == "digits":
        return 1, options["size"], options["size"]
    known = _PUBLISHED.get(options["name"]) if dataset.kind == "torchvision" else None
    size = _size(options)
    if size is None and known is not None and options["resize"] is None:
        size = known[1:]
    if size is None:
        return None
    return options.get("channels") or (3 if known is None else known[0]), *size


def _size(options: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width that options of a kind of data set for networks."""
    for name in ("image_size", "store", "crop"):
        if (value := options.get(name)) is not None:
            return _pair(value)
    value = options.get("resize")
    return _pair(value) if isinstance(value, list | tuple) else None


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
