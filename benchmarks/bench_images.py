"""Images per second: small images against a DataLoader, decoding and resizing against Pillow alone.

And the seconds that it takes to prepare a data set.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _timing import Row, paired, seconds, table
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdsteps.data.decoding import decode
from kdsteps.data.form import Form
from kdsteps.data.images import ImageSplit, Views
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.stages.prepare import run
from kdsteps.study.settings import Prepare

_IMAGES, _BATCH = 20_000, 64  # of CIFAR's size
_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_VIEWS = Views(crop_padding=4, flip=True)
_PREPARED = 60_000
_LIMIT_S = 60
_STORE = 256


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    images, labels = _sample()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch is made on one core, as a worker of a DataLoader makes it
    yield _against_loader(images, labels, torch.device("cpu"))
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        yield _against_loader(images, labels, torch.device("cuda"))
    for workers in sorted({1, len(os.sched_getaffinity(0))}):
        yield _decoding(375, 500, count=200, threads=workers, target=1.5)
        yield _decoding(3000, 4000, count=8, threads=workers, target=1)
    yield _prepare()


def _against_loader(images: Tensor, labels: Tensor, device: torch.device) -> Row:
    part = ImageSplit(images.to(device), labels.to(device), torch.tensor(_MEAN), torch.tensor(_STD))
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        for _ in part.shuffled(_BATCH, _VIEWS, generator):
            pass
        _wait(device)

    cores = len(os.sched_getaffinity(0))
    loaders = {workers: _loader(images, labels, workers) for workers in (0, cores)}
    epochs = {workers: _epoch(loader, device) for workers, loader in loaders.items()}
    for epoch in epochs.values():
        epoch()  # workers start once
    workers = min(epochs, key=lambda number: seconds(epochs[number]))
    pair = paired(epochs[workers], ours, repeats=3)
    speed = [f"{_IMAGES / time:,.0f}" for time in (pair.second, pair.first)]
    return Row(
        what=f"crop, flip, normalize on the {device.type.upper()}, {_BATCH} x 3 x 32 x 32",
        against=f"torchvision DataLoader, {workers} workers (the faster of 0 and {cores})",
        ratio=pair.ratio,
        detail=f"{speed[0]} against {speed[1]} images/s",
        target=">= 5 times faster",
        met=pair.ratio >= 5,
    )


def _epoch(loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> Callable[[], None]:
    def epoch() -> None:
        for images, labels in loader:
            images.to(device), labels.to(device)
        _wait(device)

    return epoch


def _loader(images: Tensor, labels: Tensor, workers: int) -> DataLoader[tuple[Tensor, int]]:
    dataset = _Plain(images, labels)
    return DataLoader(
        dataset,
        _BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


class _Plain(Dataset[tuple[Tensor, int]]):
    """Images as in torchvision's CIFAR classes, with the usual transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


def _decoding(height: int, width: int, *, count: int, threads: int, target: float) -> Row:
    """JPEGs to the stored size, against the same with Pillow's `resize`."""
    files = [_photo(seed, height, width) for seed in range(count)]
    with ThreadPoolExecutor(threads) as pool:

        def ours() -> None:
            list(pool.map(partial(decode, form=Form(3, store=_STORE)), files))

        def pillow() -> None:
            list(pool.map(_with_pillow, files))

        pair = paired(pillow, ours, repeats=9)
    speed = [f"{count / time:,.0f}" for time in (pair.second, pair.first)]
    return Row(
        what=f"JPEGs of {height} x {width}, stored at {_STORE} x {_STORE}, threads: {threads}",
        against="the same, resized by Pillow",
        ratio=pair.ratio,
        detail=f"{speed[0]} against {speed[1]} images/s",
        target=f">= {target} times faster",
        met=pair.ratio >= target,
    )


def _with_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        form = Form(3, store=_STORE)
        height, width = form.resized(image.height, image.width)
        image.draft(None, (2 * max(height, width),) * 2)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    top, left = (height - _STORE) // 2, (width - _STORE) // 2
    cropped = resized.crop((left, top, left + _STORE, top + _STORE))
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


def _photo(seed: int, height: int, width: int) -> bytes:
    """A JPEG with structure of every size, as photos have: a sum of enlarged noise."""
    random, photo = np.random.default_rng(seed), np.full((height, width, 3), 128.0, np.float32)
    for side in (4, 8, 16, 32, 64, 128):
        for channel in range(3):
            noise = Image.fromarray(random.standard_normal((side, side), dtype=np.float32))
            large = noise.resize((width, height), Image.Resampling.BICUBIC)
            photo[..., channel] += 30 / side**0.5 * np.asarray(large)
    return _encoded(photo.clip(0, 255).astype(np.uint8), "JPEG", quality=92)


def _prepare() -> Row:
    """Seconds from PNGs in Parquet to the stored array; the images are noise, the worst case."""
    logging.getLogger("kdsteps").setLevel(logging.ERROR)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "images.parquet")
        images, labels = _sample(_PREPARED)
        contents = [
            _encoded(image, "PNG", compress_level=1) for image in images.permute(0, 2, 3, 1).numpy()
        ]
        pq.write_table(pa.table({"image": contents, "label": labels.numpy()}), source)
        settings = PrepareSettings(
            kind="parquet", options={"train": str(source)}, prepare=Prepare()
        )
        names = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}
        outputs = {name: Path(folder, file) for name, file in names.items()}
        took = seconds(lambda: run(Job(settings, {}, outputs, threads=cores)))
    return Row(
        what=f"prepare {_PREPARED:,} images of 3 x 32 x 32 from PNGs in Parquet",
        against=f"{_LIMIT_S} s",
        ratio=took / _LIMIT_S,
        detail=f"{took:.1f} s on {cores} cores",
        target="<= 1",
        met=took <= _LIMIT_S,
    )


def _encoded(image: np.ndarray, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def _sample(count: int = _IMAGES) -> tuple[Tensor, Tensor]:
    """Noise (N, 3, 32, 32) as uint8, and labels (N,) of 100 classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(100, (count,), generator=generator)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(table(rows()))
