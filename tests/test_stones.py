"""Stepping stones: the laws that follow from their definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Batch, Task
from kdsteps.methods.block_kd import BlockKD, weigh_stones
from kdsteps.methods.kd import kd_loss
from kdsteps.methods.lskd import lskd_loss
from kdsteps.models import build_model
from kdsteps.plans.stones import Stones, plan_stones
from kdsteps.study.joints import pair_layers, pair_stages

SHAPE = (1, 8, 8)


def network(depth: int = 8, widths: tuple[int, ...] = (4, 4, 8, 16), seed: int = 0):
    torch.manual_seed(seed)
    chain = build_model(
        "cifar_resnet", num_classes=3, in_channels=1, image_size=8, depth=depth, widths=widths
    )
    for module in chain.modules():  # statistics as after training, so that eval mode differs
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return chain


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def frozen(chain):
    return chain.requires_grad_(False).eval()


def plan_of(teacher, student, connector="conv_norm"):
    joints = pair_stages(teacher, student)
    return {"stones": plan_stones(teacher, student, SHAPE, joints, connector)}


def block_kd(teacher, student, **options) -> BlockKD:
    torch.manual_seed(2)
    connector = options.pop("connector", "conv_norm")
    task = Task(SHAPE, 3, torch.zeros(6, dtype=torch.long), plan_of(teacher, student, connector))
    return BlockKD(teacher, student, task, **options)


def batch() -> Batch:
    number = torch.arange(6)
    return Batch(images(), number % 3, number, torch.zeros_like(number))


def test_teacher_front_identity_and_teacher_tail_are_the_teacher():
    teacher = frozen(network(depth=14))
    stones = Stones(teacher, plan_of(teacher, teacher, "identity")["stones"])
    with torch.no_grad():
        expected = teacher(images())
        for logits in stones(teacher.trace(images())):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_the_deepest_stone_needs_no_teacher_block():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    last = plan_of(teacher, student)["stones"][-1]
    assert last["teacher_blocks"] == ["pool", "head"]
    for name, module in teacher.named_modules():
        if name.startswith("layer"):
            module.register_forward_hook(lambda *_: pytest.fail("a teacher block ran"))
    stones = Stones(teacher, [last])
    assert stones(student.trace(images()))[0].shape == (6, 3)


@pytest.mark.parametrize("entering", [None, [0, 2], [1]])
def test_merged_stones_equal_separate_passes(entering):
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6), seed=3)
    stones = Stones(teacher, plan_of(teacher, student)["stones"]).eval()
    with torch.no_grad():
        traced = student.eval().trace(images())
        merged = stones(traced, entering)
        for logits, number in zip(merged, entering or range(3), strict=True):
            joined = stones.connectors[number](traced[student.stages[number]])
            alone = teacher.tail(teacher.stages[number])(joined)
            torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


def test_merged_stones_give_the_gradients_of_separate_passes():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6), seed=3).double()
    teacher.double()
    plan = plan_of(copy.deepcopy(teacher).float(), student.float())
    stones = Stones(teacher, plan["stones"]).double()
    student.double()
    x = images().double()

    def gradients(logits):
        total = sum((number + 1) * entry.square().sum() for number, entry in enumerate(logits))
        return torch.autograd.grad(total, list(student.parameters()), allow_unused=True)

    merged = gradients(stones(student.trace(x)))
    traced = student.trace(x)
    tails = [
        teacher.tail(layer)(connector(traced[ours]))
        for layer, connector, ours in zip(
            teacher.stages, stones.connectors, student.stages, strict=True
        )
    ]
    for found, expected in zip(merged, gradients(tails), strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_block_learns_from_its_own_stone_and_deeper_ones_only():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    stones = Stones(teacher, plan_of(teacher, student)["stones"])
    for number, logits in enumerate(stones(student.trace(images()))):
        student.zero_grad()
        logits.sum().backward(retain_graph=True)
        reached = [
            any(
                parameter.grad is not None and bool(parameter.grad.any())
                for name, parameter in student.named_parameters()
                if name.startswith(stage.split(".")[0])
            )
            for stage in student.stages
        ]
        assert reached == [place <= number for place in range(3)]


def test_with_no_stones_and_no_cross_term_it_is_plain_kd():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    method = block_kd(teacher, student, gamma=0, stone_weights=(0.0, 0.0, 0.0))
    method.eval()
    terms = method.terms(batch())
    teacher_logits = teacher(images()).half().float()
    expected = torch.nn.functional.cross_entropy(student(images()), batch().labels) + kd_loss(
        student(images()), teacher_logits, 4.0
    )
    torch.testing.assert_close(sum(terms.values()), expected)
    zero = {"stones_labels", "stones_teacher", "stones_ensemble", "ensemble"}
    assert all(terms[name] == 0 for name in zero)


def test_halving_gives_the_weights_of_the_paper():
    assert weigh_stones("halving", 3) == [0.25, 0.5, 1.0]
    assert sum(weigh_stones("halving", 5)) == 2 - 2**-4
    assert weigh_stones("equal", 2) == [1.0, 1.0]
    with pytest.raises(KdstepsError, match="2 weights for 3 stones"):
        weigh_stones((1.0, 2.0), 3)


def test_a_distance_has_the_temperature_of_its_own_method_unless_told_otherwise():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6)).eval()
    s, t = student(images()), teacher(images()).half().float()
    for options, expected in (
        ({}, kd_loss(s, t, 4.0)),
        ({"distance": "lskd"}, lskd_loss(s, t, 2.0)),
        ({"distance": "lskd", "temperature": 3.0}, lskd_loss(s, t, 3.0)),
    ):
        terms = block_kd(teacher, student, **options).eval().terms(batch())
        assert torch.allclose(terms["teacher"], expected), options


def test_the_inner_weight_of_a_distance_that_is_not_used_is_refused():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    block_kd(teacher, student, distance="dkd", dkd_beta=2.0)
    with pytest.raises(KdstepsError, match=r"block_kd\.dkd_beta is 2, and distance is 'kd'; leave"):
        block_kd(teacher, student, dkd_beta=2.0)


def test_the_terms_are_those_of_the_paper_written_out():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    method = block_kd(teacher, student, alpha=0.7, beta=1.3, gamma=0.4, temperature=3.0).eval()
    terms = method.terms(batch())
    traced, labels = student.trace(images()), batch().labels
    target = teacher(images()).half().float()
    logits = [
        teacher.tail(layer)(connector(traced[ours]))
        for layer, connector, ours in zip(
            teacher.stages, method.stones.connectors, student.stages, strict=True
        )
    ]
    ensemble = (logits[0] + logits[1] + logits[2]) / 3
    cross_entropy = torch.nn.functional.cross_entropy
    expected = {
        "labels": 0.7 * cross_entropy(traced["head"], labels),
        "teacher": 1.3 * kd_loss(traced["head"], target, 3.0),
        "stones_labels": 0.7
        * sum(w * cross_entropy(z, labels) for w, z in zip((0.25, 0.5, 1), logits, strict=True)),
        "stones_teacher": 1.3
        * sum(w * kd_loss(z, target, 3.0) for w, z in zip((0.25, 0.5, 1), logits, strict=True)),
        "stones_ensemble": 0.4 * sum(kd_loss(z, ensemble, 3.0) for z in logits),
        "ensemble": 0.4 * kd_loss(traced["head"], ensemble, 3.0),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            terms[name], value, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_ensemble_is_a_target_without_gradient_unless_asked():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))

    def connectors_reached_by(term, **options):
        method = block_kd(teacher, student, **options).eval()
        method.terms(batch())[term].backward()
        return any(p.grad is not None for p in method.stones.connectors.parameters())

    assert not connectors_reached_by("ensemble")
    assert connectors_reached_by("ensemble", detach_ensemble=False)


def test_drawn_stones_keep_the_expectation_of_the_weighted_sums():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    whole = block_kd(teacher, student).eval().terms(batch())
    drawn = block_kd(teacher, student, stones_per_step=1).eval()
    found = []
    for number in range(3):
        drawn._drawn = lambda number=number: [number]
        found.append(drawn.terms(batch()))
    for name in ("stones_labels", "stones_teacher"):
        mean = torch.stack([terms[name] for terms in found]).mean()
        torch.testing.assert_close(mean, whole[name])


def test_batch_statistics_inside_stones_leave_the_teacher_as_it_is():
    teacher, student = frozen(network(depth=14)), network(widths=(2, 2, 4, 6))
    before = copy.deepcopy(teacher.state_dict())
    method = block_kd(teacher, student, norm="batch").train()
    sum(method.terms(batch()).values()).backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    by_running = block_kd(teacher, student).train().terms(batch())
    assert method.terms(batch())["stones_teacher"] != by_running["stones_teacher"]


def test_networks_with_different_numbers_of_stages_are_thinned_to_meet_at_the_end():
    teacher, student = network(depth=14), network()
    assert pair_stages(teacher, student, 1) == [(student.stages[-1], teacher.stages[-1])]
    assert [theirs for _, theirs in pair_stages(teacher, student, 2)][-1] == teacher.stages[-1]
    with pytest.raises(KdstepsError, match="it should be 1 to 3"):
        pair_stages(teacher, student, 4)


def test_cuts_that_cannot_be_are_refused_with_the_nearest_layer():
    teacher, student = network(depth=14), network()
    with pytest.raises(KdstepsError, match=r"did you mean 'layer2\.1'"):
        plan_stones(teacher, student, SHAPE, [("layer1.0", "layer2.11")], "conv_norm")
    joints = [("layer2.0", "layer1.0"), ("layer1.0", "layer2.0")]
    with pytest.raises(KdstepsError, match="shallow to deep"):
        plan_stones(teacher, student, SHAPE, joints, "conv_norm")
    narrow = network(widths=(2, 2, 4, 6))
    with pytest.raises(KdstepsError, match="identity cannot join"):
        plan_stones(teacher, narrow, SHAPE, [("layer1.0", "layer1.0")], "identity")
    with pytest.raises(KdstepsError, match="5 teacher layers for a student with 3 stages"):
        pair_layers(teacher, student, teacher.layers[:5], "build.cuts")
