"""Networks from a factory that kdsteps does not know: what it gets, and what it may return."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model

NETS = """
import torch
from torch import nn
from kdsteps.models import build_model

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=3, width: int = 4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(images)).mean(dim=(2, 3)))

class Wider(Net):
    def __init__(self, **options):
        super().__init__(**options, width=8)

def chain(num_classes, in_channels, image_size):
    return build_model("cifar_resnet", num_classes=num_classes, depth=8, widths=(2, 2, 2, 2))

class Several(Net):
    def __init__(self, num_classes, form: str = "dictionary", in_training: bool = False):
        super().__init__(num_classes)
        self.form, self.in_training = form, in_training
        self.auxiliary = nn.Linear(4, num_classes)
        if form == "two heads":
            self.head_dist = self.auxiliary

    def forward(self, images):
        first = self.first(images)
        second = self.second(first)
        logits = self.head(second.mean(dim=(2, 3)))
        if self.in_training and not self.training:
            return logits
        return {
            "dictionary": {"features": second, "scores": logits},
            "auxiliary": (logits, self.auxiliary(first.mean(dim=(2, 3)))),
            "two heads": (logits, self.auxiliary(first.mean(dim=(2, 3)))),
            "features only": [first, second],
        }[self.form]

class Tokens(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.unfold, self.embed = nn.Unfold(2, stride=2), nn.Linear(12, 4)
        self.extra = nn.Parameter(torch.zeros(1, 9, 4))
        layers = (nn.TransformerEncoderLayer(4, 1, 4, batch_first=True) for _ in range(2))
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(4, num_classes)

    def forward(self, images):
        tokens = self.embed(self.unfold(images).transpose(1, 2))
        tokens = torch.cat([self.extra.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.blocks(tokens).mean(dim=1))

class PartlyScripted(Net):
    def __init__(self, **options):
        super().__init__(**options)
        self.first = torch.jit.script(self.first)

def scripted(num_classes):
    return torch.jit.script(Net(num_classes))

class Lazy(nn.Module):
    def __init__(self, num_classes, hidden: int = 8):
        super().__init__()
        self.first = nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU())
        self.second, self.head = nn.LazyLinear(hidden), nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(images).flatten(1)))

class Weightless(nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))[:, [0, 0, 1, 1, 2]]

def named(num_classes, output: str):
    assert output == "mine"
    return Net(num_classes)

def fixed():
    return Net(7)

def nothing(num_classes): ...

def failing(num_classes, *, width: int):
    raise RuntimeError("width is odd")
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)


def build(name: str, **options):
    return build_model(f"./nets.py:{name}", num_classes=5, image_size=8, **options)


@pytest.mark.parametrize(("name", "width"), [("Net", 6), ("Wider", 8)])
def test_a_module_is_cut_by_its_graph_and_gets_what_its_signature_names(name, width):
    chain = build(name, **({"width": width} if name == "Net" else {})).eval()
    assert [layer for layer in chain.layers if layer in ("first", "second")] == ["first", "second"]
    images = torch.randn(2, 3, 8, 8)
    features = chain.front("first")(images)
    assert features.shape[1] == width
    assert torch.equal(chain.tail("first")(features), chain(images))
    assert type(chain.plain()).__name__ == name


def test_a_part_that_torchscript_compiled_is_no_layer_and_belongs_to_the_block_after_it():
    chain = build("PartlyScripted").train()
    assert "first" not in chain.layers and "second" in chain.layers
    front, images = chain.front("second"), torch.randn(2, 3, 8, 8)
    count = sum(weight.numel() for weight in front.parameters())
    assert count == sum(
        weight.numel()
        for part in (chain.network.first, chain.network.second)
        for weight in part.parameters()
    )
    assert torch.equal(chain.tail("second")(front(images)), chain(images))
    front(images).sum().backward()
    assert all(weight.grad is not None for weight in chain.network.first.parameters())


def test_a_network_that_torchscript_compiled_has_logits_alone():
    chain = build("scripted")
    assert chain.layers == () and "TorchScript" in chain.notes[0]
    assert chain(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_lazy_layers_get_their_weights_from_the_seed_and_the_size_of_the_images():
    options = {"num_classes": 5, "in_channels": 3, "image_size": (8, 12)}
    torch.manual_seed(3)
    chain = build_model("./nets.py:Lazy", **options).eval()
    assert chain.layers == ("first", "second")
    assert chain.plain().second.weight.shape == (8, 4 * 8 * 12)
    assert chain(torch.rand(2, 3, 8, 12)).shape == (2, 5)
    torch.manual_seed(3)
    again = build_model("./nets.py:Lazy", **options).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in chain.state_dict().items())
    with torch.device("meta"):
        assert build_model("./nets.py:Lazy", **options).layers == ("first", "second")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_that_is_built_without_gradients_is_cut_alike_and_can_be_trained(mode):
    built = {"num_classes": 3, "in_channels": 1, "image_size": 8, "name": "test_resnet"}
    with mode():
        chain = build_model("timm", **built)
    assert chain.layers == build_model("timm", **built).layers
    chain(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(weight.grad is not None for weight in chain.parameters())


def test_a_chain_is_used_as_it_is():
    assert "layer1.0" in build("chain").layers


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fixed", {}, "returns (2, 7) for 2 images; the study has 5 classes"),
        ("nothing", {}, "returns a value of type NoneType; it should return an nn.Module"),
        ("failing", {"width": 3}, "cannot be built (RuntimeError: width is odd)"),
        ("Net", {"widht": 3}, "widht is an unknown key; did you mean 'width'"),
        ("Net", {"width": 2.5}, "width is 2.5; it should be a whole number"),
        ("Weightless", {}, "has no parameters, as networks have after torch.jit.freeze"),
        ("Nett", {}, "has no model family 'Nett'; did you mean 'Net'"),
    ],
)
def test_what_cannot_serve_is_refused_in_a_sentence(name, options, said):
    with pytest.raises(KdstepsError) as caught:
        build(name, **options)
    assert said in str(caught.value)


def test_a_network_is_cut_for_images_of_a_known_size():
    with pytest.raises(KdstepsError, match="image_size"):
        build_model("./nets.py:Net", num_classes=5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, "scores"),
        ({"form": "auxiliary"}, 0),
        ({"form": "auxiliary", "in_training": True}, 0),
        ({"form": "auxiliary", "in_training": True}, -2),
    ],
)
@torch.no_grad()
def test_the_logits_among_several_outputs_are_named_in_params_yaml(options, output, training):
    torch.manual_seed(0)
    chain = build("Several", **options, output=output).train(training)
    images = torch.randn(2, 3, 8, 8)
    network = chain.plain()
    logits = network.head(network.second(network.first(images)).mean(dim=(2, 3)))
    assert torch.equal(chain(images), logits)
    assert torch.equal(chain.tail("first")(chain.front("first")(images)), logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "returns a dictionary with features, scores; say which are the logits"),
        ({"output": "score"}, "in which there is no 'score'"),
        ({"form": "auxiliary"}, "returns 2 outputs ((2, 5), (2, 5)); say which are the logits"),
        ({"form": "auxiliary", "in_training": True}, "2 outputs ((2, 5), (2, 5)); say which"),
        ({"form": "auxiliary", "output": 2}, "in which there is no 2"),
        ({"form": "two heads"}, "2 outputs ((2, 5), (2, 5)); say which"),
        ({"form": "features only"}, "returns 2 outputs ((2, 4, 8, 8), (2, 4, 4, 4)); say which"),
        ({"form": "features only", "output": 1}, "(2, 4, 4, 4) for 2 images; it should return"),
    ],
)
def test_outputs_are_never_chosen_or_averaged_silently(options, said):
    with pytest.raises(KdstepsError) as caught:
        build("Several", **options)
    assert said in str(caught.value)


@torch.no_grad()
def test_heads_that_a_network_averages_in_evaluation_are_averaged_in_training():
    chain = build("Several", form="two heads", in_training=True).train()
    images = torch.randn(2, 3, 8, 8)
    both = torch.stack(chain.plain()(images)).mean(dim=0)
    assert torch.equal(chain(images), both)


def test_prefix_tokens_may_be_set_in_params_yaml():
    assert build("Tokens").token_grid("blocks.0") == (0, 5, 5)  # of 16 patches and 9 other tokens
    chain = build("Tokens", prefix_tokens=9).eval()
    assert chain.token_grid("blocks.0") == (9, 4, 4)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(chain.tail("blocks.0")(chain.front("blocks.0")(images)), chain(images))
    assert "prefix_tokens 3 does not fit" in build("Tokens", prefix_tokens=3).notes[0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Net", {"prefix_tokens": -1}, "prefix_tokens is -1; it should be at least 0"),
        ("Net", {"output": 1.5}, "output is 1.5; it should be text or a whole number"),
        ("Net", {"outputs": 1}, "outputs is an unknown key; did you mean 'output'"),
        ("chain", {"output": 0}, "returns a chain, which is not cut; leave out output"),
    ],
)
def test_options_of_cutting_that_cannot_be_are_a_sentence(name, options, said):
    with pytest.raises(KdstepsError) as caught:
        build(name, **options)
    assert said in str(caught.value)


def test_an_option_that_the_factory_has_itself_is_its_own():
    assert build("named", output="mine").layers
