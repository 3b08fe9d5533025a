"""One training in two processes on this machine's cores, against the floor.

The floor is the step of one process with half the batch, which is what each of the two has to
compute. Both are timed in turn in both processes at the same time, each with one thread, so that
the other one is busy with the same work.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _timing import Row, paired, table

from kdsteps.data.images import ImageSplit
from kdsteps.jobs.job import Job
from kdsteps.methods.base import Task
from kdsteps.methods.labels import Labels
from kdsteps.models import build_model
from kdsteps.study.training_settings import Distil
from kdsteps.training.loop import Fit
from kdsteps.training.processes import ALONE, Processes, in_processes

_SHAPE, _CLASSES, _BATCH = (3, 32, 32), 100, 64
_TURNS = 15
_RECIPE = Distil(batch_size=_BATCH, gpus=2)


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    torch.set_num_threads(1)
    norms = {"of each process": (False, 1.15), "synchronized": (True, 2.0)}
    for what, (synchronized, limit) in norms.items():
        recipe = _RECIPE.model_copy(update={"sync_batchnorm": synchronized})
        with tempfile.TemporaryDirectory() as folder:
            job = Job(recipe, {"folder": Path(folder)}, {}, threads=2)
            in_processes(_measure, job, recipe)
            found = json.loads(Path(folder, "found.json").read_text())
        yield Row(
            f"step of two gloo processes, batch norm {what}",
            f"the step of one process with half the batch, {_BATCH // 2} images",
            found["ratio"],
            f"two processes {1000 * found['both']:.0f} ms, floor {1000 * found['floor']:.0f} ms; "
            "the lower bound is 1",
            f"<= {limit:.2f}",
            found["ratio"] <= limit,
        )


def _measure(job: Job[Distil], processes: Processes) -> None:
    recipe = job.settings
    alone = recipe.model_copy(update={"batch_size": _BATCH // 2, "gpus": 1, "sync_batchnorm": True})
    both = paired(_step(recipe, processes), _step(alone, ALONE), repeats=_TURNS)
    if processes.first:
        found = {"both": both.first, "floor": both.second, "ratio": both.ratio}
        (job.inputs["folder"] / "found.json").write_text(json.dumps(found))


def _step(recipe: Distil, processes: Processes) -> Callable[[], object]:
    """A training step of resnet8x4 on images of this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build_model(
        "cifar_resnet",
        depth=8,
        widths=[32, 64, 128, 256],
        num_classes=_CLASSES,
        in_channels=_SHAPE[0],
        image_size=_SHAPE[1],
    )
    images = torch.randint(256, (_BATCH, *_SHAPE), dtype=torch.uint8)
    half = torch.full((_SHAPE[0],), 0.5)
    labels = torch.arange(_BATCH) % _CLASSES
    split = ImageSplit(images, labels, half, half, memory_format=torch.channels_last)
    method = Labels(None, network, Task(_SHAPE, _CLASSES, labels))
    fit = Fit(method, split, recipe, seed=0, validate=dict, processes=processes)
    method.train()
    order = split.orders(recipe.batch_size, fit.views, fit.generator)[0]
    drawn = split.made(processes.order(order, 1), fit.views)
    return lambda: fit.take_step(drawn)


if __name__ == "__main__":
    print(table(rows()))
