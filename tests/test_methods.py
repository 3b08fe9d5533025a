"""Laws that bind every method: each module of kdsteps/methods is found here by itself."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _methods import (
    BATCH_SIZE,
    DEFAULT_PAIR,
    PAIRS,
    batch_of,
    class_of,
    count_calls,
    fingerprint,
    make,
    same,
    step,
    terms_of,
)
from _networks import ENTRIES, NUM_CLASSES, build, teacher_of
from torch import Tensor

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Batch, Method
from kdsteps.study import registry

METHODS = registry.names("methods")
LOGIT_METHODS = [name for name in METHODS if class_of(name).wants == "logits"]
LAYER_METHODS = [name for name in METHODS if class_of(name).wants == "layers"]


def test_the_papers_methods_and_all_baselines_are_there():
    logits = "kd lskd dkd dist loca uld ckd sld contrastive_logits"
    layers = "fitnet at sp rkd crd reviewkd simkd ofd semckd block_kd feature_only embedding"
    assert {"labels", *logits.split(), *layers.split()} <= set(METHODS)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("name", METHODS)
def test_terms_are_named_finite_and_teach_the_students_first_block(name, pair, device):
    method = make(name, pair, device=device)
    terms = method.terms(batch_of(device=device))
    assert terms
    for term, value in terms.items():
        assert term.isidentifier()
        assert value.shape == ()
        assert value.isfinite(), term
    torch.stack(list(terms.values())).sum().backward()
    first = next(iter(method.student.parameters()))
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_is_untouched_and_no_part_of_the_method(name):
    teacher = teacher_of(DEFAULT_PAIR[0])
    before, modes = fingerprint(teacher), [module.training for module in teacher.modules()]
    method = make(name, teacher=teacher)
    for number in range(2):
        step(method, batch_of(number))
    method.deployed().train()
    assert fingerprint(teacher) == before
    assert [module.training for module in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())
    theirs = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in tensors(method.state_dict())}
    assert not theirs & {value.data_ptr() for value in method.parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_terms_and_weights(name):
    first, second = make(name), make(name)
    for number in range(2):
        assert same(step(first, batch_of(number)), step(second, batch_of(number)))
    assert fingerprint(first.student) == fingerprint(second.student)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_on_from_its_state_as_if_never_interrupted(name):
    left_alone = make(name)
    step(left_alone, batch_of(0))
    resumed = make(name, seed=3)
    resumed.load_state_dict({key: copied(value) for key, value in left_alone.state_dict().items()})
    for number in (1, 2):
        assert same(step(left_alone, batch_of(number)), step(resumed, batch_of(number)))


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_deployed_can_be_built_again_and_holds_nothing_else(name, pair):
    method = make(name, pair)
    step(method, batch_of())
    deployed = method.deployed().eval()
    entry = method.deployed_entry(ENTRIES[pair[1]], ENTRIES[pair[0]])
    again = build(json.loads(json.dumps(entry))).eval()  # as it comes out of a checkpoint
    again.plain().load_state_dict(deployed.plain().state_dict())  # no key more, no key less
    images = batch_of(1).images
    assert torch.equal(again(images), deployed(images))
    if entry == ENTRIES[pair[1]]:
        assert deployed is method.student


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_cached_logits_stand_in_for_the_teacher_without_running_a_block_of_it(name):
    teacher = teacher_of(DEFAULT_PAIR[0])
    batch = batch_of()
    cached = replace(batch, teacher_logits=teacher(batch.images).to(torch.float16))
    live = step(make(name, teacher=teacher), batch)
    with_logits, without = make(name, teacher=teacher), make(name, teacher=teacher)
    calls = count_calls(teacher)
    assert same(step(with_logits, cached), live)
    assert not calls
    without.__dict__["teacher"] = None
    assert same(step(without, cached), live)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_wants_is_what_it_uses(name):
    teacher = teacher_of(DEFAULT_PAIR[0])
    kind, method = class_of(name), make(name, teacher=teacher)
    part = registry.find("methods", name, name)
    assert (part.wants, part.plan) == (kind.wants, kind.plan)
    batch = batch_of()
    calls = count_calls(teacher)
    method.terms(batch)
    assert bool(calls) == (kind.wants != "nothing")
    assert (method.teacher is None) == (kind.wants == "nothing")
    calls.clear()
    method.terms(replace(batch, teacher_logits=torch.zeros(BATCH_SIZE, NUM_CLASSES)))
    assert bool(calls) == (kind.wants in ("blocks", "layers"))


def test_with_cached_logits_block_kd_runs_the_blocks_behind_its_stones_alone():
    teacher = teacher_of(DEFAULT_PAIR[0])
    method = make("block_kd", teacher=teacher)
    first = next(iter(teacher.span(None, teacher.layers[0]).modules()))
    calls = []
    first.register_forward_hook(lambda *_: calls.append(first))
    live = step(make("block_kd", teacher=teacher), batch_of())
    cached = replace(batch_of(), teacher_logits=teacher(batch_of().images).to(torch.float16))
    calls.clear()
    assert same(step(method, cached), live)
    assert not calls


ONE_CLASS = {
    **{name: {} for name in ("dkd", "loca", "crd", "sld", "contrastive_logits")},
    "block_kd": {"distance": "dkd"},
}
"""Methods whose loss is defined for images of one class, with the options that make it so."""


@pytest.mark.parametrize("name", [name for name in METHODS if ONE_CLASS.get(name) != {}])
def test_mixed_images_teach_the_fractions_of_their_classes(name):
    batch = batch_of()
    hard = replace(batch, fractions=F.one_hot(batch.labels, NUM_CLASSES).float())
    mixed = replace(batch, fractions=hard.fractions.roll(1, dims=0).lerp(hard.fractions, 0.7))
    as_labels, as_fractions, of_mixed = (
        {term: value.item() for term, value in terms_of(make(name), given).items()}
        for given in (batch, hard, mixed)
    )
    assert as_fractions == {term: pytest.approx(value) for term, value in as_labels.items()}
    expected = cross_entropy_of(make(name), mixed)
    if as_labels.get("labels"):
        weight = as_labels["labels"] / cross_entropy_of(make(name), batch)
        assert of_mixed["labels"] == pytest.approx(weight * expected, rel=1e-4)
    for term in of_mixed.keys() - {"labels", "stones_labels"}:
        assert of_mixed[term] == pytest.approx(as_labels[term])  # it does not read the classes


@pytest.mark.parametrize("name", ONE_CLASS)
def test_a_loss_for_images_of_one_class_refuses_mixed_ones(name):
    batch = batch_of()
    mixed = replace(batch, fractions=F.one_hot(batch.labels, NUM_CLASSES).float())
    with pytest.raises(KdstepsError, match=rf"methods.{name}.*mixup and cutmix .* set both to 0"):
        make(name, **ONE_CLASS[name]).terms(mixed)


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_params_yaml_are_the_constructors_with_its_defaults(name):
    defaults = registry.find("methods", name, name).parse({}, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = make(name, **defaults)
    assert same(terms_of(method, batch_of()), terms_of(make(name), batch_of()))


@pytest.mark.parametrize("name", METHODS)
def test_terms_under_autocast_are_finite(name):
    method = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.terms(batch_of())
    torch.stack([term.float() for term in terms.values()]).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert next(iter(method.student.parameters())).grad.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_on_one_batch_lower_the_loss(name):
    method, batch = make(name), batch_of()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    totals = []
    for _ in range(10):
        total = torch.stack(list(terms_of(method, batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_smaller_batch_than_usual_is_no_trouble(name):
    assert all(term.isfinite() for term in make(name).terms(batch_of(count=3)).values())


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_a_teacher_of_other_classes_is_for_uld_alone(name):
    teacher = teacher_of("large resnet", num_classes=7)
    if name == "uld":
        assert make(name, teacher=teacher).terms(batch_of())["uld"].isfinite()
        return
    with pytest.raises(KdstepsError, match=f"methods.{name}: .*7 classes and the study has 5"):
        make(name, teacher=teacher)


@pytest.mark.parametrize("name", ["at", "fitnet", "sp", "rkd", "crd", "reviewkd", "ofd"])
def test_features_can_be_learned_from_a_teacher_of_other_classes_but_not_its_logits(name):
    teacher = teacher_of("large resnet", num_classes=7)
    assert all(term.isfinite() for term in make(name, teacher=teacher).terms(batch_of()).values())
    with pytest.raises(KdstepsError, match=rf"methods.{name}.kd_weight: .*7 classes"):
        make(name, teacher=teacher, kd_weight=1.0)


@pytest.mark.parametrize("name", LAYER_METHODS)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_layer_that_does_not_exist_is_answered_with_the_nearest(name, who):
    options = registry.find("methods", name, name).parse({}, name)
    wrong = {f"{who}_layer": "layer3.7", f"{who}_layers": ["layer1.0", "layer3.7"]}
    named = {option: value for option, value in wrong.items() if option in options}
    if not named:
        pytest.skip("its layers are named in the section build")
    with pytest.raises(
        KdstepsError, match=f"methods.{name}: the {who} has no layer 'layer3.7'; did"
    ):
        make(name, **named)


def tensors(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor) and value.numel()]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def cross_entropy_of(method: Method, batch: Batch) -> float:
    """Of the student's logits in training mode, with the batch's targets."""
    return F.cross_entropy(method.student(batch.images), batch.targets).item()
