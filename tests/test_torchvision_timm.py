"""Networks that others wrote: cut and joined they answer as before, and they train as they are."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from _published import FEW, MANY, Published, build, pictures, stir
from safetensors.torch import save_file

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.models.families._download import reachable
from kdsteps.models.families.torchvision import _published_size
from kdsteps.models.input import Normalize
from kdsteps.teachers.variants import IMAGENET

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

EVERY = [
    *(pytest.param(published, id=str(published)) for published in FEW),
    *(pytest.param(published, id=str(published), marks=pytest.mark.slow) for published in MANY),
]
QUICK = [pytest.param(published, id=str(published)) for published in FEW]
# drop path and dropout at work, also where they are functions and not modules
RANDOM = [
    Published("timm", "resnet10t", 32, 4, {"drop_path_rate": 0.5, "drop_rate": 0.5}),
    Published("timm", "vit_tiny_patch16_224", 32, 4, {"depth": 2, "drop_path_rate": 0.5}),
    Published("timm", "test_efficientnet", 32, 4, {"drop_path_rate": 0.5, "drop_rate": 0.2}),
    Published("torchvision", "mobilenet_v2", 32, 4, {"dropout": 0.5}),
    Published("torchvision", "efficientnet_b0", 32, 4, {"stochastic_depth_prob": 0.5}),
]


@pytest.fixture(scope="module", params=EVERY)
def published(request: pytest.FixtureRequest) -> Published:
    found: Published = request.param
    return found


@pytest.fixture(scope="module")
def chain(published: Published) -> Chain:
    """The network, which takes a while to build, with weights that hide no wrong cut."""
    torch.manual_seed(0)
    chain = build(published)
    stir(chain.plain(), pictures(published, 8))
    return chain


@torch.no_grad()
def test_tail_after_front_is_the_network_at_every_layer(published, chain):
    images = pictures(published, 3, seed=1)
    whole = chain(images)
    spread = (whole - whole.mean(dim=0)).abs().max()
    assert spread > 1e-6 * whole.abs().max()  # else a tail that forgets its input would pass
    read = chain.trace(images)
    assert list(read) == [*chain.layers, "head"]
    for layer in chain.layers:
        features = chain.front(layer)(images)
        assert torch.allclose(features, read[layer], rtol=1e-5, atol=1e-6), layer
        assert (chain.tail(layer)(features) - whole).abs().max() <= 1e-5 * spread, layer
    assert len(chain.stages) == published.stages
    assert set(chain.stages) <= set(chain.layers)


def test_a_step_of_training_moves_the_network_and_its_state_is_the_plain_one(published, chain):
    torch.manual_seed(0)
    images, labels = pictures(published, 8), torch.arange(8) % 5
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.01)
    before = copy.deepcopy(chain.plain().state_dict())
    F.cross_entropy(chain.train()(images), labels).backward()
    optimizer.step()
    state = chain.plain().state_dict()
    assert any(not torch.equal(state[key], before[key]) for key in state)
    again = _plain(published)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), chain.eval()(images))


@pytest.mark.parametrize("published", [pytest.param(p, id=str(p)) for p in RANDOM])
@torch.no_grad()
def test_in_training_mode_the_parts_draw_the_same_chance_as_the_whole(published):
    chain = build(published).train()
    images = pictures(published, 8)
    layer = chain.stages[-1]
    front, tail = chain.front(layer), chain.tail(layer)
    for module in chain.modules():  # the same statistics for whole and parts
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    torch.manual_seed(0)
    whole = chain(images)
    torch.manual_seed(0)
    read = chain.trace(images, [layer])
    torch.manual_seed(0)
    features = front(images)
    assert torch.equal(features, read[layer])
    assert torch.allclose(tail(features), whole, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    assert not torch.allclose(chain(images), whole, rtol=1e-3, atol=1e-4)  # chance is at work
    chain.eval()
    assert torch.allclose(tail(front(images)), chain(images), rtol=1e-5, atol=1e-6)


def test_a_student_with_two_heads_learns_from_both_and_answers_with_their_mean():
    published = Published("timm", "deit_tiny_distilled_patch16_224", 32, 4, {"depth": 2})
    chain = build(published)
    network = chain.plain()
    network.set_distilled_training(True)
    images = pictures(published, 4)
    chain.train()
    first, second = network(images)
    logits = chain(images)
    assert torch.allclose(logits, (first + second) / 2)
    traced = chain.trace(images, chain.layers[-1:])
    assert torch.allclose(chain.tail(chain.layers[-1])(traced[chain.layers[-1]]), logits)
    logits.sum().backward()
    assert network.head.weight.grad.abs().sum() > 0
    assert network.head_dist.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_auxiliary_heads_are_left_out_of_the_logits():
    options = {"aux_logits": True, "init_weights": False, "dropout": 0.0, "dropout_aux": 0.0}
    published = Published("torchvision", "googlenet", 64, 3, options)
    chain = build(published).train()
    images = pictures(published, 4)
    logits, *auxiliary = chain.plain()(images)
    assert len(auxiliary) == 2
    assert torch.equal(chain(images), logits)
    layer = chain.stages[-1]
    assert torch.allclose(chain.tail(layer)(chain.front(layer)(images)), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("published", "factor"),
    [
        (Published("timm", "resnet18", 64, 0), 4),
        (Published("timm", "resnet18d", 64, 0), 4),
        (Published("timm", "densenet121", 64, 0), 4),
        (Published("timm", "regnetx_002", 64, 0), 2),
        (Published("timm", "mobilenetv3_small_050", 64, 0), 2),
        (Published("timm", "tf_mobilenetv3_small_minimal_100", 64, 0), 2),
        (Published("timm", "convnext_atto", 64, 0), 4),
        (Published("timm", "vgg11", 64, 0, {"mlp_ratio": 0.03}), 1),
        (Published("torchvision", "resnet18", 64, 0), 4),
        (Published("torchvision", "mobilenet_v2", 64, 0), 2),
        (Published("torchvision", "squeezenet1_1", 64, 0), 4),
        (Published("torchvision", "convnext_tiny", 64, 0), 4),
    ],
    ids=str,
)
@pytest.mark.slow
@torch.no_grad()
def test_a_small_stem_keeps_more_of_a_small_image(published, factor):
    usual, small = build(published), build(published, small_stem=True)
    images = pictures(published, 2)
    # the last map before pooling; squeezenet's poolings have no padding
    before = usual.eval().trace(images)[usual.stages[0]]
    after = small.eval().trace(images)[small.stages[0]]
    assert after.shape[2] == pytest.approx(factor * before.shape[2], abs=4)
    first = next(m for m in small.plain().modules() if isinstance(m, torch.nn.Conv2d))
    assert (first.stride, first.kernel_size) == ((1, 1), (3, 3))


@pytest.mark.parametrize(
    ("family", "name"), [("timm", "vit_tiny_patch16_224"), ("torchvision", "swin_t")]
)
def test_a_small_stem_for_patches_is_refused_with_the_way_out(family, name):
    with pytest.raises(KdstepsError, match=rf"small_stem does not fit {family}'s {name}.*patch_si"):
        build_model(family, name=name, num_classes=5, image_size=64, small_stem=True)


@torch.no_grad()
def test_a_kernel_that_shrinks_keeps_its_centre_and_the_spread_of_its_sums():
    torch.manual_seed(0)
    usual = build_model("timm", name="resnet10t", num_classes=5, image_size=32, stem_type="")
    torch.manual_seed(0)
    small = build_model(
        "timm", name="resnet10t", num_classes=5, image_size=32, stem_type="", small_stem=True
    )
    centre = usual.plain().conv1.weight[..., 2:5, 2:5]
    assert torch.allclose(small.plain().conv1.weight, centre * 7 / 3)


def test_a_vit_is_told_the_size_of_the_images_and_takes_a_patch_size():
    chain = build_model(
        "timm", name="vit_tiny_patch16_224", num_classes=5, image_size=32, depth=2, patch_size=4
    )
    assert chain.trace(torch.rand(1, 3, 32, 32), ["patch_embed"])["patch_embed"].shape[1] == 64
    chain = build_model("torchvision", name="vit_b_32", num_classes=5, image_size=64)
    assert chain.plain().image_size == 64


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_grey_and_many_channelled_images_are_taken(family):
    for channels in (1, 4):
        chain = build_model(
            family, name="resnet18", num_classes=5, in_channels=channels, image_size=32
        )
        assert chain(torch.rand(2, channels, 32, 32)).shape == (2, 5)


@torch.no_grad()
def test_a_grey_image_is_seen_as_its_colour_copy_was():
    torch.manual_seed(0)
    colour = build_model("torchvision", name="resnet18", num_classes=5, image_size=32).eval()
    torch.manual_seed(0)
    grey = build_model(
        "torchvision", name="resnet18", num_classes=5, in_channels=1, image_size=32
    ).eval()
    images = torch.rand(2, 1, 32, 32)
    assert torch.allclose(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_an_unknown_name_is_answered_with_the_nearest(family):
    with pytest.raises(KdstepsError, match=rf"'resnet19', which {family}.*nearest are .*resnet18"):
        build_model(family, name="resnet19", num_classes=5, image_size=32)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_an_unknown_option_is_a_sentence(family):
    with pytest.raises(KdstepsError, match=r"resnet18 cannot be built \(.*'nonsense'"):
        build_model(family, name="resnet18", num_classes=5, image_size=32, nonsense=1)


def test_an_image_size_that_does_not_fit_is_a_sentence():
    with pytest.raises(KdstepsError, match="torchvision's maxvit_t cannot be built"):
        build_model("torchvision", name="maxvit_t", num_classes=5, image_size=60)
    with pytest.raises(KdstepsError, match=r"Inception3 does not run on images of 3 x 16 x 16"):
        build_model("torchvision", name="inception_v3", num_classes=5, image_size=16)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_weights_out_of_reach_say_how_to_give_a_file(family, monkeypatch, tmp_path):
    monkeypatch.setattr(f"kdsteps.models.families.{family}.reachable", lambda address: False)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(KdstepsError, match=r"no connection to https.*name it as checkpoint: PATH"):
        build_model(family, name="resnet18", num_classes=5, image_size=32, pretrained=True)


def test_a_server_that_is_not_there_is_out_of_reach_and_a_proxy_is_trusted(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not reachable("https://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert reachable("https://127.0.0.1:9")


@torch.no_grad()
def test_published_weights_of_other_classes_get_a_new_classifier_only_to_be_trained(monkeypatch):
    published = torchvision.models.resnet18(num_classes=1000)
    monkeypatch.setattr(
        "kdsteps.models.families.torchvision._published_state", lambda name: _state(published)
    )
    options = {"name": "resnet18", "image_size": 32, "pretrained": True}
    chain = build_model("torchvision", num_classes=5, will_train=True, **options)
    assert torch.equal(chain.plain().layer4[0].conv1.weight, published.layer4[0].conv1.weight)
    assert chain.plain().fc.weight.shape == (5, 512)
    assert chain.new_weights == ("fc.weight", "fc.bias")
    assert "other classes; fc.weight, fc.bias start with new weights" in chain.notes[0]
    with pytest.raises(KdstepsError, match=r"other classes; fc\.weight, fc\.bias .*epochs above 0"):
        build_model("torchvision", name="resnet18", num_classes=5, image_size=32, pretrained=True)
    chain = build_model(
        "torchvision", name="resnet18", num_classes=1000, image_size=32, pretrained=True
    )
    assert torch.equal(chain.plain().fc.weight, published.fc.weight)
    assert not chain.notes


def test_published_files_with_older_names_leave_no_weight_new(monkeypatch, tmp_path):
    published = torchvision.models.densenet121()
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): weight
        for name, weight in published.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    file = tmp_path / "checkpoints" / "densenet121-a639ec97.pth"
    file.parent.mkdir()
    torch.save(older, file)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    named = {"name": "densenet121", "num_classes": 1000, "image_size": 32}
    by_name = build_model("torchvision", pretrained=True, **named)
    by_file = build_model("torchvision", checkpoint=str(file), **named)
    for chain in (by_name, by_file):
        assert not chain.new_weights
        for name, weight in chain.plain().named_parameters():
            assert torch.equal(weight, published.get_parameter(name)), name


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 224), ("vit_h_14", 518)])
def test_the_size_of_published_weights_is_that_of_the_network(name, size):
    assert _published_size(name) == size


def test_weights_of_a_network_that_asks_for_a_version_load(tmp_path):
    torch.manual_seed(0)
    named = {"name": "mnasnet0_5", "num_classes": 5, "image_size": 32}
    network = build_model("torchvision", **named).plain()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        again = build_model("torchvision", checkpoint=str(tmp_path / file), **named).plain()
        assert torch.equal(again.classifier[1].weight, network.classifier[1].weight)


def test_the_normalization_of_inception_is_the_one_that_torchvision_computes_inside():
    options = {"name": "googlenet", "num_classes": 5, "image_size": 32}
    published = build_model("torchvision", **options).published.input
    transforming = build_model("torchvision", transform_input=True, **options)
    assert transforming.published.input.mean == IMAGENET.mean
    pixels = torch.rand(2, 3, 8, 8) * 255
    inside = transforming.plain()._transform_input(Normalize(IMAGENET.mean, IMAGENET.std)(pixels))
    assert torch.allclose(Normalize(published.mean, published.std)(pixels), inside, atol=1e-5)


def _state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def _plain(published: Published) -> torch.nn.Module:
    """The same network made by its own library, without kdsteps."""
    options = dict(published.options)
    if published.family == "timm":
        try:
            return timm.create_model(
                published.name, num_classes=5, img_size=published.image_size, **options
            )
        except TypeError:
            return timm.create_model(published.name, num_classes=5, **options)
    if published.name.startswith("vit_"):
        options["image_size"] = published.image_size
    if published.name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    return torchvision.models.get_model(published.name, num_classes=5, **options)
