"""Knowledge distillation on a GPU, resnet32x4 to resnet8x4 on images of CIFAR's size.

An epoch of kdsteps against a plain loop (DataLoader with worker processes, float32 with TF32 as
PyTorch ships it, contiguous, the teacher on the fly), each optimization alone, how much of the
card's measured matrix rate and memory bandwidth an epoch reaches, and how many students an hour of
the card trains if several share it, as processes or as seeds in one batched network. Images and
logits are random numbers: they cost the same.

    python benchmarks/bench_gpu.py --profile             shows where the time of a step goes
    python benchmarks/bench_gpu.py --profile reviewkd    the same for methods that need no plan
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _timing import ROOT, Row, table
from bench_step import _BATCH, _CLASSES, _RECIPE, _SHAPE, _network, _task
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset

from kdsteps.data.images import ImageBatch, ImageSplit
from kdsteps.methods.base import Method
from kdsteps.methods.kd import KD
from kdsteps.methods.labels import Labels
from kdsteps.models import Chain
from kdsteps.models.chain import HEAD
from kdsteps.models.cost import multiply_adds
from kdsteps.study import registry
from kdsteps.teachers.frozen import frozen
from kdsteps.teachers.logit_cache import write_outputs
from kdsteps.teachers.logits import LiveTeacher, TeacherOutputs
from kdsteps.training import recorded
from kdsteps.training.compilation import compile_student
from kdsteps.training.loop import Fit, views_of

_IMAGES, _PADDING, _MATRIX, _EPOCHS, _CACHED = 50_000, 4, 8192, 240, 2048
_TURNS = 3  # timed epochs of each variant
_STEPS = 200  # timed steps of batched seeds
_AGAINST = "the plain loop: DataLoader, float32, contiguous"


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    if not torch.cuda.is_available():
        yield Row("KD epoch on a GPU", _AGAINST, None, "not measured: no GPU", ">= 5", None)
        return
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    with recorded.own_stream(device):
        yield from _epochs(device)
    yield from _shared_card()
    yield from _batched_seeds()


def _epochs(device: torch.device) -> Iterator[Row]:
    torch.manual_seed(0)
    pixels = torch.randint(256, (_IMAGES, *_SHAPE), dtype=torch.uint8)
    labels = torch.arange(_IMAGES) % _CLASSES
    teacher = _network(32).requires_grad_(False).eval().to(device)
    plain = _seconds(_plain_epoch(teacher, pixels, labels, device), turns=2)
    variants = {
        "without CUDA graph": _student(device, compiled=False, graph=False),
        "compiled, without CUDA graph": _student(device, compiled=True, graph=False),
        "not compiled": _student(device, compiled=False, graph=True),
        "all": _student(device, compiled=True, graph=True),
    }
    times = {name: _seconds(_epoch_of(fit)) for name, fit in variants.items()}
    ours = statistics.median(times["all"])
    for name, found in times.items():
        gain = statistics.median(plain) / statistics.median(found)
        target, met = (">= 5 times faster", gain >= 5) if name == "all" else ("no target", None)
        detail = f"{_range(found)} against {_range(plain)}"
        yield Row(f"KD epoch on a GPU, {name}", _AGAINST, gain, detail, target, met)
    live = _student(device, compiled=True, graph=True, teacher=teacher)
    computed = _seconds(_epoch_of(live))
    caching = _caching_seconds(teacher, device)
    yield Row(
        "KD epoch with cached logits",
        "with the teacher on the fly",
        statistics.median(computed) / ours,
        f"{ours:.2f} s against {_range(computed)}; caching 162 views takes {caching:.0f} s, as "
        f"long as {caching / (statistics.median(computed) - ours):.0f} epochs save",
        "no target",
        None,
    )
    training = _fit(Labels(None, _network(32), _task()), device, compiled=True, graph=True)
    alone = _seconds(_epoch_of(training))
    rate, copied = _matrix_rate(device), _copy_rate(device)
    for what, network, seconds in (
        ("student", _network(8), ours),
        ("teacher", _network(32), statistics.median(alone)),
    ):
        yield _share(f"epoch of training the {what}", network, seconds, rate, copied, device)


def _share(
    what: str, network: Chain, seconds: float, rate: float, copied: float, device: torch.device
) -> Row:
    """How near an epoch is to what the card can do."""
    network = network.to(device)
    steps = _IMAGES // _BATCH
    macs = multiply_adds(network, torch.zeros(1, *_SHAPE, device=device))
    operations = 6 * macs * steps * _BATCH  # forward, twice as much backward; two per MAC
    numbers = _written(network, torch.zeros(_BATCH, *_SHAPE, device=device))
    # each output is written and read once forward, and so is its gradient; and it is read again
    moved = 2 * 5 * numbers * steps
    floor = max(operations / rate, moved / copied)
    return Row(
        what,
        "the card's measured rates",
        floor / seconds,
        f"{seconds:.2f} s; {operations / seconds / 1e12:.1f} of {rate / 1e12:.0f} TFLOP/s "
        f"bfloat16, {moved / seconds / 1e12:.2f} of {copied / 1e12:.2f} TB/s; at these rates it "
        f"would take {operations / rate:.2f} s for products, {moved / copied:.2f} s for memory",
        "no target",
        None,
    )


def _written(network: Chain, images: Tensor) -> int:
    """Numbers that the leaf modules of a network write in one forward pass."""
    total = 0

    def count(module: object, inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    handles = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return total


def _student(
    device: torch.device, *, compiled: bool, graph: bool, teacher: Chain | None = None
) -> Fit:
    """A run of KD; its logits are random ones on the device, or computed by a teacher."""
    method = KD(None, _network(8), _task())
    return _fit(method, device, compiled=compiled, graph=graph, teacher=teacher or "random")


def _fit(
    method: Method,
    device: torch.device,
    *,
    compiled: bool,
    graph: bool,
    teacher: Chain | str | None = None,
) -> Fit:
    half = torch.full((_SHAPE[0],), 0.5)
    pixels = torch.randint(256, (_IMAGES, *_SHAPE), dtype=torch.uint8, device=device)
    labels = torch.arange(_IMAGES, device=device) % _CLASSES
    split = ImageSplit(pixels, labels, half, half, memory_format=torch.channels_last)
    recipe = _RECIPE.model_copy(
        update={"crop_padding": _PADDING, "flip": True, "precision": "bfloat16"}
    )
    outputs: TeacherOutputs | None = None
    if isinstance(teacher, Chain):
        outputs = LiveTeacher(frozen(teacher, _SHAPE), _BATCH, precision="bfloat16")
    elif teacher:
        outputs = _Random(views_of(recipe).count, device)
    method.capturable = graph
    fit = Fit(method.to(device), split, recipe, seed=0, validate=dict, teacher=outputs)
    if compiled:
        compile_student(fit.method, fit._trial)
    return fit


class _Random:
    """Logits of every view of every image, on the device, as cached ones are."""

    waits = False

    def __init__(self, views: int, device: torch.device) -> None:
        shape = (_IMAGES, views, _CLASSES)
        self.rows = torch.randn(shape, device=device, dtype=torch.float16)

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        return {HEAD: self.rows[drawn.index, drawn.view].float()}


def _caching_seconds(teacher: Chain, device: torch.device) -> float:
    """Seconds to cache the logits of all views, from those of a few images."""
    half = torch.full((_SHAPE[0],), 0.5)
    pixels = torch.randint(256, (_CACHED, *_SHAPE), dtype=torch.uint8, device=device)
    labels = torch.zeros(_CACHED, dtype=torch.int64, device=device)
    split = ImageSplit(pixels, labels, half, half, memory_format=torch.channels_last)
    live = LiveTeacher(frozen(teacher, _SHAPE), _BATCH, precision="bfloat16")
    views = views_of(_RECIPE.model_copy(update={"crop_padding": _PADDING, "flip": True}))
    with tempfile.TemporaryDirectory() as folder:
        write_outputs(Path(folder, "warm.npy"), live, split, views)
        started = time.perf_counter()
        write_outputs(Path(folder, "key.npy"), live, split, views)
        return (time.perf_counter() - started) * _IMAGES / _CACHED


def _shared_card() -> Iterator[Row]:
    """Students per hour if several processes share the card, against one process alone."""
    alone = 0.0
    for processes in (1, 4, 8):
        what = f"students of {_EPOCHS} epochs per hour, {processes} at a time"
        seconds = _together(processes)
        if seconds is None:
            yield Row(what, "one at a time", None, "not measured: a process failed", "none", None)
            continue
        per_hour = 3600 * processes / (seconds * _EPOCHS)
        alone = alone or per_hour
        detail = f"{per_hour:.1f} per hour; {seconds:.2f} s for an epoch of each"
        yield Row(what, "one at a time", per_hour / alone, detail, "no target", None)


def _together(processes: int, epochs: int = 5) -> float | None:
    """Seconds of an epoch of each of some processes that share the card; None: one failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--member", folder, "--epochs", str(epochs)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        members = [subprocess.Popen(command, env=environment) for _ in range(processes)]
        try:
            while len(list(Path(folder).glob("ready-*"))) < processes:
                if any(member.poll() for member in members):
                    return None
                time.sleep(0.05)
            started = time.perf_counter()
            Path(folder, "go").touch()
            failed = sum(member.wait() != 0 for member in members)
            return None if failed else (time.perf_counter() - started) / epochs
        finally:
            for member in members:
                member.kill()


def _member(folder: Path, epochs: int) -> None:
    """Train a student at the same time as the other members."""
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    with recorded.own_stream(device):
        epoch = _epoch_of(_student(device, compiled=True, graph=True))
        epoch()
        torch.cuda.synchronize()
        Path(folder, f"ready-{os.getpid()}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.01)
        for _ in range(epochs):
            epoch()
        torch.cuda.synchronize()
    os._exit(0)  # without the seconds that closing CUDA takes


def _batched_seeds() -> Iterator[Row]:
    """Students per hour if torch.func trains several seeds as one network with batched weights."""
    device = torch.device("cuda")
    alone = 0.0
    for seeds in (1, 2, 4, 8):
        what = f"students of {_EPOCHS} epochs per hour, {seeds} seeds in one network"
        per_step = statistics.median(_seconds(_recorded_steps(_BatchedSeeds(seeds, device)), 5))
        per_hour = 3600 * seeds / (per_step / _STEPS * (_IMAGES // _BATCH) * _EPOCHS)
        alone = alone or per_hour
        detail = f"{per_hour:.1f} per hour; {1000 * per_step / _STEPS:.2f} ms for a step of all"
        yield Row(what, "one seed in it", per_hour / alone, detail, "no target", None)


class _BatchedSeeds:
    """Students of several seeds whose weights are batched, and their steps of KD with SGD."""

    def __init__(self, seeds: int, device: torch.device) -> None:
        students = [_network(8).to(device).train() for _ in range(seeds)]
        self.weights, buffers = stack_module_state(students)
        self.buffers = {name: value.bfloat16() for name, value in buffers.items()}
        self.momentum = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        self.network = students[0]
        shape = (seeds, _BATCH)
        self.images = torch.randn(*shape, *_SHAPE, device=device)
        self.labels = torch.randint(_CLASSES, shape, device=device)
        self.soft = torch.randn(*shape, _CLASSES, device=device).softmax(-1)
        self.gradients = vmap(grad(self._loss), randomness="different")

    def _loss(self, *step: Any) -> Tensor:
        weights, buffers, images, labels, soft = step
        half = {name: value.bfloat16() for name, value in weights.items()}  # autocast fails
        logits = functional_call(self.network, (half, buffers), (images.bfloat16(),)).float()
        loss = F.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean")
        return 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * loss

    def step(self) -> None:
        """Train every student by one step."""
        found = self.gradients(self.weights, self.buffers, self.images, self.labels, self.soft)
        with torch.no_grad():
            weights, momentum = list(self.weights.values()), list(self.momentum.values())
            gradients = [found[name] for name in self.weights]
            torch._foreach_add_(gradients, weights, alpha=5e-4)
            torch._foreach_mul_(momentum, 0.9)
            torch._foreach_add_(momentum, gradients)
            torch._foreach_add_(weights, momentum, alpha=-0.05)


def _recorded_steps(students: _BatchedSeeds) -> Callable[[], None]:
    """Steps of students as replays of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            students.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        students.step()

    def steps() -> None:
        for _ in range(_STEPS):
            graph.replay()

    return steps


def _profile(methods: Sequence[str]) -> None:
    """Print where the GPU's time of a step goes: of KD and a teacher, or of some methods."""
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    with recorded.own_stream(device):
        for compiled in (False, True):
            for what, fit in _profiled(methods, device, compiled):
                _profile_steps(what, fit, compiled)


def _profiled(
    methods: Sequence[str], device: torch.device, compiled: bool
) -> Iterator[tuple[str, Fit]]:
    task = replace(_task(), labels=torch.arange(_IMAGES) % _CLASSES)
    if not methods:
        yield "student", _student(device, compiled=compiled, graph=False)
        labels = Labels(None, _network(32), task)
        yield "teacher", _fit(labels, device, compiled=compiled, graph=False)
    for name in methods:
        teacher = frozen(_network(32).requires_grad_(False).eval(), _SHAPE).to(device)
        method = registry.load("methods", name)(teacher, _network(8), task)
        yield name, _fit(method, device, compiled=compiled, graph=False)


def _profile_steps(what: str, fit: Fit, compiled: bool) -> None:
    fit.method.train()
    orders = fit.split.orders(_BATCH, fit.views, fit.generator)
    batches = fit.split.batches(orders, fit.views)
    for _ in range(20):
        fit.take_step(next(batches))
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        for _ in range(20):
            fit.take_step(next(batches))
        torch.cuda.synchronize()
    print(f"\n{what}, {'compiled' if compiled else 'not compiled'}: 20 steps")
    found = profile.key_averages()
    print(found.table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=70))


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
        num_workers=min(8, len(os.sched_getaffinity(0))),
        pin_memory=True,
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


def _epoch_of(fit: Fit) -> Callable[[], None]:
    return lambda: fit._epoch(0.0)


def _seconds(epoch: Callable[[], object], turns: int = _TURNS) -> list[float]:
    """Seconds of some epochs after a warm-up epoch, including the work of the device."""
    found = []
    for _ in range(turns + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        epoch()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return found[1:]


def _range(seconds: list[float]) -> str:
    """Median, and the extremes in brackets."""
    middle = statistics.median(seconds)
    return f"{middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _matrix_rate(device: torch.device) -> float:
    """FLOP/s of large bfloat16 matrix products of random numbers, the best of a few."""
    matrix = torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16)
    product = torch.empty_like(matrix)
    return 2 * _MATRIX**3 / min(_seconds(lambda: torch.mm(matrix, matrix, out=product), 10))


def _copy_rate(device: torch.device) -> float:
    """Bytes per second read and written by a large copy, the best of a few."""
    source = torch.randn(2**29, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source), 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", nargs="*", metavar="METHOD", help="where time of a step goes")
    parser.add_argument("--shared", action="store_true", help="only students at the same time")
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.member:
        _member(args.member, args.epochs)
    elif args.profile is not None:
        _profile(args.profile)
    else:
        print(table([*_shared_card(), *_batched_seeds()] if args.shared else rows()))


if __name__ == "__main__":
    main()
