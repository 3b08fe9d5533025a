"""No step of any method mixes devices or waits for the GPU, tested on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _fake_cuda import Watch, backward, batch_on_cuda, fake_cuda, method_on_cuda, on_cuda
from _methods import CASES, DEFAULT_PAIR, NUM_IMAGES, PAIRS, batch_of, make, same, terms_of
from _networks import ENTRIES, SMALL
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from kdsteps.data.images import ImageBatch
from kdsteps.methods.base import Batch, Method
from kdsteps.methods.kd import KD
from kdsteps.models.precision import autocast
from kdsteps.study import registry
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.logits import CachedOutputs, LiveTeacher
from kdsteps.training.optimizers import make_optimizer
from kdsteps.training.precision import gradient_scaler
from kdsteps.training.recorded import WatchedBatch

METHODS = registry.names("methods")
NOT_CAPTURABLE = ("block_kd", {"stones_per_step": 1})  # the CPU draws which modules run
READING = ("kd", "block_kd", "ofd", "reviewkd")  # networks as a whole, in blocks, before a ReLU
NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)
CUT_PAIRS = [
    ("large resnet", "torchvision mobilenet"),
    ("timm vit", "timm resnet"),
    ("timm resnet", "timm vit"),
]


def check(
    monkeypatch: pytest.MonkeyPatch, method: Method, *precisions: str, clip: bool = False
) -> None:
    """Take a step in each precision, as the loop takes them."""
    with fake_cuda(monkeypatch):
        method = method_on_cuda(method)
        for precision in precisions:
            watch = Watch()
            terms = step(method, precision, watch, clip)
            assert watch.waits == []
            assert {term.device.type for term in terms.values()} == {"cuda"}
            assert any(name == "aten._fused_sgd_" for name, _ in watch.ran)


def step(method: Method, precision: str, watch: Watch, clip: bool) -> dict[str, Tensor]:
    optimizer = make_optimizer(method, Distil())
    scaler = gradient_scaler(precision, torch.device("cuda"))
    assert scaler.is_enabled() == (precision == "float16")
    batch = batch_on_cuda(batch_of())
    with watch:
        with autocast(precision, "cuda"):
            terms = method.terms(batch)
        backward(scaler.scale(torch.stack(list(terms.values())).sum()))
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return terms


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_step_stays_on_the_gpu_and_never_waits_for_it(name, options, monkeypatch):
    check(monkeypatch, make(name, **options), "float32", "bfloat16", "float16")


def test_nor_does_clipping_the_gradient(monkeypatch):
    check(monkeypatch, make("kd"), "float32", "bfloat16", "float16", clip=True)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS[1:], ids=" to ".join)
@pytest.mark.parametrize("name", METHODS)
def test_nor_does_a_step_of_any_method_with_other_layouts(name, pair, monkeypatch):
    check(monkeypatch, make(name, pair), "float16")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in SMALL if name != "vgg classic"])  # 32 pixels
@pytest.mark.parametrize("name", READING)
def test_nor_does_a_step_between_networks_of_one_family(name, family, monkeypatch):
    kind, options = SMALL[family]
    monkeypatch.setitem(ENTRIES, family, {"family": kind, "options": options})
    check(monkeypatch, make(name, (family, family)), "float16")


@pytest.mark.slow
@pytest.mark.parametrize("pair", CUT_PAIRS, ids=" to ".join)
@pytest.mark.parametrize("name", READING)
def test_nor_does_a_step_with_networks_of_other_libraries(name, pair, monkeypatch):
    check(monkeypatch, make(name, pair), "float16")


@pytest.mark.parametrize("layers", [False, True], ids=["logits", "features"])
def test_a_teacher_is_not_waited_for_live_or_cached_on_the_gpu(layers, monkeypatch):
    teacher = make("kd").teacher
    with fake_cuda(monkeypatch):
        live = LiveTeacher(teacher._apply(on_cuda), 3, layers=teacher.stages if layers else ())
        cached = CachedOutputs.__new__(CachedOutputs)  # without its file
        batch = batch_on_cuda(batch_of())
        drawn = ImageBatch(batch.images, batch.labels, batch.index, batch.view, batch.targets)
        with Watch() as watch:
            computed = live(drawn)
            row = sum(output[0].numel() for output in computed.values())
            rows = torch.zeros(NUM_IMAGES, 1, row, dtype=torch.float16, device="cuda")
            cached.live, cached._on_device = live, rows
            read = cached(drawn)
    assert watch.waits == []
    assert {name: read[name].shape for name in read} == {
        name: computed[name].shape for name in computed
    }


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x * torch.tensor(2.0),
        pytest.param(
            lambda x: torch.tensor([1.0, 2.0, 3.0], device="cuda"),
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="with a GPU, torch copies before it can be seen"
            ),
        ),
        lambda x: torch.zeros(3).to("cuda"),
        lambda x: torch.randperm(3).to("cuda"),
    ],
)
def test_what_waits_for_the_gpu_is_noticed(wait: Callable[[Tensor], Any], monkeypatch):
    with fake_cuda(monkeypatch):
        x = on_cuda(torch.zeros(3))
        with Watch() as watch:
            try:
                wait(x)
            except NEEDS_NUMBERS:
                return
    assert watch.waits


def test_mixed_devices_are_noticed(monkeypatch):
    with fake_cuda(monkeypatch), pytest.raises(RuntimeError, match="device"):
        on_cuda(torch.zeros(3)) + torch.zeros(3)


def operations(method: Method, batch: Batch, epoch: int) -> tuple[list[Any], bool]:
    """What the terms of an epoch compute, numbers included, and whether they read the epoch."""
    watched = WatchedBatch.of(replace(batch, epoch=epoch, drawn=method.draw(batch.index)))
    with Watch() as watch:
        method.terms(watched)
    return watch.ran, watched.epoch_read


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_capturable_step_is_the_same_operations_unless_it_reads_the_epoch(
    name, options, monkeypatch
):
    method = make(name, **options)
    assert method.capturable
    with fake_cuda(monkeypatch):
        method, batch = method_on_cuda(method), batch_on_cuda(batch_of())
        ran = {epoch: operations(method, batch, epoch) for epoch in (0, 1, 99, 100, 239)}
    first, _ = ran[0]
    for epoch, (found, epoch_read) in ran.items():
        assert not any("rand" in name or name == "aten.uniform" for name, _ in found)
        assert epoch_read or found == first, epoch
    grows = name in ("dkd", "reviewkd") or "classifier_after" in options
    grows |= (name, options) == ("sld", {})  # its second term starts at 0.625 of the run
    assert any(found != first for found, _ in ran.values()) == grows


def test_stones_drawn_on_the_cpu_make_a_step_that_cannot_be_captured(monkeypatch):
    name, options = NOT_CAPTURABLE
    method = make(name, **options)
    assert not method.capturable
    with fake_cuda(monkeypatch):
        method = method_on_cuda(method)
        with Watch() as watch, pytest.raises(NEEDS_NUMBERS):
            method.terms(batch_on_cuda(batch_of()))
    assert watch.waits[0].startswith("aten.randperm")


def test_a_subclass_is_capturable_only_if_it_says_so():
    class Waiting(KD):
        """It may look at a number where kd does not."""

    class Capturable(KD):
        capturable = True

    assert (KD.capturable, Waiting.capturable, Capturable.capturable) == (True, False, True)


@pytest.mark.parametrize(("name", "options"), [*CASES, NOT_CAPTURABLE], ids=str)
def test_what_a_method_draws_before_a_step_is_what_it_draws_in_it(name, options):
    before, within = make(name, DEFAULT_PAIR, **options), make(name, DEFAULT_PAIR, **options)
    for number in range(2):
        batch = batch_of(number)
        drawn = replace(batch, drawn=before.draw(batch.index))
        assert same(terms_of(before, drawn), terms_of(within, batch))
