"""Networks that return more than logits, branch on sizes or come with names of other places."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.cut.cutting import CutChain
from kdsteps.study.entries import ModelEntry
from kdsteps.study.resolving import resolve_model

SHAPE = (3, 8, 8)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class Returning(nn.Module):
    """Two convolutions and a classifier of as many outputs as it has features.

    Args:
        form: What it returns.
        in_training: Whether it returns the logits alone in eval mode.
    """

    def __init__(self, form: str, in_training: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.fc, self.aux = nn.Linear(3, 3), nn.Linear(3, 3)
        self.form, self.in_training = form, in_training

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        auxiliary = self.aux(x.mean(dim=(2, 3)))
        x = self.body(x)
        features = x.mean(dim=(2, 3))
        logits = self.fc(features)
        if self.in_training and not self.training:
            return logits
        return {
            "logits key": {"features": features, "logits": logits},
            "other keys": {"features": features, "scores": logits},
            "tuple": (logits, features),
            "list": [auxiliary, logits],
            "named tuple": Named(features, logits),
            "maps": [x, x],
            "one map": x,
        }[self.form]

    def logits(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("logits key", None),
        ("logits key", "logits"),
        ("other keys", "scores"),
        ("tuple", 0),
        ("list", 1),
        ("list", -1),
        ("named tuple", None),
        ("named tuple", "logits"),
        ("named tuple", 1),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_found_among_the_outputs_in_either_mode(form, output, in_training, training):
    torch.manual_seed(0)
    network = Returning(form, in_training)
    chain = CutChain(network, image_shape=SHAPE, output=output).train(training)
    expected = network.logits(images())
    assert torch.equal(chain(images()), expected)
    assert chain.layers == ("stem", "body")
    for layer in chain.layers:
        assert torch.equal(chain.tail(layer)(chain.front(layer)(images())), expected)


@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize(
    ("form", "output", "sentence"),
    [
        ("other keys", None, r"a dictionary with features, scores; .* `output: KEY`"),
        (
            "other keys",
            "logit",
            r"a dictionary with .*scores, in which there is no 'logit'",
        ),
        ("tuple", None, r"2 outputs \(\(2, 3\), \(2, 3\)\); say which .*`output: INDEX`"),
        ("tuple", 2, r"2 outputs .* in which there is no 2"),
        ("list", None, r"2 outputs"),
        ("maps", None, r"2 outputs \(\(2, 3, 8, 8\), \(2, 3, 8, 8\)\)"),
    ],
)
def test_outputs_whose_logits_are_unclear_are_a_sentence_at_once(
    form, output, in_training, sentence
):
    with pytest.raises(KdstepsError, match=f"models: Returning returns {sentence}"):
        CutChain(Returning(form, in_training), image_shape=SHAPE, output=output)


def test_a_map_is_not_taken_for_logits():
    with pytest.raises(KdstepsError, match=r"\(2, 3, 8, 8\) for 2 images; .* logits \(N, K\)"):
        CutChain(Returning("one map"), image_shape=SHAPE)


class Branching(nn.Module):
    """Branches on the size of its images, inside and before its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(3, 4, 3, padding=1)
        self.large = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.small(x) if x.shape[-1] < 32 else self.large(x)
        x = self.body(x)
        if min(x.shape[2], x.shape[3]) > 4 and len(x) > 0:
            x = x[:, :, 1:]
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(("side", "first"), [(8, "small"), (32, "large")])
def test_a_branch_on_the_size_of_the_images_is_followed(side, first):
    network = Branching()
    chain = CutChain(network, image_shape=(3, side, side)).eval()
    assert chain.layers == (first, "body")
    batch = torch.rand(5, 3, side, side)
    for layer in chain.layers:
        assert torch.equal(chain.tail(layer)(chain.front(layer)(batch)), network(batch))


class ByNumber(nn.Module):
    """Branches on the number of images, for which no graph stands."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.shape[0] > 2 else self.fc(x.flatten(1) * 2)


def test_a_branch_on_the_number_of_images_is_not_followed():
    chain = CutChain(ByNumber(), image_shape=SHAPE)
    assert chain.layers == ()
    assert "no fixed graph" in chain.notes[0]


@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_options_that_follow_from_the_data_are_refused_at_planning(option):
    with pytest.raises(KdstepsError, match=rf"models\.big\.{option} follows from the data set"):
        resolve_model(
            ModelEntry.model_validate({"family": "timm", "name": "test_resnet", option: 3}),
            "models.big",
        )


def timm_network(name: str, **options: Any) -> Any:
    pytest.importorskip("timm")
    return build_model("timm", name=name, num_classes=5, image_size=32, **options)


def test_options_of_timm_that_leave_no_logits_are_a_sentence():
    with pytest.raises(KdstepsError, match=r"features_only .* no logits; leave it out"):
        timm_network("test_resnet", features_only=True)
    with pytest.raises(KdstepsError, match=r"test_resnet: in_chans follows from the images"):
        timm_network("test_resnet", in_chans=1)


def test_the_size_of_images_is_set_for_timm_as_for_every_network():
    with pytest.raises(KdstepsError, match=r"img_size is 64 and images have 32 .*set image_size"):
        timm_network("test_vit", img_size=64)
    chain = timm_network("test_vit", img_size=64, dynamic_img_size=True)
    assert chain.trace(torch.rand(2, 3, 32, 32), ["blocks.0"])["blocks.0"].shape[1] == 1 + 2 * 2


def test_a_local_folder_is_a_network_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    saved = timm.create_model("test_resnet", num_classes=5)
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {"num_classes": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    name = f"local-dir:{tmp_path}"
    chain = timm_network(name, pretrained=True).eval()
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(chain(batch), saved.eval()(batch))
    assert not torch.equal(timm_network(name).eval()(batch), saved(batch))
    with pytest.raises(KdstepsError, match=r"nowhere: there is no .*nowhere/config\.json"):
        timm_network(f"local-dir:{tmp_path}/nowhere")


def test_a_name_on_the_hub_passes_through_and_offline_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("kdsteps.models.families.timm.reachable", lambda address: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(KdstepsError, match=r"hf-hub:timm/resnet18.*no connection to https"):
        timm_network("hf-hub:timm/resnet18.a1_in1k")


def test_pretrained_weights_for_other_classes_are_refused_unless_they_are_trained(tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    config = {"architecture": "test_resnet", "num_classes": 7}
    config |= {"pretrained_cfg": {"num_classes": 7, "classifier": "fc"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "model.safetensors"
    )
    options = {"pretrained": True, "name": f"local-dir:{tmp_path}"}
    with pytest.raises(KdstepsError, match=r"for 7 classes; fc\.weight, fc\.bias .*for 5 classes"):
        timm_network(**options)
    assert timm_network(**options, will_train=True).new_weights == ("fc.weight", "fc.bias")
