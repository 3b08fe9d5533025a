"""Cutting a network by its graph: what is a cut, what is a layer, and what the parts share."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdsteps.errors import KdstepsError
from kdsteps.models.cost import activations, multiply_adds, num_parameters
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.models.listing import list_layers, render_layers
from kdsteps.teachers.frozen import frozen

SHAPE = (3, 8, 8)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def cut(network: nn.Module, **options) -> CutChain:
    torch.manual_seed(0)
    return CutChain(network, image_shape=SHAPE, **options).eval()


class Residual(nn.Module):
    """Two convolutions and a shortcut; one ReLU serves twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class Net(nn.Module):
    """A stem, two stages of two blocks, dropout as a function, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.stages = nn.Sequential(
            nn.Sequential(Residual(4, 4), Residual(4, 4)),
            nn.Sequential(Residual(4, 8, 2), Residual(8, 8)),
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.act(self.bn(self.conv(x))))
        x = F.dropout(x.mean(dim=(2, 3)), 0.5, self.training)
        return self.fc(x)


class Pointed(nn.Module):
    """Reads the size of its images first and uses it last, as XCiT does; tokens between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, 2)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Conv2d(4, 3, 3)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, _, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.scale * block(x).tanh()
        x = x.transpose(1, 2).reshape(batch, 4, height, width)
        return self.last(x).mean(dim=(2, 3))


class Overwriting(nn.Module):
    """The norm's output is overwritten by the function that follows, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.block(x)), inplace=True).mean(dim=(2, 3)))


class Forked(nn.Module):
    """Two branches from beginning to end."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).mean(dim=(2, 3)) + self.right(x).mean(dim=(2, 3))


class Deciding(nn.Module):
    """Branches on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))


class Preactivated(nn.Module):
    """A block that begins with norm and ReLU, as in a wide ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv(self.relu(self.bn(x))))


def test_layers_are_the_ends_of_blocks_and_stages_those_where_the_size_changes():
    chain = cut(Net())
    assert chain.layers == ("act", "stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1")
    assert chain.stages == ("stages.0.1", "stages.1.1")
    assert [chain.layout(layer) for layer in chain.layers] == ["map"] * 5


def test_stages_that_the_network_names_come_first():
    assert cut(Net(), stages=["stages.0"]).stages == ("stages.0.1",)
    assert cut(Net(), stages=["stages.0.0", "stages.1"]).stages == ("stages.0.0", "stages.1.1")


def test_the_middle_of_a_residual_block_is_no_layer():
    assert not [layer for layer in cut(Net()).layers if "conv" in layer or "bn" in layer]


@torch.no_grad()
def test_spans_join_to_the_whole():
    chain = cut(Net())
    features = images()
    for start, stop in zip((None, *chain.layers), (*chain.layers, "head"), strict=True):
        features = chain.span(start, stop)(features)
    assert torch.equal(features, chain(images()))


def test_a_span_backwards_or_to_nowhere_is_refused():
    chain = cut(Net())
    for start, stop in [("act", "act"), ("stages.1.0", "act"), ("head", "head")]:
        with pytest.raises(ValueError, match="does not come after"):
            chain.span(start, stop)
    with pytest.raises(ValueError, match="'nowhere' is not a layer of this network; it has act"):
        chain.front("nowhere")
    with pytest.raises(ValueError, match="'nowhere': not a layer of this network"):
        chain.trace(images(), ["nowhere"])


@torch.no_grad()
def test_a_size_read_off_the_images_is_known_behind_a_cut_for_any_batch():
    chain = cut(Pointed())
    assert {f"blocks.{index}" for index in range(3)}.isdisjoint(chain.layers)  # residual inside
    assert chain.layers == ("embed",)
    for count in (1, 2, 3, 7):
        batch = images(count)
        assert torch.equal(chain.tail("embed")(chain.front("embed")(batch)), chain(batch))


def test_an_output_that_is_overwritten_is_no_layer():
    chain = cut(Overwriting())
    assert "norm" not in chain.layers
    assert "block" in chain.layers
    features = chain.front("block")(images())
    kept = features.clone()
    chain.tail("block")(features)
    assert torch.equal(features, kept)


class Row(nn.Module):
    """Five blocks in a row, something after the second one, and a classifier."""

    def __init__(self, after: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        for name in "abcde":
            conv = nn.Conv2d(3, 3, 3, padding=1)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(3), nn.Tanh()))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 3)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self, self.b(self.a(x))).mean(dim=(2, 3)))


def method_in_place(net: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape)
    total.add_(x)
    return net.e(net.d(net.c(x)) + total)


def out_argument(net: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape)
    torch.add(x, 1, out=total)
    return net.e(net.d(net.c(x)) + total)


def assigned_item(net: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape)
    total[:, :2] = x[:, 1:]
    return net.e(net.d(net.c(x)) + total)


def function_in_place(net: nn.Module, x: Tensor) -> Tensor:
    shifted = x - 0.1
    F.relu(shifted, inplace=True)
    return net.e(net.d(net.c(x)) + shifted)


def module_in_place(net: nn.Module, x: Tensor) -> Tensor:
    shifted = x - 0.1
    net.relu(shifted)
    return net.e(net.d(net.c(x)) + shifted)


@torch.no_grad()
@pytest.mark.parametrize(
    "after", [method_in_place, out_argument, assigned_item, function_in_place, module_in_place]
)
def test_a_value_that_is_overwritten_stays_alive_as_what_it_became(after):
    chain = cut(Row(after))
    assert chain.layers == ("a", "b", "e")  # at `c` and `d` the overwritten value is alive
    batch = images()
    for layer in chain.layers:
        features = chain.front(layer)(batch)
        assert torch.equal(features, chain.trace(batch, [layer])[layer])
        assert torch.allclose(chain.tail(layer)(features), chain(batch), atol=1e-6)


def view_in_place(net: nn.Module, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape)
    total[:, :2].add_(x[:, 1:])
    return net.d(net.c(x)) + net.e(total)


def other_name(net: nn.Module, x: Tensor) -> Tensor:
    x = before = net.c(x) - 0.1
    x += 1.0
    return net.d(x) + net.e(before)


def late_view_in_place(net: nn.Module, x: Tensor) -> Tensor:
    x = net.d(net.c(x))
    total = torch.zeros(x.shape)
    total[:, :2].add_(x[:, 1:])
    return net.e(x) + total


@pytest.mark.parametrize("after", [view_in_place, other_name, late_view_in_place])
def test_a_network_is_not_cut_where_its_parts_would_be_another_network(after):
    chain = cut(Row(after))
    batch = images()
    if chain.layers:
        assert after is late_view_in_place
    else:
        assert "its parts in a row compute other logits" in chain.notes[0]
    for layer in chain.layers:
        assert torch.allclose(chain.tail(layer)(chain.front(layer)(batch)), chain(batch))


def test_a_module_that_overwrites_its_input_has_an_output_of_its_own():
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            return x

    net = Row(lambda net, x: net.e(net.d(net.c(x))))
    net.b.append(Doubling())
    assert cut(net).layers == ("a", "b", "c", "d", "e")


def test_a_network_that_cannot_be_cut_says_so_and_still_answers():
    for network, reason in [(Forked(), "several values are alive"), (Deciding(), "no fixed graph")]:
        chain = cut(network)
        assert chain.layers == chain.stages == ()
        assert reason in chain.notes[0] and "logits alone" in chain.notes[0]
        batch = images()
        assert torch.equal(chain(batch), network(batch))
        assert torch.equal(chain.trace(batch)["head"], network(batch))
        assert torch.equal(chain.span(None, "head")(batch), network(batch))
        (row,) = list_layers(chain, SHAPE)
        assert row.layer == "head"


def test_images_that_a_network_does_not_take_are_a_sentence():
    with pytest.raises(KdstepsError, match=r"Net does not run on images of 1 x 8 x 8 \(.*channels"):
        CutChain(Net(), image_shape=(1, 8, 8))


def test_spans_follow_the_chain_to_another_precision_and_mode_made_before_or_after():
    for network, layer in [(Net(), "stages.0.1"), (Pointed(), "embed")]:
        chain = cut(network)
        early = chain.front(layer), chain.tail(layer)
        chain.double()
        late = chain.front(layer), chain.tail(layer)
        batch = images().double()
        for front, tail in (early, late):
            assert torch.equal(tail(front(batch)), chain(batch))
            assert tail(front(batch)).dtype is torch.float64


@torch.no_grad()
def test_spans_run_in_the_mode_of_the_chain():
    chain = cut(Net())
    tail = chain.tail("stages.1.1")
    features = torch.ones(64, 8, 4, 4)
    assert torch.equal(tail(features), tail(features))
    chain.train()
    assert not torch.equal(tail(features), tail(features))  # dropout, which is a function
    chain.eval()
    assert torch.equal(tail(features), tail(features))


class Skipping(nn.Module):
    """A block that is skipped at random in training, decided in Python."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.draw = draw

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.draw() < 0.5:
            return images
        return images + self.conv2(self.conv1(images))


@pytest.mark.parametrize(
    "draw",
    [lambda: random.random(), lambda: np.random.random(), lambda: torch.rand(()).item()],
    ids=["python", "numpy", "torch"],
)
def test_a_span_does_not_repeat_what_a_network_drew_once(draw):
    chain = cut(nn.Sequential(Skipping(draw), nn.Flatten(), nn.Linear(192, 5)))
    tail = chain.tail(chain.layers[0])
    chain.train()
    with pytest.raises(KdstepsError, match="its forward pass draws random numbers outside of"):
        tail(images())


def test_a_span_trains_the_weights_of_its_own_part_alone():
    chain = cut(Net())
    front, tail = chain.front("stages.0.1"), chain.tail("stages.0.1")
    own = {id(parameter): name for name, parameter in chain.plain().named_parameters()}
    ahead = {own[id(parameter)] for parameter in front.parameters()}
    behind = {own[id(parameter)] for parameter in tail.parameters()}
    assert ahead | behind == set(own.values())
    assert not ahead & behind
    assert "stages.0.1.conv2.weight" in ahead and "fc.bias" in behind
    tail(front(images())).sum().backward()
    assert chain.plain().conv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_new_weights_reach_the_spans():
    chain = cut(Pointed())
    torch.manual_seed(1)
    other = Pointed()
    tail = chain.tail("embed")
    features = torch.rand(2, 4, 4, 4)
    before = tail(features)
    chain.plain().load_state_dict(other.state_dict())
    after = tail(features)
    assert not torch.equal(before, after)
    assert torch.equal(after, cut(other).tail("embed")(features))


@torch.no_grad()
def test_a_copy_of_a_chain_goes_its_own_way():
    chain = cut(Net())
    span = chain.front("act")
    twin, twin_span = copy.deepcopy((chain, span))
    twin.plain().conv.weight.zero_()
    assert not torch.equal(twin.front("act")(images()), chain.front("act")(images()))
    assert torch.equal(twin_span(images()), twin.front("act")(images()))
    assert torch.equal(span(images()), chain.front("act")(images()))


def test_looking_for_cuts_leaves_the_network_as_it_was():
    network = Net().train()
    network.stages[0].eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    chain = CutChain(network, image_shape=SHAPE)
    assert torch.equal(torch.rand(1), expected)  # nor does it draw from the global chance
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(network.state_dict()[key], state[key]) for key in state)
    assert list(chain.plain().state_dict()) == list(state)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_span_in_training_mode_leaves_statistics_of_other_parts_alone():
    chain = cut(Net()).train()
    before = copy.deepcopy(chain.plain().state_dict())
    chain.front("act")(images())
    moved = {
        key
        for key, value in chain.plain().state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}


@torch.no_grad()
def test_what_enters_the_last_relu_can_be_read():
    chain = cut(Net())
    after = chain.trace(images())
    before = chain.trace(images(), before_activation=True)
    for layer in chain.layers:
        assert (before[layer] < 0).any()
        assert torch.equal(before[layer].relu(), after[layer])
    assert torch.equal(before["head"], after["head"])
    assert chain.last_norm("stages.1.0") is chain.plain().stages[1][0].bn2
    assert chain.last_norm("act") is chain.plain().bn


class Projected(nn.Module):
    """A residual block whose shortcut, with a norm, is computed first; the branch may be gated."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.relu, self.gated = nn.ReLU(), gated

    def forward(self, x: Tensor) -> Tensor:
        shortcut, branch = self.shortcut(x), self.branch(x.tanh())
        if self.gated:
            branch = branch * branch.mean(dim=(2, 3), keepdim=True).sigmoid()
        return self.relu(shortcut + branch)


@pytest.mark.parametrize("gated", [False, True])
def test_the_last_norm_of_a_residual_block_is_never_that_of_its_shortcut(gated):
    block = Projected(gated=gated)
    chain = cut(nn.Sequential(block, nn.Flatten(), nn.Linear(192, 3)))
    assert chain.last_norm("0") is (None if gated else block.branch[1])


@torch.no_grad()
def test_before_the_activation_of_a_preactivated_network_is_the_next_norm():
    network = nn.Sequential(Preactivated(), Preactivated(), nn.Flatten(), nn.Linear(192, 3))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
    chain = cut(network)
    plain, before = chain.trace(images()), chain.trace(images(), before_activation=True)
    assert torch.equal(before["0"], network[1].bn(plain["0"]))
    assert torch.equal(before["1"], plain["1"])
    assert chain.last_norm("0") is network[1].bn
    assert chain.last_norm("1") is None


def test_behind_a_barrier_no_gradient_flows_back():
    chain = cut(Net())
    traced = chain.trace(images(), ["stages.0.1"], detach_after="stages.0.1")
    grad = torch.autograd.grad(traced["head"].sum(), chain.plain().conv.weight, allow_unused=True)
    assert grad == (None,)
    traced["stages.0.1"].sum().backward()
    assert chain.plain().conv.weight.grad.abs().sum() > 0
    assert torch.equal(traced["head"], chain(images()))


def test_the_listing_adds_up_to_the_network():
    network = Net()
    rows = list_layers(cut(network), SHAPE)
    assert [row.layer for row in rows] == [
        "act", "stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "head",
    ]  # fmt: skip
    assert [row.shape for row in rows][2:] == [(4, 8, 8), (8, 4, 4), (8, 4, 4), (3,)]
    assert sum(row.parameters for row in rows) == num_parameters(network)
    assert sum(row.multiply_adds for row in rows) == multiply_adds(network, images(1))
    # by hand: 3x3 kernels from 3 to 4 channels on 8x8 pixels; BN has 2 x 4 parameters
    assert (rows[0].parameters, rows[0].multiply_adds) == (3 * 4 * 9 + 8, 3 * 4 * 9 * 64)
    assert (rows[-1].parameters, rows[-1].multiply_adds) == (8 * 3 + 3, 8 * 3)
    text = render_layers(rows, ["models: a note"])
    assert text.splitlines()[0].split() == [
        "layer", "shape", "layout", "parameters", "MACs", "stage",
    ]  # fmt: skip
    assert [line.split()[0] for line in text.splitlines() if line.endswith(" *")] == [
        "stages.0.1", "stages.1.1",
    ]  # fmt: skip
    assert text.endswith("models: a note")


def test_activations_are_the_outputs_of_modules_without_submodules():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert activations(network, torch.zeros(2, 3, 8, 8)) == 3 * (2 * 4 * 64)


def test_multiply_adds_of_attention_are_counted_in_any_form():
    # by hand: T tokens of width D, h heads: 4 T D^2 for the projections, 2 T^2 D for the products
    tokens, width = 5, 8
    attention = nn.TransformerEncoderLayer(width, 2, dim_feedforward=16, batch_first=True)
    expected = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 16
    assert multiply_adds(attention.train(), torch.rand(1, tokens, width)) == expected
    assert attention.training


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224"]
)
def test_multiply_adds_are_those_that_torch_counts(name):
    network, image = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    ours = multiply_adds(network, image)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        spelled_out = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), spelled_out, FlopCounterMode(display=False) as counter:
            network.eval()(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert ours == counter.get_total_flops() // 2


def test_counting_does_not_import_the_compiler():
    """It takes about as long as importing torch, for every job."""
    code = (
        "import sys, torch; from kdsteps.models.cost import multiply_adds; "
        "assert multiply_adds(torch.nn.Linear(3, 4), torch.zeros(1, 3)) == 12; "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def small(*first: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    return nn.Sequential(
        *first, convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x)  # in eval mode as well


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (Dropping(), "other logits for the same images in another pass, as with dropout"),
        (nn.BatchNorm2d(3, track_running_stats=False), "if another image is beside it"),
    ],
)
def test_a_network_whose_logits_depend_on_more_than_the_image_is_refused(first, words):
    network = small(first)
    before = torch.get_rng_state()
    with pytest.raises(KdstepsError, match=words):
        CutChain(network, image_shape=SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


class Clamping(nn.Module):
    def __init__(self, only_in_training: bool = False) -> None:
        super().__init__()
        self.only_in_training = only_in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.only_in_training and not self.training:
            return x.clamp(0.2, 0.8)
        return x.clamp_(0.2, 0.8)


@pytest.mark.parametrize(
    "first", [Clamping(), Clamping(True), nn.Threshold(0.5, 0.1, inplace=True)]
)
def test_a_network_that_writes_into_its_images_leaves_them_to_the_teacher(first):
    chain = CutChain(small(first), image_shape=SHAPE)
    for mode in (True, False):
        chain.train(mode)
        given = images()
        before = given.clone()
        chain(given)
        chain.trace(given)
        chain.front(chain.layers[0])(given)
        assert torch.equal(given, before)


def test_a_network_that_leaves_its_images_alone_does_not_copy_them():
    chain = CutChain(small(), image_shape=SHAPE)
    given = images()
    assert chain.for_network(given) is given


class Scaled(nn.Module):
    """Its first parameter has another type than its layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype), requires_grad=False)
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3))) * self.scale.real.float()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64])
def test_the_type_of_images_is_that_of_most_weights(dtype):
    chain = CutChain(Scaled(dtype), image_shape=SHAPE)
    assert chain.layers == ("body", "head")[: len(chain.layers)] != ()
    assert feature_shapes(chain, SHAPE).keys() == set(chain.layers)
    kept = [parameter.dtype for parameter in frozen(chain, SHAPE).parameters()]
    assert kept == [dtype, *[torch.float32] * 4]
