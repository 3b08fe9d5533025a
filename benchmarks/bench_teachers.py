"""One KD step of resnet8x4 with the cached logits of one teacher and of four.

The teachers are small: a step reads their logits and does not run them. Measured are CPU seconds of
one thread, all steps in turn, as in `bench_step`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from _timing import Row, table
from bench_step import Step, in_turn, medians, ratio

from kdsteps.data.images import ImageBatch, ImageSplit, Views
from kdsteps.methods.base import Task
from kdsteps.methods.kd import KD
from kdsteps.models import Chain, build_model
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.combined_cache import CombinedTeachers, combined_outputs
from kdsteps.teachers.combining import Combining
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.loop import Fit

_SHAPE, _CLASSES, _BATCH, _IMAGES, _TEACHERS = (3, 32, 32), 100, 64, 256, 4
_TURNS, _LOOKUPS = 5, 20
_LIMIT = 1.05
_HOW = Combining("median", "standardized")  # the most expensive one


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(Path(folder))
    finally:
        torch.set_num_threads(threads)


def _rows(folder: Path) -> Iterator[Row]:
    part, views = _images(), Views()
    lives = [LiveTeacher(frozen(_network(seed, 8), _SHAPE), _BATCH) for seed in range(_TEACHERS)]
    terms = Terms("always", 0, 1024)
    files = [
        teacher_outputs(folder / f"{number}.npy", live, part, views, terms)
        for number, live in enumerate(lives)
    ]
    combined = combined_outputs(
        folder / "all.npy", lives, _HOW, part, views, members=lambda: files, keep="always"
    )
    each_time = CombinedTeachers(files, _HOW)
    batches = list(part.shuffled(_BATCH, views, torch.Generator().manual_seed(0)))
    steps = {
        "one": _step(part, files[0], batches),
        "four": _step(part, combined, batches),
        "each time": _step(part, each_time, batches),
    }
    taken = in_turn(steps, _TURNS)
    detail = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians(taken).items())
    four = f"KD step, logits of {_TEACHERS} teachers"
    found = ratio(taken, "four", "one")
    yield Row(
        f"{four}, combined in a file",
        "the logits of one teacher, cached",
        *(found, detail, f"<= {_LIMIT}", found <= _LIMIT),
    )
    lookups = in_turn(
        {
            "one": _lookup(files[0], batches),
            "four": _lookup(combined, batches),
            "each time": _lookup(each_time, batches),
        },
        20 * _TURNS,
    )
    detail = ", ".join(
        f"{name} {1e6 * value / _LOOKUPS:.0f} us" for name, value in medians(lookups).items()
    )
    found = ratio(lookups, "four", "one")
    yield Row(
        "the same, looking up a batch alone",
        "the logits of one teacher, cached",
        *(found, detail, f"<= {_LIMIT}", found <= _LIMIT),
    )
    yield Row(
        f"{four}, combined for each batch",
        "one teacher: looking up a batch alone",
        *(ratio(lookups, "each time", "one"), detail, "no target", None),
    )


def _step(part: ImageSplit, teacher: TeacherOutputs, batches: Sequence[ImageBatch]) -> Step:
    """A step of the training loop as it is."""
    task = Task(_SHAPE, _CLASSES, part.labels, None, _BATCH)
    method = KD(None, _network(0, 64).requires_grad_(True), task)
    fit = Fit(method, part, Distil(batch_size=_BATCH), seed=0, validate=dict, teacher=teacher)
    method.train()
    endless = itertools.cycle(batches)
    return lambda: fit.take_step(next(endless))


def _lookup(teacher: TeacherOutputs, batches: Sequence[ImageBatch]) -> Callable[[], object]:
    endless = itertools.cycle(batches)
    return lambda: [teacher(next(endless)) for _ in range(_LOOKUPS)]


def _network(seed: int, width: int) -> Chain:
    torch.manual_seed(seed)
    widths = (max(8, width // 2), width, 2 * width, 4 * width)
    chain = build_model(
        "cifar_resnet", num_classes=_CLASSES, image_size=_SHAPE[1], depth=8, widths=widths
    )
    return chain.requires_grad_(False).eval()


def _images() -> ImageSplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (_IMAGES, *_SHAPE), dtype=torch.uint8, generator=generator)
    half = torch.full((_SHAPE[0],), 0.5)
    labels = torch.arange(_IMAGES) % _CLASSES
    return ImageSplit(pixels, labels, half, half, memory_format=torch.channels_last)


if __name__ == "__main__":
    print(table(rows()))
