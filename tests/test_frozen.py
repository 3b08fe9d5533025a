"""The frozen teacher: a copy that computes the same as the original, for less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _networks import IMAGE_SHAPE, NUM_CLASSES, network, teacher_of
from torch import Tensor, nn

from kdsteps.models import build_model
from kdsteps.models.chain import BlockChain, Chain
from kdsteps.models.cut.cutting import CutChain
from kdsteps.teachers.frozen import frozen

FOREIGN: list[dict[str, Any]] = [
    {"family": "timm", "name": "resnet18", "norms": 0},
    pytest.param({"family": "timm", "name": "efficientnet_b0", "norms": 0}, marks=pytest.mark.slow),
]


def norms(chain: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in chain.modules())


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(5))


def same_up_to_rounding(outputs: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    assert outputs.keys() == others.keys()
    pairs = [(outputs[name], others[name]) for name in outputs]
    return all((a - b).abs().max() <= 1e-5 * a.abs().max() for a, b in pairs)


@pytest.mark.parametrize("kind", ["large resnet", "large wide resnet", "mobilenet", "large vit"])
def test_a_frozen_teacher_gives_the_same_at_every_layer_whole_and_cut(kind, device):
    teacher, given = teacher_of(kind).to(device), images().to(device)
    fast = frozen(teacher, IMAGE_SHAPE)
    assert next(fast.parameters()).device.type == device
    assert same_up_to_rounding(teacher.trace(given), fast.trace(given))
    before = [chain.trace(given, before_activation=True) for chain in (teacher, fast)]
    assert same_up_to_rounding(*before)
    for layer in teacher.stages:
        joined = fast.tail(layer)(fast.front(layer)(given))
        assert same_up_to_rounding({"": teacher(given)}, {"": joined})


@pytest.mark.parametrize("kind", ["large resnet", "mobilenet"])
def test_every_norm_behind_a_convolution_is_folded_away(kind):
    assert norms(teacher_of(kind))
    assert norms(frozen(teacher_of(kind), IMAGE_SHAPE)) == 0


def test_norms_before_a_convolution_stay_where_they_are():
    teacher = teacher_of("large wide resnet")
    blocks = 3  # each begins with a norm; one more closes the last stage
    assert norms(frozen(teacher, IMAGE_SHAPE)) == blocks + 1


@pytest.mark.parametrize("entry", FOREIGN, ids=str)
def test_a_network_of_any_make_is_folded_and_can_still_be_cut(entry):
    torch.manual_seed(0)
    chain = build_model(entry["family"], num_classes=NUM_CLASSES, image_size=32, name=entry["name"])
    shape = (3, 32, 32)
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    teacher = chain.requires_grad_(False).eval()
    fast = frozen(teacher, shape)
    assert norms(teacher)
    assert norms(fast) == entry["norms"]
    pictures = torch.randn(2, *shape)
    assert same_up_to_rounding(teacher.trace(pictures), fast.trace(pictures))
    layer = fast.stages[len(fast.stages) // 2]
    joined = fast.tail(layer)(fast.front(layer)(pictures))
    assert same_up_to_rounding({"": teacher(pictures)}, {"": joined})


@pytest.mark.parametrize("fold", [True, False])
def test_the_original_keeps_every_weight_and_the_copy_shares_none(fold):
    teacher = network("large resnet").train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fast = frozen(teacher, IMAGE_SHAPE, fold=fold)
    after = teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert teacher.training
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    theirs = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not theirs & {value.data_ptr() for value in fast.state_dict().values()}


def test_unfolded_a_frozen_teacher_has_every_weight_it_had():
    teacher = teacher_of("large resnet")
    fast = frozen(teacher, IMAGE_SHAPE, fold=False)
    assert same_up_to_rounding(teacher.trace(images()), fast.trace(images()))
    theirs, ours = teacher.state_dict(), fast.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


class Shared(BlockChain):
    """A chain whose first convolution is read twice: by its norm and, beside it, as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, NUM_CLASSES)
        self.line_up(
            {"stem": Both(self.conv, self.norm), "pool": Pool(), "head": self.fc}, stages=("stem",)
        )


class Both(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.conv(pictures)
        return self.norm(features) + features


class Pool(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


def test_a_convolution_that_others_read_as_well_is_not_folded():
    torch.manual_seed(0)
    teacher: Chain = Shared()
    teacher.norm.running_var.fill_(3.0)
    teacher.eval().requires_grad_(False)
    fast = frozen(teacher, IMAGE_SHAPE)
    assert norms(fast) == 1
    assert same_up_to_rounding(teacher.trace(images()), fast.trace(images()))


def test_a_layer_that_ends_in_a_convolution_gives_what_it_gave():
    teacher = teacher_of("large wide resnet")  # its stem is a convolution, its norm in block 1
    fast = frozen(teacher, IMAGE_SHAPE)
    stems = [chain.trace(images(), ["stem"]) for chain in (teacher, fast)]
    assert same_up_to_rounding(*stems)


def test_folding_is_checked_in_float64_on_the_cpu_and_leaves_type_and_device_as_they_are():
    teacher = teacher_of("resnet")
    seen = []
    hook = teacher.conv1.register_forward_pre_hook(
        lambda _module, inputs: seen.append((inputs[0].dtype, inputs[0].device.type))
    )
    fast = frozen(teacher, IMAGE_SHAPE)
    hook.remove()
    assert set(seen) == {(torch.float64, "cpu")}
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32}
    assert norms(fast) == 0


class SinglePrecision(nn.Module):
    """Cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean(dim=(2, 3)).float())


def test_a_network_that_cannot_run_in_float64_stays_as_it_is(caplog):
    caplog.set_level("INFO")
    teacher = CutChain(SinglePrecision(), image_shape=IMAGE_SHAPE).eval()
    fast = frozen(teacher, IMAGE_SHAPE)
    assert norms(fast) == 1
    assert "not folded" in caplog.text
    assert torch.equal(fast(images()), teacher(images()))
