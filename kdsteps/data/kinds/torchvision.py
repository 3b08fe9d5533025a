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

from kdsteps.data.decoding import Content, EncodedImages, form_of
from kdsteps.data.idx import find_idx, read_idx
from kdsteps.data.source import Source
from kdsteps.data.subset import thinned
from kdsteps.errors import KdstepsError, nearest

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_IDX = {"MNIST": _DIGITS, "FashionMNIST": _CLOTHES, "KMNIST": _KANA}
# what torchvision calls the parts of those that are told apart by `split`
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
    resize: PositiveInt | None = None,
    crop: PositiveInt | None = None,
    per_class: PositiveInt | None = None,
) -> Source:
    """A data set of torchvision, with its own training and test parts.

    The files of MNIST, FashionMNIST and KMNIST are read as they lie in `<root>/<name>/raw`, packed
    or not, and nothing is written there.

    Args:
        name: As torchvision calls it.
        root: Folder that has its files, or gets them.
        download: Whether to fetch files that are not there.
        channels: 1 for grey, 3 for colour; None: grey if all images are.
        resize: Pixels of the shorter side that images are resized to.
        crop: Height and width of the middle that is kept.
        per_class: At most so many images of each class in each part.

    Raises:
        KdstepsError: There is no such data set, or its files are not there or cannot be fetched.
    """
    known = (*_BY_TRAIN, *_SPLITS, *_UNDIVIDED)
    if name not in known:
        hint = nearest(name, sorted(known))
        raise KdstepsError(f"datasets: name: kdsteps takes no {name!r} from torchvision{hint}")
    folder = Path(root).expanduser()
    parts = _from_idx(folder, name, download) if name in _IDX else _opened(folder, name, download)
    labels = np.concatenate([part.labels for part in parts.values()])
    split = np.repeat(np.array(list(parts), dtype="<U10"), [len(p.labels) for p in parts.values()])
    images = [image for part in parts.values() for image in part.images]
    names = [
        f"{part or name} {row}" for part, found in parts.items() for row in range(len(found.labels))
    ]
    kept = thinned(labels, split, per_class)

    def contents() -> Iterator[Content]:
        return (images[row] for row in kept)

    return Source(
        images=EncodedImages(contents, len(kept), form_of(contents, channels, resize, crop)),
        labels=labels[kept],
        class_names=next(iter(parts.values())).class_names,
        split=split[kept],
        names=tuple(names[row] for row in kept),
    )


@dataclass(frozen=True)
class _Part:
    """Images, to be opened when called, with their labels."""

    images: Sequence[Callable[[], Image.Image]]
    labels: np.ndarray
    class_names: tuple[str, ...]


def _from_idx(root: Path, name: str, download: bool) -> dict[str, _Part]:
    """The parts of MNIST and its kin, fetched by torchvision if they are not there."""
    folder = root / name / "raw"
    files = find_idx(folder)
    if not files:
        _opened(root, name, download)
        files = find_idx(folder)
    parts = {}
    for part, (image_file, label_file) in files.items():
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise KdstepsError(
                f"{label_file}: has labels of shape {labels.shape} for images of shape "
                f"{images.shape} in {image_file.name}; fetch both again"
            )
        opened = [partial(Image.fromarray, image) for image in images]
        parts[part] = _Part(opened, labels.astype(np.int64), _IDX[name])
    return parts


def _opened(root: Path, name: str, download: bool) -> dict[str, _Part]:
    """The parts of a data set as torchvision reads it."""
    calls: dict[str, dict[str, Any]] = {"": {}}
    if name in _SPLITS:
        calls = {part: {"split": split} for part, split in _SPLITS[name].items()}
    elif name in _BY_TRAIN:
        calls = {"train": {"train": True}, "test": {"train": False}}
    import torchvision

    found = {}
    for part, arguments in calls.items():
        try:
            dataset = getattr(torchvision.datasets, name)(str(root), download=download, **arguments)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise KdstepsError(_missing(name, root, download, error)) from error
        labels = _labels(dataset)
        images = [partial(_image, dataset, row) for row in range(len(dataset))]
        found[part] = _Part(images, labels, _class_names(dataset, int(labels.max()) + 1))
    return found


def _missing(name: str, root: Path, download: bool, error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if download:
        return (
            f"datasets: {name} cannot be fetched into {root} ({said}); where there is no network, "
            "put its files there by hand"
        )
    return (
        f"datasets: {name} is not whole under {root} ({said}); put its files there, or set "
        "`download: true` where there is a network"
    )


def _image(dataset: Any, row: int) -> Image.Image:
    image: Image.Image = dataset[row][0]
    return image


def _labels(dataset: Any) -> np.ndarray:
    """(N,), without opening the images where the data set keeps its labels at hand."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), dtype=np.int64).reshape(-1)
    pairs = dataset._samples if hasattr(dataset, "_samples") else dataset
    return np.array([label for _, label in pairs], dtype=np.int64)


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    for attribute in ("classes", "categories"):
        names = tuple(map(str, getattr(dataset, attribute, ())))
        if len(names) >= count:
            return names
    return tuple(map(str, range(count)))
