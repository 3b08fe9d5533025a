"""Laws that bind every method: each module of kdsteps/methods is found here by itself."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from _networks import ENTRIES, IMAGE_SHAPE, NUM_CLASSES, build, network, teacher_of
from torch import Tensor, nn

from kdsteps import parts
from kdsteps.errors import KdstepsError
from kdsteps.methods._checks import class_count, layer_pairs
from kdsteps.methods._method import Batch, Method, Task
from kdsteps.methods.crd import Sampler
from kdsteps.methods.ofd import OFD
from kdsteps.models import build_model
from kdsteps.models._adapters import places
from kdsteps.models._chain import Chain
from kdsteps.pairs import plan_pairs
from kdsteps.stones import pair_stages, plan_stones

METHODS = parts.names("methods")
LOGIT_METHODS = [name for name in METHODS if parts.trait("methods", name, "wants") == "logits"]
LAYER_METHODS = [name for name in METHODS if parts.trait("methods", name, "wants") == "layers"]
NUM_IMAGES = 40  # of the training part
BATCH_SIZE = 8

PAIRS = [
    ("large resnet", "resnet"),
    ("large wide resnet", "resnet"),
    ("large resnet", "mobilenet"),
    ("large vit", "vit"),
    ("large vit", "resnet"),
    ("large resnet", "vit"),
]
"""Teacher and student: another width, pre-activation, other map sizes, tokens on either side."""

DEFAULT_PAIR = PAIRS[0]


def plan_of(kind: str | None, teacher: Chain, student: Chain) -> dict[str, Any] | None:
    """What the stage `build` would hand to a method with this kind of plan."""
    if kind is None:
        return None
    if kind == "stones":
        joints = pair_stages(teacher, student)
        return {"stones": plan_stones(teacher, student, IMAGE_SHAPE, joints, "conv_norm")}
    count = min(len(teacher.stages), len(student.stages))
    pairs = plan_pairs(
        teacher,
        student,
        IMAGE_SHAPE,
        student_layers=None,
        teacher_layers=teacher.stages[-count:],
        projector="conv",
    )
    return {"pairs": pairs}


def class_of(name: str) -> type[Method]:
    module = import_module(f"kdsteps.methods.{name}")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    return next(
        value for value in classes if value.__module__ == module.__name__ and "wants" in vars(value)
    )


def make(
    name: str,
    pair: tuple[str, str] = DEFAULT_PAIR,
    *,
    seed: int = 0,
    teacher: Chain | None = None,
    **options: Any,
) -> Method:
    """A method between two networks of `ENTRIES`, with the seed a run would have."""
    kind = class_of(name)
    teacher = teacher_of(pair[0]) if teacher is None else teacher
    student = network(pair[1], seed)
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    plan = plan_of(kind.plan, teacher, student)
    task = Task(IMAGE_SHAPE, NUM_CLASSES, labels, plan, batch_size=BATCH_SIZE)
    torch.manual_seed(seed)
    given = None if kind.wants == "nothing" else teacher
    return kind(given, student, task, **options).train()


def batch_of(seed: int = 0, epoch: int = 5, count: int = BATCH_SIZE) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(NUM_IMAGES, generator=generator)[:count]
    images = torch.randn(count, *IMAGE_SHAPE, generator=generator)
    return Batch(images, index % NUM_CLASSES, index, torch.zeros_like(index), epoch)


def terms_of(method: Method, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return method.terms(batch)


def step(method: Method, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """One training step at a small rate."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    terms = terms_of(method, batch, seed)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    method.zero_grad()
    return terms


def fingerprint(chain: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in chain.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def count_calls(chain: Chain) -> list[str]:
    """A list that grows by a name whenever a part of the network runs."""
    calls: list[str] = []
    for name, module in chain.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: calls.append(name))
    return calls


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_the_papers_methods_and_all_baselines_are_there():
    baselines = "lskd dkd dist loca uld fitnet at sp rkd crd reviewkd simkd ofd semckd"
    assert {"labels", "kd", "block_kd", "feature_only", *baselines.split()} <= set(METHODS)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("name", METHODS)
def test_terms_are_named_finite_and_teach_the_students_first_block(name, pair):
    method = make(name, pair)
    terms = method.terms(batch_of())
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
    calls = count_calls(teacher)
    assert same(step(make(name, teacher=teacher), cached), live)
    assert not calls
    without = make(name, teacher=teacher)
    without.__dict__["teacher"] = None
    assert same(step(without, cached), live)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_wants_is_what_it_uses(name):
    teacher = teacher_of(DEFAULT_PAIR[0])
    kind, method = class_of(name), make(name, teacher=teacher)
    assert parts.trait("methods", name, "wants") == kind.wants
    assert parts.trait("methods", name, "plan") == kind.plan
    batch = batch_of()
    calls = count_calls(teacher)
    method.terms(batch)
    assert bool(calls) == (kind.wants != "nothing")
    assert (method.teacher is None) == (kind.wants == "nothing")
    calls.clear()
    method.terms(replace(batch, teacher_logits=torch.zeros(BATCH_SIZE, NUM_CLASSES)))
    assert bool(calls) == (kind.wants == "layers")


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_params_yaml_are_the_constructors_with_its_defaults(name):
    defaults = parts.options("methods", name)().model_dump()
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
    options = parts.options("methods", name).model_fields
    wrong = {f"{who}_layer": "layer3.7", f"{who}_layers": ["layer1.0", "layer3.7"]}
    named = {option: value for option, value in wrong.items() if option in options}
    if not named:
        pytest.skip("its layers are named in the section build")
    with pytest.raises(
        KdstepsError, match=f"methods.{name}: the {who} has no layer 'layer3.7'; did"
    ):
        make(name, **named)


def test_kd_beside_features_is_a_term_of_its_own():
    terms = make("fitnet", kd_weight=0.9, labels_weight=0.1).terms(batch_of())
    plain = make("kd").terms(batch_of())
    assert torch.equal(terms["kd"], plain["kd"])
    assert torch.equal(terms["labels"], plain["labels"])


@pytest.mark.parametrize(("name", "term"), [("dkd", "dkd"), ("reviewkd", "review")])
def test_a_loss_that_warms_up_reaches_its_weight_after_the_warm_up(name, term):
    loss = [
        make(name, warmup_epochs=4).terms(batch_of(epoch=epoch))[term].item()
        for epoch in (0, 1, 3, 9)
    ]
    assert loss[:3] == pytest.approx([loss[3] / 4, loss[3] / 2, loss[3]])
    assert make(name, warmup_epochs=0).terms(batch_of(epoch=0))[term].item() == loss[3]


def test_layers_are_paired_evenly_and_the_last_meets_the_last():
    student, teacher = network("mobilenet"), network("large resnet")
    assert len(student.stages) > len(teacher.stages) == 3
    pairs = layer_pairs(student, teacher, None, None, "at")
    assert [layer for _, layer in pairs] == list(teacher.stages)
    assert pairs[-1] == (student.stages[-1], teacher.stages[-1])
    named = layer_pairs(student, teacher, None, ["stem", "pool"], "at")
    assert [layer for _, layer in named] == ["stem", "pool"]
    repeated = layer_pairs(student, teacher, list(student.stages), None, "at")
    assert [layer for layer, _ in repeated] == list(student.stages)
    assert repeated[-1][1] == teacher.stages[-1]
    with pytest.raises(KdstepsError, match="student_layers has 1 names and teacher_layers 2"):
        layer_pairs(student, teacher, ["stem"], ["stem", "pool"], "at")
    with pytest.raises(KdstepsError, match="teacher_layers is empty"):
        layer_pairs(student, teacher, None, [], "at")


@pytest.mark.parametrize("kind", ENTRIES)
def test_the_number_of_classes_is_read_off_the_head(kind):
    assert class_count(network(kind, num_classes=11)) == 11


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fitnet", 16768), ("ofd", 86912), ("reviewkd", 1808774), ("crd", 65792), ("simkd", 214016)],
)
def test_projectors_of_the_benchmark_have_their_published_sizes(name, expected):
    teacher, student = (
        build_model("cifar_resnet", num_classes=100, depth=depth, widths=(32, 64, 128, 256))
        for depth in (32, 8)
    )
    task = Task((3, 32, 32), 100, torch.arange(200) % 100)
    method = class_of(name)(teacher.requires_grad_(False).eval(), student, task)
    own = sum(value.numel() for value in method.parameters())
    assert own - sum(value.numel() for value in student.parameters()) == expected


def test_negatives_are_of_other_classes_and_friends_of_the_same():
    torch.manual_seed(0)
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 2])
    sampler = Sampler(labels, num_classes=4)
    own = torch.tensor([0, 1, 2, 9])
    rows = sampler(own, 2000, relax=False)
    assert torch.equal(rows[:, 0], own)
    for image, row in zip(own, rows[:, 1:], strict=True):
        others = labels != labels[image]
        share = torch.bincount(row, minlength=10) / 2000
        assert share[~others].sum() == 0
        assert torch.allclose(share[others], 1 / others.sum(), atol=0.05)
    friends = torch.cat([sampler(own, 1, relax=True)[:, :1] for _ in range(50)], dim=1)
    assert torch.equal(labels[friends], labels[own][:, None].expand(-1, 50))
    assert len(friends[0].unique()) == 4


def test_contrast_without_another_class_is_refused():
    with pytest.raises(KdstepsError, match="all training images are of one class"):
        Sampler(torch.zeros(5, dtype=torch.long), num_classes=2)


def test_every_image_of_a_class_may_be_the_positive_of_a_relaxed_contrast():
    assert make("crd", mode="relax").terms(batch_of())["contrast"].isfinite()


def test_margins_are_taken_from_the_batch_where_no_norm_tells_them():
    with_norms, without = make("ofd"), make("ofd", ("large vit", "vit"))
    assert isinstance(with_norms, OFD)
    assert all(match.margin is not None for match in with_norms.matches)
    assert all(match.margin is None for match in without.matches)


def test_simkd_ends_in_a_relu_only_where_the_teachers_map_does():
    assert make("simkd").rectified
    assert not make("simkd", ("large wide resnet", "resnet")).rectified
    assert not make("simkd", ("large vit", "vit")).rectified


def test_simkd_deploys_the_teachers_own_classifier():
    method = make("simkd", labels_weight=1.0, kd_weight=1.0)
    assert set(method.terms(batch_of())) == {"map", "labels", "kd"}
    tail = method.deployed().span("projector", "head")
    features = torch.randn(2, *method.target.shape)
    assert torch.equal(tail(features), method.teacher.tail(method.teacher_layer)(features))
    before = fingerprint(tail)
    step(method, batch_of())
    assert fingerprint(method.deployed().span("projector", "head")) == before


def test_what_simkd_deploys_is_a_chain():
    deployed, images = make("simkd", ("large vit", "resnet")).deployed().eval(), batch_of().images
    assert deployed.layers == ("front", "projector")
    for layer, place in places(deployed, IMAGE_SHAPE).items():
        features = deployed.front(layer)(images)
        assert tuple(features.shape[1:]) == place.shape
        assert torch.equal(deployed.tail(layer)(features), deployed(images))


def test_standardized_dkd_does_not_see_the_scale_of_the_teachers_logits():
    method, batch = make("dkd", standardize=True), batch_of()
    logits = method.teacher_logits(batch)
    plain, scaled = (
        method.terms(replace(batch, teacher_logits=factor * logits))["dkd"] for factor in (1, 4)
    )
    assert torch.allclose(plain, scaled)


def test_attention_refuses_a_batch_it_was_not_made_for():
    with pytest.raises(ValueError, match=f"{BATCH_SIZE + 1} images, and attention made for"):
        make("semckd").terms(batch_of(count=BATCH_SIZE + 1))


def tensors(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor) and value.numel()]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
