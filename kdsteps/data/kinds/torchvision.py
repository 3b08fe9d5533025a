"""Data sets that torchvision knows by name: CIFAR10, CIFAR100, FashionMNIST, SVHN and many more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from kdsteps.data.decoding import Content
from kdsteps.data.encoded import encoded_source
from kdsteps.data.form import Size, size_problem
from kdsteps.data.idx import find_idx, read_idx
from kdsteps.data.source import Source
from kdsteps.data.subset import thinned
from kdsteps.errors import KdstepsError, nearest
from kdsteps.files.home import expanded

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_IDX = {"MNIST": _DIGITS, "FashionMNIST": _CLOTHES, "KMNIST": _KANA}
# the argument `split` of each data set that has one
_SPLITS: Mapping[str, Mapping[str, str]] = {
    "Country211": {"train": "train", "validation": "valid", "test": "test"},
    "DTD": {"train": "train", "validation": "val", "test": "test"},
    "FGVCAircraft": {"train": "train", "validation": "val", "test": "test"},
    "Flowers102": {"train": "train", "validation": "val", "test": "test"},
    "Food101": {"train": "train", "test": "test"},
    "GTSRB": {"train": "train", "test": "test"},
    "Imagenette": {"train": "train", "test": "val"},
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "PCAM": {"train": "train", "validation": "val", "test": "test"},
    "RenderedSST2": {"train": "train", "validation": "val", "test": "test"},
    "STL10": {"train": "train", "test": "test"},
    "StanfordCars": {"train": "train", "test": "test"},
    "SVHN": {"train": "train", "test": "test"},
}
_BY_TRAIN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")
_UNDIVIDED = ("Caltech101", "Caltech256", "EuroSAT", "SEMEION")


def load(
    *,
    name: str,
    root: str = "data",
    download: bool = False,
    channels: Literal[1, 3] | None = None,
    store: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
    per_class: PositiveInt | None = None,
) -> Source:
    """A data set of torchvision, with its own training and test images.

    The files of MNIST, FashionMNIST and KMNIST are read from `<root>/<name>/raw`, compressed or
    not, and nothing is written there.

    Args:
        name: The name of its class in torchvision.
        root: Folder that has its files, or that they are downloaded to.
        download: Whether to download missing files.
        channels: 1 for gray, 3 for color; by default gray if all images are.
        store: Height and width that images are stored at: resized to cover it, center crop.
        image_size: Height and width that networks see; by default all of the stored image.
        resize: Pixels of the shorter side after resizing, or exactly [height, width].
        crop: Height and width of the center crop after `resize`.
        per_class: At most this many images of each class in each split.

    Raises:
        KdstepsError: There is no such data set, or its files are missing or cannot be downloaded.
    """
    if problem := options_problem(name=name, store=store, resize=resize, crop=crop):
        raise KdstepsError(f"datasets: {problem}")
    folder = expanded(root)
    found = _from_idx(folder, name, download) if name in _IDX else _opened(folder, name, download)
    labels = np.concatenate([one.labels for one in found.values()])
    split = np.repeat(
        np.array(list(found), dtype="<U10"), [len(one.labels) for one in found.values()]
    )
    images = [image for one in found.values() for image in one.images]
    names = [f"{key or name} {row}" for key, one in found.items() for row in range(len(one.labels))]
    rows = thinned(labels, split, per_class)

    def contents() -> Iterator[Content]:
        return (images[row] for row in rows)

    return encoded_source(
        contents,
        labels=labels[rows],
        class_names=next(iter(found.values())).class_names,
        split=split[rows],
        names=[names[row] for row in rows],
        channels=channels,
        resize=resize,
        crop=crop,
        store=store,
        image_size=image_size,
    )


def options_problem(
    *, name: str, store: Size | None = None, resize: Size | None = None, crop: Size | None = None
) -> str | None:
    """What is wrong with the name of a data set, or with options of the stored size; or None."""
    known = (*_BY_TRAIN, *_SPLITS, *_UNDIVIDED)
    if name in known:
        return size_problem(store=store, resize=resize, crop=crop)
    return f"name is {name!r}, which kdsteps does not read from torchvision" + nearest(
        name, sorted(known)
    )


@dataclass(frozen=True)
class _Split:
    """Images, which open when they are called, with their labels."""

    images: Sequence[Callable[[], Image.Image]]
    labels: np.ndarray
    class_names: tuple[str, ...]


def _from_idx(root: Path, name: str, download: bool) -> dict[str, _Split]:
    """The splits of MNIST and its relatives, downloaded by torchvision if they are missing."""
    folder = root / name / "raw"
    files = find_idx(folder)
    if not files:
        _opened(root, name, download)
        files = find_idx(folder)
    found = {}
    for split, (image_file, label_file) in files.items():
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise KdstepsError(
                f"{label_file}: has labels of shape {labels.shape} for images of shape "
                f"{images.shape} in {image_file.name}; download both again"
            )
        opened = [partial(Image.fromarray, image) for image in images]
        found[split] = _Split(opened, labels.astype(np.int64), _IDX[name])
    return found


def _opened(root: Path, name: str, download: bool) -> dict[str, _Split]:
    """The splits of a data set as torchvision reads it."""
    calls: dict[str, dict[str, Any]] = {"": {}}
    if name in _SPLITS:
        calls = {split: {"split": theirs} for split, theirs in _SPLITS[name].items()}
    elif name in _BY_TRAIN:
        calls = {"train": {"train": True}, "test": {"train": False}}
    import torchvision

    found = {}
    for split, arguments in calls.items():
        try:
            dataset = getattr(torchvision.datasets, name)(str(root), download=download, **arguments)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise KdstepsError(_missing(name, root, download, error)) from error
        labels = _labels(dataset)
        images = [partial(_image, dataset, row) for row in range(len(dataset))]
        found[split] = _Split(images, labels, _class_names(dataset, int(labels.max()) + 1))
    return found


def _missing(name: str, root: Path, download: bool, error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if download:
        return (
            f"datasets: {name} cannot be downloaded into {root} ({said}); without a "
            "connection, put its files there yourself"
        )
    return (
        f"datasets: {name} is not complete in {root} ({said}); put its files there, or set "
        "`download: true` if there is a connection"
    )


def _image(dataset: Any, row: int) -> Image.Image:
    image: Image.Image = dataset[row][0]
    return image


def _labels(dataset: Any) -> np.ndarray:
    """(N,), without opening the images where the data set has its labels in memory."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            found = np.asarray(getattr(dataset, attribute), dtype=np.int64)
            return found.reshape(len(dataset), -1)[:, 0]  # QMNIST has more than classes
    pairs = dataset._samples if hasattr(dataset, "_samples") else dataset
    return np.array([label for _, label in pairs], dtype=np.int64)


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    for attribute in ("classes", "categories"):
        names = tuple(
            name if isinstance(name, str) else str(name[0])  # Imagenette has synonyms
            for name in getattr(dataset, attribute, ())
        )
        if len(names) >= count:
            return names
    return tuple(map(str, range(count)))
