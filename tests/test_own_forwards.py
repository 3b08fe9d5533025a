"""Forward methods that people write: parts of such a network are the network, or are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods._features import as_map
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.memory_format import batch_format, set_format

SHAPE = (3, 16, 16)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def block(inputs: int, outputs: int, stride: int | tuple[int, int] = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Plain(nn.Module):
    """Three blocks and a classifier; `between` is what happens after the first block."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 4), block(4, 8, 2), block(8, 8)
        self.fc = nn.Linear(8, 3)
        self.between = between or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.between(self.a(x)))).mean(dim=(2, 3)))


def cut(network: nn.Module) -> CutChain:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
    return CutChain(network, image_shape=SHAPE).eval()


def after_a_step(chain: CutChain, run: Callable[[CutChain, Tensor], Tensor]) -> dict[str, Tensor]:
    """Logits, gradients of all parameters, and buffers, of a step of a copy."""
    chain = copy.deepcopy(chain)
    logits = run(chain, images())
    (logits * torch.tensor([1.0, 0.5, -1.0])).sum().backward()
    assert not any(buffer.requires_grad for buffer in chain.network.buffers())
    found = {"logits": logits.detach()} | dict(chain.network.named_buffers())
    for name, weight in chain.network.named_parameters():
        found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return found


def check_parts(chain: CutChain, *, training: bool) -> None:
    """A step in two parts, at each layer, is a step of the whole."""
    chain.train(training)
    whole = after_a_step(chain, lambda each, batch: each(batch))
    for layer in chain.layers:
        parts = after_a_step(
            chain, lambda each, batch, at=layer: each.tail(at)(each.front(at)(batch))
        )
        for name, value in whole.items():
            assert torch.allclose(parts[name], value, rtol=1e-4, atol=1e-5), (layer, name)


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x - 0.5).sign()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * slope, None


class Moving(nn.Module):
    """A norm by moving averages that it keeps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("square", torch.ones(4))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        mean, square = self.mean, self.square
        if self.training:
            mean, square = x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))
            with torch.no_grad():
                self.mean.mul_(0.9).add_(mean, alpha=0.1)
            self.square.mul_(0.9)
            self.square.add_(0.1 * square.detach())
            self.steps.add_(1)
        return (x - mean[:, None, None]) / (square[:, None, None] + 0.1).sqrt()


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "between",
    [Sign.apply, lambda x: Reversal.apply(x, 0.5), without_gradients, Moving()],
    ids=["straight through", "reversal", "no_grad", "moving averages"],
)
def test_parts_have_the_gradients_and_the_buffers_of_the_whole(between, training):
    chain = cut(Plain(between))
    assert chain.layers[-2:] == ("b", "c")
    check_parts(chain, training=training)


def test_parts_do_not_turn_gradients_on_or_leave_them_off():
    chain = cut(Plain(without_gradients))
    tail = chain.tail("a")
    with torch.no_grad():
        assert not tail(chain.front("a")(images())).requires_grad
    assert torch.is_grad_enabled()
    assert tail(chain.front("a")(images())).requires_grad
    assert torch.is_grad_enabled()


def in_bfloat16(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.conv2d(x, torch.ones(4, 4, 1, 1)).float()


def test_a_network_that_turns_autocast_on_is_not_cut():
    chain = cut(Plain(in_bfloat16))
    assert chain.layers == ()
    assert "turns autocast on or off" in chain.notes[0]


class Skipping(nn.Module):
    """Skips at random, as its own generator says."""

    def __init__(self) -> None:
        super().__init__()
        self.own = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.own.random() < 0.5 else 2 * x


def test_what_a_network_draws_from_a_generator_of_its_own_is_not_repeated_by_its_parts():
    chain = cut(Plain(Skipping())).train()
    with pytest.raises(KdstepsError, match="draws random numbers outside of tensor operations"):
        chain.tail("b")


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return 2 * x


class Banking(Counting):
    """Assigns an item of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.bank[1] = x.detach().mean(dim=(0, 2, 3))
        return x


def test_a_buffer_that_is_assigned_is_named_and_one_of_which_an_item_is_assigned_is_followed():
    chain = cut(Plain(Counting())).train()
    with pytest.raises(KdstepsError, match=r"assigns the buffer 'between.steps'; let it write"):
        chain.tail("b")
    check_parts(cut(Plain(Banking())), training=True)


def test_an_error_within_no_grad_leaves_gradients_as_they_were():
    class Paused(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    tail = cut(Plain(Paused(4, 4, 1))).front("between")
    with pytest.raises(RuntimeError, match="channels"):
        tail(torch.rand(2, 7, 8, 8))
    assert torch.is_grad_enabled()


class Ramped(Plain):
    """Scales by a buffer of its own, which grows while it trains."""

    def __init__(self) -> None:
        super().__init__(self.scaled)
        self.register_buffer("scale", torch.full((), 0.1))
        self.register_buffer("own", torch.ones(()), persistent=False)

    def scaled(self, x: Tensor) -> Tensor:
        return self.own * self.scale * x


def test_buffers_are_saved_and_loaded_with_the_parts_that_use_them():
    one, other = cut(Ramped()), cut(Ramped())
    part, again = one.front("b"), other.front("b")
    one.network.scale.fill_(0.7)
    state = part.state_dict()
    again.load_state_dict(state)
    assert other.network.scale == 0.7
    assert torch.equal(again(images()), part(images()))
    one.network.scale = torch.full((), 0.2)  # another tensor, as after `.to(device)`
    assert [float(value) for value in part.state_dict().values() if value.ndim == 0][-1] != 0.7
    assert len(state) == len(again.state_dict())
    assert sum(value.ndim == 0 and value == 0.7 for value in state.values()) == 1


# outputs that are layers


class Stripes(nn.Module):
    """Its maps are narrow: 8 channels of 8 x 4 look like maps of 8 x 8 with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 8, 2), block(8, 8, (1, 2)), block(8, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x))).mean(dim=(2, 3)))


def test_the_output_of_a_convolution_has_its_channels_first_whatever_its_proportions():
    chain = cut(Stripes())
    assert {layer: chain.layout(layer) for layer in chain.layers} == dict.fromkeys("abc", "map")
    features = chain.trace(images())["b"]
    assert torch.equal(as_map(chain, "b", features), features)


class Patches(nn.Module):
    """Tokens on a grid of 16 x 16 with 16 features, in their order in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 1)
        self.a, self.b = (nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(2))
        self.merge = nn.Sequential(nn.Linear(64, 12), nn.Linear(12, 12))
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.embed(x).permute(0, 2, 3, 1)))
        x = x.unflatten(2, (8, 2)).unflatten(1, (8, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.fc(self.merge(x).mean(dim=(1, 2)))


def test_maps_with_the_channels_last_are_so_even_if_their_shape_is_that_of_a_convolution():
    chain = cut(Patches())
    layers = ("a.0", "a.1", "b.0", "b.1", "merge.0", "merge.1")
    assert chain.layers == ("embed", *layers)
    assert {chain.layout(layer) for layer in layers} == {"map_last"}


class Mixing(nn.Module):
    """A convolution over tokens, (N, L, C) with L in the place of channels, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.features = nn.Conv1d(16, 16, 1), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x)
        return x + self.features(x)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 24, 4, 4), nn.Sequential(Mixing(), Mixing())
        self.norm, self.fc = nn.LayerNorm(24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return self.fc(self.norm(x).mean(dim=1))


def test_tokens_are_layers_although_a_convolution_over_them_returns_their_shape():
    chain = cut(Mixer())
    assert {"blocks.0", "blocks.1"} <= set(chain.layers)
    assert chain.layout("blocks.0") == "tokens"
    assert chain.notes == []


class Rows(Plain):
    """Convolutions along the pixels of a map, in a row."""

    def __init__(self) -> None:
        super().__init__(self.along)
        self.first, self.last = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)

    def along(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(2))).unflatten(2, (16, 16))


class Indices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(dim=1)


class Codes(Plain):
    """A quantizer: whole numbers between."""

    def __init__(self) -> None:
        super().__init__(self.coded)
        self.indices, self.codes = Indices(), nn.Embedding(4, 4)

    def coded(self, x: Tensor) -> Tensor:
        return self.codes(self.indices(x)).permute(0, 3, 1, 2)


class Frames(Plain):
    """Maps as films of one frame."""

    def __init__(self) -> None:
        super().__init__(self.filmed)
        self.film = nn.Conv3d(4, 4, 3, padding=1)

    def filmed(self, x: Tensor) -> Tensor:
        return self.film(x.unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize(
    ("network", "paths"),
    [(Rows, ("first", "last")), (Codes, ("indices",)), (Frames, ("film",))],
)
def test_outputs_that_are_no_maps_tokens_or_vectors_of_real_numbers_are_no_layers(network, paths):
    chain = cut(network())
    assert not set(paths) & set(chain.layers)
    assert {"a", "b", "c"} <= set(chain.layers)
    (note,) = [note for note in chain.notes if "cannot be layers" in note]
    assert note.startswith(f"models: {', '.join(paths)} ")


# memory formats


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        return self.fc(x.view(x.size(0), -1))


def test_a_network_that_views_its_maps_as_rows_keeps_them_contiguous():
    chain = cut(LeNet())
    assert batch_format(chain) is torch.contiguous_format
    assert batch_format(cut(Plain())) is torch.channels_last
    tail = nn.ModuleList([chain.tail("c1"), Plain()])
    set_format(tail, torch.channels_last)  # as with a student that runs so
    last = {"memory_format": torch.channels_last}
    assert tail[1].b[0].weight.is_contiguous(**last)
    assert chain.network.c2.weight.is_contiguous()
    batch = images().contiguous(**last)
    assert torch.allclose(chain(batch), chain(images()))
    features = chain.front("c1")(images()).contiguous(**last)
    assert torch.allclose(tail[0](features), chain(images()), atol=1e-6)


class Gray(LeNet):
    """Its images have one channel, for which both memory formats are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 4, 3, padding=1)


class TrainedLeNet(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        if self.training:
            x = x.view(len(x), -1).view_as(x)
        return self.fc(self.c(x).mean(dim=(2, 3)))


def test_it_does_with_gray_images_and_if_it_does_so_in_training_alone():
    assert CutChain(Gray(), image_shape=(1, 16, 16)).needs_contiguous
    assert cut(TrainedLeNet()).needs_contiguous


def test_only_the_weights_of_convolutions_change_their_format():
    network = Plain()
    network.own = nn.Parameter(torch.rand(4, 4, 8, 2))
    set_format(network, torch.channels_last)
    assert torch.view_as_complex(network.own).shape == (4, 4, 8)
    assert not network.b[0].weight.is_contiguous()


# what is refused


class Squeezing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.c(self.b(self.a(x))), 1).squeeze())


class Timed(Plain):
    def forward(self, x: Tensor, time: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * super().forward(x) + time


class Hooked(Plain):
    """Reads a block's output from where a hook put it, by the name of the first copy."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda _module, _inputs, out: self.kept.update(a=out))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.kept["a"].mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Squeezing, r"the shape \(3,\) for one image; it should be \(1, 3\)"),
        (Timed, "its forward needs 'time' too; give it a default"),
        (Hooked, "does not compute the same once it is copied"),
    ],
)
def test_what_cannot_be_a_network_of_a_study_is_refused_in_a_sentence(network, said):
    with pytest.raises(KdstepsError, match=said):
        cut(network())


def test_a_network_that_torchscript_traced_has_logits_alone():
    chain = CutChain(torch.jit.trace(Plain().eval(), images(2)), image_shape=SHAPE)
    assert chain.layers == ()
    assert "TorchScript" in chain.notes[0]


class Starred(Plain):
    def forward(self, *given: Tensor) -> Tensor:
        return super().forward(given[0])


def test_a_network_whose_graph_does_not_run_has_logits_alone(capfd):
    chain = cut(Starred())
    assert chain.layers == ()
    assert "cannot be cut, because its parts in a row do not run" in chain.notes[0]
    assert torch.equal(chain(images()), chain.network(images()))
    assert capfd.readouterr().err == ""


def test_a_network_that_was_looked_at_can_be_copied():
    network = Plain()
    nn.utils.spectral_norm(network.b[0])  # it keeps what it computes
    copied = copy.deepcopy(cut(network))
    assert torch.equal(copied(images()), cut(network)(images()))
