"""One epoch of knowledge distillation on a GPU, resnet32x4 to resnet8x4 on images of CIFAR's size.

kdsteps (images on the device, cached logits, bfloat16, channels last, compiled) against a plain
loop (DataLoader with worker processes, float32, contiguous, teacher on the fly),
and the fraction of the GPU's measured rate for matrix products that the student's training reaches.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from _timing import Row, table
from bench_step import _BATCH, _CLASSES, _RECIPE, _SHAPE, _network, _task
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdsteps.data.images import ImageSplit
from kdsteps.methods.kd import KD
from kdsteps.models import Chain
from kdsteps.models.cost import multiply_adds
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import LiveTeacher
from kdsteps.training.loop import Fit, views_of

_IMAGES, _PADDING, _MATRIX = 50_000, 4, 8192
_WHAT, _AGAINST = "KD epoch on a GPU", "the plain loop: DataLoader, float32, contiguous"


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    if not torch.cuda.is_available():
        yield Row(_WHAT, _AGAINST, None, "not measured: no GPU", ">= 5 times faster", None)
        return
    yield from on_device(torch.device("cuda"), _IMAGES, _PADDING)


def on_device(device: torch.device, num_images: int, padding: int) -> Iterator[Row]:
    """The rows for a device; one without a GPU only shows that the code runs."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    pixels = torch.randint(256, (num_images, *_SHAPE), dtype=torch.uint8)
    labels = torch.arange(num_images) % _CLASSES
    teacher = _network(32).requires_grad_(False).eval().to(device)
    plain = _seconds(_plain_epoch(teacher, pixels, labels, device), device)
    with tempfile.TemporaryDirectory() as folder:
        fit, writing = _ours(teacher, pixels, labels, padding, Path(folder))
        ours = _seconds(lambda: fit._epoch(0.0), device)
    gain, passes = plain / ours, fit.views.count
    yield Row(
        _WHAT,
        _AGAINST,
        gain,
        f"{ours:.2f} s against {plain:.1f} s; caching {passes} views took {writing:.0f} s, "
        f"as long as {writing / max(plain - ours, 1e-9):.1f} epochs save",
        ">= 5 times faster",
        gain >= 5,
    )
    image = torch.zeros(1, *_SHAPE, device=device)
    # forward, and twice as much backward; a multiply-add is two operations
    operations = 6 * multiply_adds(_network(8).to(device), image) * fit.steps_per_epoch * _BATCH
    rate, peak = operations / ours, _matrix_rate(device)
    yield Row(
        _WHAT,
        "the measured rate of bfloat16 matrix products",
        rate / peak,
        f"{rate / 1e12:.2f} of {peak / 1e12:.0f} TFLOP/s",
        "no target",
        None,
    )


def _ours(
    teacher: Chain, pixels: Tensor, labels: Tensor, padding: int, folder: Path
) -> tuple[Fit, float]:
    """A run that is ready for its first epoch, and the seconds that caching the logits took."""
    device = next(teacher.parameters()).device
    half = torch.full((_SHAPE[0],), 0.5)
    part = ImageSplit(
        pixels.to(device), labels.to(device), half, half, memory_format=torch.channels_last
    )
    on_gpu = device.type == "cuda"
    recipe = replace(
        _RECIPE,
        crop_padding=padding,
        flip=padding > 0,
        precision="bfloat16" if on_gpu else "float32",
        compile=on_gpu,
    )
    fast = frozen(teacher, _SHAPE)
    live = LiveTeacher(fast, _BATCH, precision=recipe.precision)
    started = time.perf_counter()
    kept = teacher_outputs(
        folder / "key.npy", live, part, views_of(recipe), Terms("always", 0, 8192)
    )
    writing = time.perf_counter() - started
    method = KD(fast, _network(8), _task()).to(device)
    fit = Fit(method, part, recipe, seed=0, validate=dict, teacher=kept)
    if recipe.compile:
        from kdsteps.training.compilation import compile_student

        compile_student(method, fit._trial)
    return fit, writing


class _Padded(Dataset[tuple[Tensor, int]]):
    """The data set of a plain loop: images cropped and mirrored one by one, by worker processes."""

    def __init__(self, pixels: Tensor, labels: Tensor, padding: int) -> None:
        self.pixels, self.labels, self.padding = pixels, labels.tolist(), padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = F.pad(self.pixels[number], (self.padding,) * 4)
        top, left = torch.randint(2 * self.padding + 1, (2,)).tolist()
        image = image[:, top : top + _SHAPE[1], left : left + _SHAPE[2]]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - 0.5) / 0.5, self.labels[number]


def _plain_epoch(
    teacher: Chain, pixels: Tensor, labels: Tensor, device: torch.device
) -> Callable[[], None]:
    student = _network(8).to(device).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        _Padded(pixels, labels, _PADDING),
        _BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> None:
        for images, targets in loader:
            images, targets = images.to(device), targets.to(device)
            with torch.no_grad():
                sure = F.softmax(teacher(images) / 4, dim=1)
            logits = student(images)
            soft = F.log_softmax(logits / 4, dim=1)
            loss = 0.1 * F.cross_entropy(logits, targets)
            loss = loss + 0.9 * 16 * F.kl_div(soft, sure, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def _seconds(epoch: Callable[[], None], device: torch.device) -> float:
    """Seconds of an epoch after a warm-up epoch, including the work of the device."""
    epoch()
    _wait(device)
    started = time.perf_counter()
    epoch()
    _wait(device)
    return time.perf_counter() - started


def _matrix_rate(device: torch.device) -> float:
    """FLOP/s of the largest matrix products, the best of a few."""
    size = _MATRIX if device.type == "cuda" else 256
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(table(rows()))
