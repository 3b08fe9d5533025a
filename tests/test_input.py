"""Normalization and resizing as the first step of a chain: the law, the numbers, and folding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from _networks import network
from torch import Tensor, nn
from torchvision.io import decode_image

from kdsteps.data.images import ImageSplit
from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.models.input import (
    Center,
    InputChain,
    InputContract,
    Normalize,
    ToFloat,
)
from kdsteps.models.memory_format import batch_format
from kdsteps.teachers.frozen import frozen

CONTRACT = InputContract((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SHAPE = (3, 16, 16)
KINDS = ["resnet", "large wide resnet", "mobilenet", "vit", "timm resnet", "timm vit"]


def pixels(count: int = 4, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


def fed(kind: str, contract: InputContract = CONTRACT) -> InputChain:
    return InputChain(network(kind), contract).eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalizing_gives_the_bytes_of_the_data_set(memory_format):
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    images = pixels().contiguous(memory_format=memory_format)
    part = ImageSplit(images, torch.zeros(4), mean, std, memory_format=memory_format)
    normalized = Normalize(mean, std)(images)
    assert torch.equal(normalized, part.normalized(images))
    assert normalized.is_contiguous(memory_format=memory_format)
    assert torch.equal(Normalize(mean, std)(images.float()), normalized)
    by_hand = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalized, by_hand.float(), rtol=1e-5, atol=1e-6)


def test_floating_pixels_are_left_as_they_are():
    images = pixels().float()
    before = images.clone()
    Normalize(CONTRACT.mean, CONTRACT.std)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("contract", [CONTRACT, InputContract(*([(0.5,) * 3] * 2), (16, 16))])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_law_holds_at_every_layer_of_a_network_that_takes_pixels(kind, contract):
    chain = fed(kind, contract)
    images = pixels(shape=(3, 24, 20) if contract.size else SHAPE)
    whole, read = chain(images), chain.trace(images)
    assert chain.layers == chain.chain.layers
    for layer in chain.layers:
        features = chain.front(layer)(images)
        assert torch.equal(features, read[layer])
        torch.testing.assert_close(chain.tail(layer)(features), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pixels_give_the_logits_of_the_normalized_images():
    chain = fed("resnet")
    normalized = Normalize(CONTRACT.mean, CONTRACT.std)(pixels())
    assert torch.equal(chain(pixels()), chain.chain(normalized))


def test_weights_keep_their_names_and_the_step_is_not_among_them():
    chain = fed("resnet")
    assert chain.plain() is chain.chain.plain()
    assert list(chain.plain().state_dict()) == list(network("resnet").plain().state_dict())
    assert not [name for name in chain.state_dict() if not name.startswith("chain.")]


@torch.no_grad()
def test_a_constant_color_stays_when_images_are_resized():
    chain = fed("resnet", InputContract(CONTRACT.mean, CONTRACT.std, (16, 16), "bicubic"))
    color = torch.tensor([10, 100, 255], dtype=torch.uint8)[None, :, None, None]
    large, small = (color.expand(1, 3, side, side).contiguous() for side in (40, 16))
    torch.testing.assert_close(chain(large), chain(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("resnet", Center),
        ("mobilenet", Center),
        ("timm resnet", Center),
        ("vit", ToFloat),  # patches without padding
        ("timm vit", ToFloat),
    ],
)
@torch.no_grad()
def test_folding_takes_the_scale_always_and_the_mean_where_nothing_is_padded(kind, step):
    chain = fed(kind)
    before = copy.deepcopy(chain.state_dict())
    folded = frozen(chain, SHAPE)
    assert isinstance(folded, InputChain) and type(folded.normalize) is step
    expected, found = chain.trace(pixels()), folded.trace(pixels())
    for layer, features in expected.items():
        torch.testing.assert_close(found[layer], features, rtol=1e-4, atol=1e-4, msg=layer)
    for layer in folded.layers:
        joined = folded.tail(layer)(folded.front(layer)(pixels()))
        torch.testing.assert_close(joined, found["head"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in chain.state_dict().items())
    assert type(chain.normalize) is Normalize


class Shortcut(nn.Module):
    """Reads its images twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((images + self.conv(images)).mean(dim=(2, 3)))


@torch.no_grad()
def test_images_that_are_read_twice_are_normalized_as_before():
    from kdsteps.models.cut.cutting import CutChain

    chain = InputChain(CutChain(Shortcut(), image_shape=SHAPE), CONTRACT).eval()
    folded = frozen(chain, SHAPE)
    assert isinstance(folded, InputChain) and type(folded.normalize) is Normalize
    assert torch.equal(folded(pixels()), chain(pixels()))


@torch.no_grad()
def test_folding_is_exact_up_to_rounding_at_the_borders_too():
    chain = fed("resnet").double()
    folded = frozen(chain, SHAPE)
    layer = chain.layers[0]
    torch.testing.assert_close(
        folded.trace(pixels())[layer], chain.trace(pixels())[layer], rtol=1e-11, atol=1e-11
    )


def test_published_networks_name_their_own_normalization():
    pytest.importorskip("timm")
    found = {
        name: _published(family, name)
        for family, name in (
            ("timm", "test_resnet"),
            ("timm", "resnet18.a1_in1k"),
            ("torchvision", "resnet18"),
            ("torchvision", "swin_t"),
        )
    }
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found["test_resnet"] == InputContract((0.5,) * 3, (0.5,) * 3, None, "bilinear")
    assert found["resnet18.a1_in1k"] == InputContract(*imagenet, None, "bicubic")
    assert found["resnet18"] == InputContract(*imagenet, None, "bilinear")
    assert found["swin_t"] == InputContract(*imagenet, None, "bicubic")
    assert network("resnet").published is None


def _published(family: str, name: str) -> InputContract:
    chain = build_model(family, name=name, num_classes=2, image_size=32)
    assert chain.published is not None and chain.published.num_classes == 1000
    return chain.published.input


def test_a_contract_fits_other_channels():
    assert CONTRACT.for_channels(1, "m").mean == pytest.approx((0.5,))
    assert CONTRACT.for_channels(4, "m").std == (0.2, 0.25, 0.3, 0.2)
    with pytest.raises(KdstepsError, match=r"models\.big: normalize has 1 channels.*have 3"):
        InputContract((0.5,), (0.5,)).for_channels(3, "models.big")


FAULTS = Path(__file__).parents[2] / "shared/faults"


@torch.no_grad()
def test_a_teacher_of_another_normalization_is_right_once_it_has_its_own():
    if not FAULTS.is_dir():
        pytest.skip("../shared/faults is not beside this repository")
    table = pq.read_table(FAULTS / "dark-images.parquet").to_pydict()
    images = torch.stack([_decoded(entry) for entry in table["image"]])
    classes = sorted(set(table["label"]))
    labels = torch.tensor([classes.index(label) for label in table["label"]])
    chain: Chain = build_model(
        "timm",
        name="test_resnet",
        num_classes=len(classes),
        image_size=16,
        checkpoint=str(FAULTS / "teacher-imagenet-normalization.safetensors"),
    )
    right = InputContract((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    own = images.float().div(255).permute(1, 0, 2, 3).flatten(1)
    wrong = InputContract(tuple(own.mean(1).tolist()), tuple(own.std(1).tolist()))
    accuracy = {}
    for contract in (right, wrong):
        predicted = InputChain(chain, contract).eval()(images).argmax(dim=1)
        accuracy[contract] = (predicted == labels).float().mean().item()
    assert accuracy[right] == 1
    assert accuracy[wrong] < 0.5


def _decoded(entry: Any) -> Tensor:
    content = entry["bytes"] if isinstance(entry, dict) else entry
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8))


@torch.no_grad()
def test_memory_format_and_weights_of_a_folded_network_are_those_of_its_kind():
    folded = frozen(fed("timm resnet"), SHAPE)
    assert batch_format(folded) is torch.channels_last
    images = pixels().contiguous(memory_format=torch.channels_last)
    assert isinstance(folded, InputChain)
    assert folded.input(images).is_contiguous(memory_format=torch.channels_last)
    assert next(folded.parameters()).dtype is torch.float32
