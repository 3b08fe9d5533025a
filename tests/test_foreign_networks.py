"""Networks from a factory that kdsteps does not know: what it gets, and what it may return."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model

NETS = """
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


def test_a_chain_is_used_as_it_is():
    assert "layer1.0" in build("chain").layers


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fixed", {}, "returns (2, 7) for 2 images; the study has 5 classes"),
        ("nothing", {}, "returns a NoneType; it should return an nn.Module"),
        ("failing", {"width": 3}, "cannot be built (RuntimeError: width is odd)"),
        ("Net", {"widht": 3}, "widht is an unknown key; did you mean 'width'"),
        ("Net", {"width": 2.5}, "width is 2.5; it should be a whole number"),
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
