"""The training loop: the same to the byte, also after a kill."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from _methods import CASES, class_of
from _networks import IMAGE_SHAPE, network
from _training import RECIPE, Stopped, fit_of, images, same_bytes, stopped_after, weights
from torch import nn

from kdsteps.data.images import Views
from kdsteps.errors import KdstepsError
from kdsteps.methods.labels import Labels
from kdsteps.models import build_model
from kdsteps.models.input import InputChain, InputContract
from kdsteps.models.memory_format import batch_format
from kdsteps.training.attributes import unchanged
from kdsteps.training.loop import Fit
from kdsteps.training.optimizers import keep_to_layout, make_schedule
from kdsteps.training.random_states import seed_all
from kdsteps.training.terms import _in_containers, check_modules

STEPS = 3  # of an epoch
BYTEWISE = ["labels", "kd", "block_kd", "feature_only", "crd"]


def trained(name: str = "kd", **given: object) -> Fit:
    fit = fit_of(name, **given)
    fit.run()
    return fit


@pytest.mark.parametrize("name", BYTEWISE)
def test_the_same_seed_gives_the_same_student_and_another_seed_another(name):
    first, second, other = trained(name), trained(name), trained(name, seed=1)
    assert same_bytes(weights(first), weights(second))
    assert first.history == second.history
    assert not same_bytes(weights(first), weights(other))


def test_every_epoch_is_in_the_history_with_each_term_and_their_sum():
    history = trained("kd", epochs=3, learning_rate=0.01, schedule="constant").history
    assert history.of("learning_rate") == [0.01] * 3
    assert set(history.name) == {"labels", "kd", "total", "learning_rate"}
    pairs = zip(history.of("labels"), history.of("kd"), strict=True)
    assert history.of("total") == pytest.approx([sum(pair) for pair in pairs])


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_epoch_of_a_whole_run_has_every_term_of_a_method(name, options):
    shorter = {option: 0.5 for option in class_of(name).lengths if options.get(option)}
    fit = trained(name, epochs=4, learning_rate=1e-3, options=dict(options) | shorter)
    assert fit.diverged is None and fit.epoch == 4
    assert set(fit.names) | {"total", "learning_rate"} == set(fit.history.name)
    assert all(len(fit.history.of(term)) == 4 for term in fit.names)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"mixup": 1.0},
        {"randaugment": 5},
        {"clip_grad_norm": 0.5},
        {"accumulate": 2, "ema": 0.9},
    ],
)
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bytes(tmp_path, options):
    alone = trained("kd", **options)
    for stop in range(1, 2 * STEPS + 1):
        state = tmp_path / f"{stop}.pt"
        cut_off = fit_of("kd", state=state, **options)
        with pytest.raises(Stopped):
            stopped_after(stop, cut_off).run()
        torch.manual_seed(99)  # as it may be in the process that goes on
        resumed = trained("kd", state=state, **options)
        assert same_bytes(weights(resumed), weights(alone)), stop
        assert resumed.history == alone.history


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
def test_what_a_network_draws_outside_of_torch_goes_on_as_well(tmp_path, draw):
    def run(state: Path | None = None, stop: int | None = None) -> Fit:
        fit = fit_of("labels", state=state)
        seed_all(0)
        hook = lambda module, inputs, logits: logits * draw()  # noqa: E731
        fit.method.student.register_forward_hook(hook)
        if stop is None:
            fit.run()
            return fit
        with pytest.raises(Stopped):
            stopped_after(stop, fit).run()
        return fit

    alone, again, state = run(), run(), tmp_path / "state.pt"
    assert same_bytes(weights(alone), weights(again))
    run(state, stop=4)
    assert same_bytes(weights(run(state)), weights(alone))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from _training import fit_of
import kdsteps.training.loop as training

save, done = training.save_state, [0]
def save_and_die(path, state):
    save(path, state)
    done[0] += 1
    if done[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
training.save_state = save_and_die
fit_of("block_kd", state=Path(sys.argv[1])).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, STEPS, STEPS + 1])
def test_a_run_killed_inside_and_between_epochs_goes_on_to_the_same_bytes(tmp_path, step):
    state = tmp_path / "state.pt"
    tests = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(state), str(step)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        check=False,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL
    assert state.exists()
    resumed = trained("block_kd", state=state)
    assert same_bytes(weights(resumed), weights(trained("block_kd")))


def test_what_a_run_saved_is_gone_once_it_says_so(tmp_path):
    fit = trained("labels", state=tmp_path / "state.pt")
    assert (tmp_path / "state.pt").exists()
    fit.forget()
    assert not (tmp_path / "state.pt").exists()


def test_a_torn_state_is_told_of_and_the_run_starts_afresh(tmp_path, caplog):
    state = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        stopped_after(4, fit_of("kd", state=state)).run()
    state.write_bytes(state.read_bytes()[:-100])
    resumed = trained("kd", state=state)
    assert "starts from its beginning" in caplog.text
    assert same_bytes(weights(resumed), weights(trained("kd")))


def test_the_state_of_another_run_is_not_gone_on_with(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    state = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        stopped_after(4, fit_of("kd", state=state, key="old", learning_rate=0.2)).run()
    resumed = trained("kd", state=state, key="new")
    assert "ignoring the saved state" in caplog.text
    assert same_bytes(weights(resumed), weights(trained("kd")))


def test_nothing_is_saved_before_it_is_due(tmp_path):
    trained("labels", state=tmp_path / "state.pt", seconds=600.0)
    assert not (tmp_path / "state.pt").exists()


def test_mixed_images_teach_fractions_and_others_labels():
    seen = []
    for mixup in (0.0, 1.0):
        fit = fit_of("labels", mixup=mixup, epochs=1)
        terms = fit.method.terms
        fit.method.terms = lambda batch, terms=terms: seen.append(batch) or terms(batch)
        fit.run()
    plain, mixed = seen[:STEPS], seen[STEPS:]
    assert all(batch.targets.ndim == 1 for batch in plain)
    assert all(batch.targets.sum(dim=1).allclose(torch.ones(8)) for batch in mixed)
    assert any(batch.targets.max() < 1 for batch in mixed)


def test_bfloat16_trains_weights_that_stay_float32():
    fit = trained("kd", precision="bfloat16")
    assert {value.dtype for value in fit.method.parameters()} == {torch.float32}
    assert not same_bytes(weights(fit), weights(trained("kd")))
    assert trained("kd").history.of("kd") == pytest.approx(fit.history.of("kd"), rel=0.2)


def test_convolutions_get_channels_last_and_transformers_do_not():
    wide = build_model("cifar_resnet", depth=8, widths=(16, 16, 16, 32), num_classes=5)
    assert batch_format(wide) is torch.channels_last
    assert batch_format(network("mobilenet")) is torch.channels_last
    assert batch_format(network("vit")) is torch.contiguous_format
    method = fit_of("labels").method
    convolutions = [module for module in method.modules() if isinstance(module, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)


TRAINED = """
import torch
from kdsteps.models import build_model
from kdsteps.models.memory_format import batch_format

torch.set_num_threads(1)
network = build_model("cifar_resnet", depth=8, widths=(4, 4, 8, 16), num_classes=5, image_size=64)
memory_format = batch_format(network)
network.to(memory_format=memory_format)
images = torch.randn(16, 3, 64, 64).contiguous(memory_format=memory_format)
for _ in range(5):
    network(images).square().sum().backward()
"""


def test_a_narrow_network_on_large_images_does_not_crash():
    """With the channels last, some CPUs and versions of torch write past the memory."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINED],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert batch_format(network("resnet")) is torch.contiguous_format


def test_without_a_compiler_a_sentence_is_said_and_the_network_trained_as_it_is(
    monkeypatch, caplog
):
    def no_compiler(function):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert same_bytes(weights(trained("kd", compile=True)), weights(trained("kd")))
    assert "failed (no C++ compiler); the network runs uncompiled" in caplog.text


@pytest.mark.parametrize("name", ["kd", "feature_only"])
def test_compiled_the_student_is_the_one_that_runs_and_starts_from_the_same_weights(
    monkeypatch, caplog, name
):
    caplog.set_level(logging.INFO, "kdsteps")
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda f: lambda *args, **kw: calls.append(1) or f(*args, **kw)
    )
    clipped = {"clip_grad_norm": 0.5}
    compiled, plain = trained(name, compile=True, **clipped), trained(name, **clipped)
    assert same_bytes(weights(compiled), weights(plain))
    assert len(calls) > 2 * STEPS
    assert "times as fast" in caplog.text


def test_a_student_that_resizes_its_images_is_compiled_for_methods_that_read_its_layers(
    monkeypatch, caplog
):
    monkeypatch.setattr(torch, "compile", lambda f: lambda *args, **options: f(*args, **options))
    fit = fit_of("fitnet")
    contract = InputContract.of_size((8, 8), "bilinear", IMAGE_SHAPE[0])
    student = InputChain(fit.method.student, contract)
    method = type(fit.method)(fit.method.teacher, student, fit.method.task)
    compiled = Fit(
        method, fit.split, fit.recipe.model_copy(update={"compile": True}), seed=0, validate=dict
    )
    compiled.run()
    assert "trace" in vars(student) and "skipped" not in caplog.text


@pytest.mark.slow
def test_really_compiled_a_run_gives_the_same_up_to_rounding(caplog):
    caplog.set_level(logging.INFO, "kdsteps")
    compiled = trained("labels", compile=True, epochs=1)
    if "the network runs uncompiled" in caplog.text:
        pytest.skip("there is no compiler")
    assert "times as fast" in caplog.text
    plain = trained("labels", epochs=1)
    assert compiled.history.of("labels") == pytest.approx(plain.history.of("labels"), rel=1e-3)


def test_fused_steps_are_left_where_a_gradient_lies_otherwise_than_its_weight():
    stepped = []
    for fused in (False, True):
        weight = torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        parameter = nn.Parameter(weight)
        optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
        parameter.grad = torch.arange(24.0).view(2, 3, 2, 2)
        keep_to_layout(optimizer)
        optimizer.step()
        stepped.append(parameter.detach())
    assert torch.equal(*stepped)


def rates(steps_per_epoch: int = 10, **recipe: object) -> list[float]:
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    fields = {"epochs": 4, "learning_rate": 1.0} | recipe
    schedule = make_schedule(optimizer, RECIPE.model_copy(update=fields), steps_per_epoch)
    found = []
    for _ in range(steps_per_epoch * fields["epochs"]):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_drops_tenfold_at_each_milestone():
    found = rates(schedule="steps", milestones=(1, 3), decay=0.1)
    assert found == pytest.approx([1.0] * 10 + [0.1] * 20 + [0.01] * 10)


def test_milestones_stay_where_they_are_behind_a_warm_up():
    found = rates(schedule="steps", milestones=(2,), decay=0.1, warmup=0.25)
    assert found[:10] == sorted(found[:10])
    assert found[0] < 0.2
    assert found[10:20] == pytest.approx([1.0] * 10)
    assert found[20:] == pytest.approx([0.1] * 20)


def test_a_cosine_falls_to_nothing_and_a_cycle_rises_first():
    cosine, cycle = rates(schedule="cosine"), rates(schedule="onecycle")
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[0] == 1.0
    assert cosine[-1] < 0.01
    assert max(cycle) == pytest.approx(1.0, rel=0.01)
    assert cycle.index(max(cycle)) == pytest.approx(12, abs=1)
    assert rates(schedule="constant") == [1.0] * 40


def test_images_are_all_seen_once_an_epoch_in_an_order_that_the_seed_decides():
    orders = []
    for seed in (0, 0, 1):
        seen = []
        fit = fit_of("labels", epochs=1)
        fit.generator.manual_seed(seed)
        terms = fit.method.terms
        fit.method.terms = lambda batch, terms=terms, seen=seen: (
            seen.extend(batch.index.tolist()) or terms(batch)
        )
        fit.run()
        orders.append(seen)
    assert sorted(orders[0]) == list(range(len(images())))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_one_cycle_leaves_the_momentum_of_the_recipe_alone(momentum):
    fit = trained("labels", optimizer="sgd", schedule="onecycle", momentum=momentum)
    assert fit.optimizer.param_groups[0]["momentum"] == momentum


def test_one_cycle_has_the_rates_and_moments_that_its_setting_describes():
    described = {"learning_rate": 1.0, "schedule": "onecycle", "epochs": 20, "optimizer": "adamw"}
    fit = fit_of("labels", **described)
    group, rates, moments = fit.optimizer.param_groups[0], [], []
    for _ in range(fit.recipe.epochs * fit.steps_per_epoch + 1):
        rates.append(group["lr"])
        moments.append(group["betas"][0])
        fit.optimizer.step()
        if len(rates) <= fit.recipe.epochs * fit.steps_per_epoch:
            fit.schedule.step()
    assert (rates[0], rates[-1]) == (pytest.approx(1 / 25), pytest.approx(1 / 250_000))
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert (moments[0], min(moments), moments[-1]) == pytest.approx((0.95, 0.85, 0.95), abs=0.001)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (lambda first: sum(first.values()), "a value of type Tensor; return a dictionary"),
        (lambda first: {}, "returned no loss; return at least one"),
        (lambda first: {"labels": 1.0}, "a value of type float as 'labels'"),
        (lambda first: first | {"total": torch.ones(())}, "named a loss 'total'"),
        (lambda first: first | {3: torch.ones(())}, "named a loss 3"),
        (lambda first: first | {"more": torch.ones(4)}, r"shape \(4,\) and type float32 as 'more'"),
        (lambda first: first | {"more": torch.ones(1)}, r"shape \(1,\)"),
        (lambda first: first | {"more": torch.tensor(1)}, "type int64"),
        (lambda first: {"a": first["labels"].detach()}, "depend on no weight in training"),
    ],
)
def test_losses_that_cannot_be_added_up_are_told_in_one_sentence(monkeypatch, terms, words):
    fit = fit_of("labels")
    first = fit.method.terms
    monkeypatch.setattr(fit.method, "terms", lambda batch: terms(first(batch)))
    with pytest.raises(KdstepsError, match=f"^methods: `terms` of Labels .*{words}"):
        fit.run()


def test_losses_that_change_their_names_between_steps_are_told(monkeypatch):
    fit = fit_of("labels")
    first, calls = fit.method.terms, iter(range(9))

    def terms(batch):
        found = first(batch)
        return found | ({"late": torch.zeros(())} if next(calls) == 2 else {})

    monkeypatch.setattr(fit.method, "terms", terms)
    words = "returned the losses labels, late after labels; return the same names in every step"
    with pytest.raises(KdstepsError, match=words):
        fit.run()


class Remembering(Labels):
    """Keeps a running mean, a count and a list in plain attributes, which all act on the loss."""

    def __init__(self, *given, **options) -> None:
        super().__init__(*given, **options)
        self.mean, self.steps, self.seen = None, 0, {"last": [torch.zeros(())]}
        self.fixed = torch.ones(3)

    def terms(self, batch):
        found = super().terms(batch)
        value = self.student(batch.images).mean()
        self.mean = value if self.mean is None else 0.9 * self.mean.detach() + 0.1 * value
        self.steps += 1
        self.seen["last"].append(value.detach())
        pull = (value - self.seen["last"][-2]).square() * self.steps
        return found | {"pull": pull + self.mean.square() * self.fixed.sum()}


def remembering(state: Path | None = None, **recipe) -> Fit:
    fit = fit_of("labels", state=state, **recipe)
    method = Remembering(None, fit.method.student, fit.method.task)
    torch.manual_seed(0)
    return Fit(
        method, fit.split, fit.recipe, seed=0, validate=dict, resume=fit.resume if state else None
    )


def test_state_in_plain_attributes_goes_on_as_well(tmp_path):
    alone = remembering()
    alone.run()
    for stop in range(1, 2 * STEPS):
        state = tmp_path / f"{stop}.pt"
        with pytest.raises(Stopped):
            stopped_after(stop, remembering(state)).run()
        resumed = remembering(state)
        resumed.run()
        assert resumed.method.steps == alone.method.steps == 2 * STEPS
        assert same_bytes(weights(resumed), weights(alone)), stop


def test_only_attributes_that_changed_are_saved():
    fit = remembering()
    assert fit.attributes.changed() == {}
    fit.take_step(next(fit.split.shuffled(8, Views(), torch.Generator().manual_seed(0))))
    assert fit.attributes.changed().keys() == {("", name) for name in ("mean", "steps", "seen")}


@pytest.mark.parametrize("fails", [False, True])
def test_state_in_attributes_begins_the_same_if_the_student_is_compiled(monkeypatch, fails):
    def compile_it(function):
        if fails:
            raise RuntimeError("no C++ compiler")
        return lambda *args, **options: function(*args, **options)

    monkeypatch.setattr(torch, "compile", compile_it)
    compiled, plain = remembering(compile=True), remembering()
    compiled.run()
    plain.run()
    assert compiled.method.steps == plain.method.steps == 2 * STEPS
    assert torch.equal(compiled.method.mean, plain.method.mean)
    assert same_bytes(weights(compiled), weights(plain))


def test_changes_of_attributes_and_buffers_are_undone():
    module, none = nn.Sequential(nn.Linear(2, 2)), object()
    module.seen, module.mean, module.later = [1], torch.zeros(2), None
    module[0].register_buffer("count", torch.zeros(()), persistent=False)
    fixed, buffer, mean = torch.ones(3), module[0].count, module.mean
    module.fixed = fixed
    with unchanged(module, torch.device("cpu")):
        module.seen.append(2)
        module.mean += 1
        module.later, module.new = torch.ones(1), 3
        module[0].count += 1
        module[0].count = torch.ones(())
    assert module.seen == [1] and module.later is None and module.fixed is fixed
    assert torch.equal(module.mean, torch.zeros(2)) and torch.equal(mean, torch.ones(2))
    assert getattr(module, "new", none) is none
    assert module[0].count is buffer and buffer == 0


def test_a_teacher_in_training_mode_is_told():
    fit = fit_of("kd")
    before = fit.method.terms

    def terms(batch):
        fit.method.teacher.train()
        return before(batch)

    fit.method.terms = terms
    with pytest.raises(KdstepsError, match="`terms` of KD put the teacher into training mode"):
        fit.run()


@pytest.mark.parametrize("kept", [[nn.Linear(2, 2)], {"a": nn.Linear(2, 2)}, {"a": [nn.ReLU6()]}])
def test_trainable_modules_that_are_not_registered_are_told(kept):
    method = fit_of("labels").method
    check_modules(method)
    method.projectors = kept
    if any(list(module.parameters()) for module in _in_containers(kept)):
        with pytest.raises(KdstepsError, match="keeps a Linear in `projectors`, where its weights"):
            check_modules(method)
        for module in _in_containers(kept):
            module.requires_grad_(False)
    check_modules(method)


def test_a_method_that_does_not_call_its_base_class_is_told():
    class Forgetful(Labels):
        def __init__(self, *given, **options) -> None:
            pass

    with pytest.raises(KdstepsError, match=r"Forgetful does not call its base class; begin its"):
        check_modules(Forgetful())
