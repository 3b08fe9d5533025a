"""One training step, resnet32x4 to resnet8x4, with the teacher cached, on the fly and in stones.

Measured are CPU seconds of one thread, all steps in turn: on a shared machine, wall-clock seconds
of several threads would measure the other users too.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from _timing import Row, table
from torch import Tensor, nn

from kdsteps.data.images import ImageBatch, ImageSplit, Views
from kdsteps.methods.base import Method, Task
from kdsteps.methods.block_kd import BlockKD
from kdsteps.methods.kd import KD
from kdsteps.methods.labels import Labels
from kdsteps.models import Chain, build_model
from kdsteps.plans.stones import plan_stones
from kdsteps.study.joints import pair_stages
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import Terms, teacher_outputs
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training.loop import Fit

_SHAPE, _CLASSES, _BATCH, _IMAGES = (3, 32, 32), 100, 64, 256
_WIDTHS = (32, 64, 128, 256)
_TURNS = 5
_RECIPE = Distil(batch_size=_BATCH)

Step = Callable[[], object]


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _rows()
    finally:
        torch.set_num_threads(threads)


def _rows() -> Iterator[Row]:
    torch.manual_seed(0)
    part = _images(torch.channels_last)
    teacher = _network(32).requires_grad_(False).eval()
    fast = frozen(teacher, _SHAPE)
    live = LiveTeacher(fast, _BATCH)
    with tempfile.TemporaryDirectory() as folder:
        # one view of each image: what a look-up costs does not depend on how many there are
        cached = teacher_outputs(
            Path(folder, "key.npy"), live, part, Views(), Terms("always", 0, 1024)
        )
        yield from _logits(teacher, fast, part, live, cached)
        yield from _stones(fast, part, cached)
    yield from _student(part)


def _logits(
    teacher: Chain, fast: Chain, part: ImageSplit, live: LiveTeacher, cached: TeacherOutputs
) -> Iterator[Row]:
    taken = in_turn(
        {
            "plain": _plain_step(teacher),
            "live": _step(KD(fast, _network(8), _task()), part, live),
            "cached": _step(KD(fast, _network(8), _task()), part, cached),
            "alone": _step(Labels(None, _network(8), _task()), part, None),
        }
    )
    detail = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians(taken).items())
    against = "a plain teacher on the fly: contiguous, not folded"
    gain = ratio(taken, "plain", "cached")
    yield Row("KD step, logits cached", against, gain, detail, ">= 2.2 times faster", gain >= 2.2)
    share = ratio(taken, "cached", "alone")
    floor = "the lower bound is 1"
    yield Row(
        "KD step, logits cached", "the student's own step", share, floor, "<= 1.10", share <= 1.10
    )
    gain = ratio(taken, "plain", "live")
    ends = ratio(taken, "plain", "alone")
    detail = f"the lower bound, without a teacher, would be {ends:.2f}"
    yield Row(
        "KD step, teacher on the fly", against, gain, detail, ">= 1.2 times faster", gain >= 1.2
    )


def _stones(fast: Chain, part: ImageSplit, cached: TeacherOutputs) -> Iterator[Row]:
    taken = in_turn(
        {
            "merged": _step(_block_kd(fast), part, cached),
            "separate": _step(_apart(_block_kd(fast)), part, cached),
            "from images": _step(_from_images(_block_kd(fast)), part, cached),
            "KD": _step(KD(fast, _network(8), _task()), part, cached),
        }
    )
    times = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians(taken).items())
    gain = ratio(taken, "from images", "merged")
    yield Row(
        "Block-KD step, stones merged",
        "separate networks for the stones, each starting from the images",
        gain,
        times,
        ">= 1.15 times faster",
        gain >= 1.15,
    )
    gain = ratio(taken, "separate", "merged")
    yield Row(
        "Block-KD step, stones merged",
        "separate passes through the teacher's blocks, with common student features",
        gain,
        "the lower bound is 1 on a CPU: the same number of multiplications",
        "never slower (noise 0.02)",
        gain >= 0.98,
    )
    multiple = ratio(taken, "merged", "KD")
    yield Row("Block-KD step, stones merged", "a KD step", multiple, times, "no target", None)


def _student(part: ImageSplit) -> Iterator[Row]:
    half = replace(_RECIPE, precision="bfloat16")
    contiguous = _images(torch.contiguous_format)
    taken = in_turn(
        {
            "float32": _step(Labels(None, _network(8), _task()), part, None),
            "bfloat16": _step(Labels(None, _network(8), _task()), part, None, half),
            "contiguous": _step(Labels(None, _network(8), _task()), contiguous, None),
        }
    )
    detail = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians(taken).items())
    for what, first in (("bfloat16", "float32"), ("float32", "contiguous")):
        name = "channels last" if what == "float32" else what
        gain = ratio(taken, first, what)
        yield Row(f"the student's own step, {name}", first, gain, detail, "no target", None)


def in_turn(steps: Mapping[str, Step], turns: int = _TURNS) -> dict[str, list[float]]:
    """CPU seconds of each step, all of them in every turn, after one call each to warm up."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            started = time.process_time()
            step()
            taken[name].append(time.process_time() - started)
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in taken.items()}


def ratio(taken: Mapping[str, list[float]], first: str, second: str) -> float:
    """The median over turns of what the first took, divided by the second."""
    pairs = zip(taken[first], taken[second], strict=True)
    return statistics.median(one / other for one, other in pairs)


def _network(depth: int) -> Chain:
    return build_model(
        "cifar_resnet", num_classes=_CLASSES, image_size=_SHAPE[1], depth=depth, widths=_WIDTHS
    )


def _images(memory_format: torch.memory_format) -> ImageSplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (_IMAGES, *_SHAPE), dtype=torch.uint8, generator=generator)
    half = torch.full((_SHAPE[0],), 0.5)
    labels = torch.arange(_IMAGES) % _CLASSES
    return ImageSplit(pixels, labels, half, half, memory_format=memory_format)


def _task(plan: dict[str, object] | None = None) -> Task:
    labels = torch.arange(_IMAGES) % _CLASSES
    return Task(_SHAPE, _CLASSES, labels, plan, _BATCH)


def _step(
    method: Method, part: ImageSplit, given: TeacherOutputs | None, recipe: Distil = _RECIPE
) -> Step:
    """A step of the training loop as it is."""
    fit = Fit(method, part, recipe, seed=0, validate=dict, teacher=given)
    method.train()
    batches = itertools.cycle(list(_drawn(part)))
    return lambda: fit.take_step(next(batches))


def _drawn(part: ImageSplit) -> Iterator[ImageBatch]:
    return part.shuffled(_BATCH, Views(), torch.Generator().manual_seed(0))


def _plain_step(teacher: Chain) -> Step:
    """A straightforward implementation of knowledge distillation."""
    student = _network(8).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = itertools.cycle(list(_drawn(_images(torch.contiguous_format))))

    def step() -> None:
        drawn = next(batches)
        with torch.no_grad():
            targets = teacher(drawn.images)
        logits = student(drawn.images)
        soft, sure = F.log_softmax(logits / 4, dim=1), F.softmax(targets / 4, dim=1)
        loss = 0.1 * F.cross_entropy(logits, drawn.labels)
        loss = loss + 0.9 * 16 * F.kl_div(soft, sure, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _block_kd(fast: Chain) -> BlockKD:
    student = _network(8)
    joints = pair_stages(fast, student)
    plan = plan_stones(fast, student, _SHAPE, joints, "conv_norm")
    return BlockKD(fast, student, _task({"stones": plan}))


def _apart(method: BlockKD) -> BlockKD:
    """The same method with one pass of the teacher's blocks for each stone."""
    stones = method.stones

    def separate(
        features: Mapping[str, Tensor], entering: Sequence[int] | None = None
    ) -> list[Tensor]:
        chosen = range(len(stones.connectors)) if entering is None else entering
        return [stones._alone(features, number) for number in chosen]

    stones.forward = separate  # type: ignore[method-assign]
    return method


def _from_images(method: BlockKD) -> BlockKD:
    """The same method with each stone as a separate network, whose front sees the images again."""
    stones, student = method.stones, method.student
    fronts = [student.front(layer) for layer in stones.student_layers]
    seen: list[Tensor] = []
    first = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def separate(
        features: Mapping[str, Tensor], entering: Sequence[int] | None = None
    ) -> list[Tensor]:
        images = seen[0]
        chosen = range(len(stones.connectors)) if entering is None else entering
        found = [
            stones._alone({stones.student_layers[number]: fronts[number](images)}, number)
            for number in chosen
        ]
        seen.clear()
        return found

    stones.forward = separate  # type: ignore[method-assign]
    return method


if __name__ == "__main__":
    print(table(rows()))
