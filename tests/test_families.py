"""The networks kdsteps writes itself: the law of chains, and agreement with what is published."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _networks import SMALL, agree
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models import Chain, build_model
from kdsteps.study import registry

BENCHMARK = Path(__file__).parents[2] / "shared" / "networks" / "benchmark_networks.json"
NAMES = {
    "resnet20": ("cifar_resnet", {"depth": 20}),
    "resnet56": ("cifar_resnet", {"depth": 56}),
    "resnet110": ("cifar_resnet", {"depth": 110}),
    "resnet8x4": ("cifar_resnet", {"depth": 8, "widths": (32, 64, 128, 256)}),
    "resnet32x4": ("cifar_resnet", {"depth": 32, "widths": (32, 64, 128, 256)}),
    "wrn_16_2": ("wide_resnet", {"depth": 16, "width": 2}),
    "wrn_40_1": ("wide_resnet", {"depth": 40, "width": 1}),
    "wrn_40_2": ("wide_resnet", {"depth": 40, "width": 2}),
    "vgg8": ("vgg", {"depth": 8}),
    "vgg13": ("vgg", {"depth": 13}),
    "MobileNetV2": ("mobilenet", {}),
    "ShuffleV1": ("shufflenet", {"version": 1}),
    "ShuffleV2": ("shufflenet", {"version": 2}),
    "ResNet50": ("resnet", {"depth": 50}),
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(name: str, **more: Any) -> Chain:
    """A network with weights of a fixed seed and running statistics unlike fresh ones."""
    family, options = SMALL[name]
    torch.manual_seed(0)
    chain = build_model(family, **({"num_classes": 5, "image_size": 32} | options | more))
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.weight.data.uniform_(0.5, 1.5)
    return chain.eval()


@pytest.fixture(params=SMALL)
def chain(request: pytest.FixtureRequest) -> Chain:
    return small(request.param)


# The law


@torch.no_grad()
def test_front_and_tail_join_to_the_network_at_every_layer(chain, device):
    chain, images = chain.to(device), IMAGES.to(device)
    logits = chain(images)
    assert logits.abs().sum() > 0
    for layer in chain.layers:
        assert agree(chain.tail(layer)(chain.front(layer)(images)), logits), layer


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_front_and_tail_join_on_images_that_are_not_square(name, device):
    chain = small(name, image_size=(32, 40)).to(device)
    images = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).to(device)
    logits = chain(images)
    for layer in chain.layers:
        features = chain.front(layer)(images)
        assert agree(chain.tail(layer)(features), logits), layer
    first = chain.front(chain.layers[0])(images)
    if chain.layout(chain.layers[0]) == "map":
        assert first.shape[2] * 40 == first.shape[3] * 32
    else:
        assert chain.token_grid("stem") == (1, 8, 10)


@torch.no_grad()
def test_spans_join_and_give_what_trace_gives(chain, device):
    chain, features = chain.to(device), IMAGES.to(device)
    traced = chain.trace(features)
    assert list(traced) == [*chain.layers, "head"]
    start = None
    for layer in (*chain.layers, "head"):
        features = chain.span(start, layer)(features)
        assert agree(features, traced[layer]), layer
        start = layer


def test_trace_gives_only_what_is_asked_in_forward_order(chain):
    backwards = tuple(reversed(chain.stages))
    assert list(chain.trace(IMAGES, backwards)) == [*chain.stages, "head"]


@pytest.mark.slow
def test_every_layer_can_be_trained_through(chain):
    chain.train()
    for layer, output in chain.trace(IMAGES, [*chain.stages, "pool"]).items():
        chain.zero_grad()
        output.square().sum().backward(retain_graph=True)
        first = next(iter(chain.parameters()))
        assert first.grad.abs().sum() > 0, layer


def test_layouts_tell_the_shapes(chain):
    dimensions = {"map": 4, "map_last": 4, "tokens": 3, "vector": 2}
    for layer, output in chain.trace(IMAGES).items():
        if layer != "head":
            assert output.ndim == dimensions[chain.layout(layer)], layer
    assert chain.layout("pool") == "vector"
    assert chain.layers[-1] == "pool" or "hidden1" in chain.layers


def test_no_weight_has_two_names(chain):
    state = chain.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert chain.plain() is chain


@pytest.mark.slow
@torch.no_grad()
def test_a_copy_is_a_network_of_its_own(chain):
    expected = chain(IMAGES)
    other = copy.deepcopy(chain)
    assert torch.equal(other(IMAGES), expected)
    for parameter in other.parameters():
        parameter.zero_()
    assert other.tail("pool")(other.front("pool")(IMAGES)).abs().sum() == 0
    assert torch.equal(chain(IMAGES), expected)


def test_names_that_are_no_layers_are_misuse(chain):
    for misuse in (
        lambda: chain.trace(IMAGES, ["nowhere"]),
        lambda: chain.trace(IMAGES, ["head"]),
        lambda: chain.layout("nowhere"),
        lambda: chain.last_norm("nowhere"),
        lambda: chain.span("nowhere", "head"),
        lambda: chain.span("pool", "stem" if "stem" in chain.layers else "block0.0"),
        lambda: chain.span("pool", "pool"),
    ):
        with pytest.raises(ValueError, match=r"not a layer of this network|does not come after"):
            misuse()


# Before the activation


@torch.no_grad()
def test_a_relu_takes_what_is_before_the_activation_to_the_output(chain):
    after, before = chain.trace(IMAGES), chain.trace(IMAGES, before_activation=True)
    same = {layer for layer in after if torch.equal(before[layer], after[layer])}
    # inverted residual and encoder blocks end in a sum, patches are embedded without a ReLU
    without_relu = {"pool", "head"} | {name for name in after if name.startswith("blocks.")}
    if chain.layout(chain.layers[0]) == "tokens":
        without_relu.add("stem")
    assert same == without_relu
    for layer in set(after) - same:
        assert before[layer].min() < 0, layer
        if after[layer].min() >= 0:
            assert torch.equal(before[layer].clamp(0, after[layer].max()), after[layer]), layer
        else:  # pre-activation: the next block begins with the norm
            assert torch.equal(chain.last_norm(layer)(after[layer]), before[layer]), layer


@pytest.mark.parametrize(
    ("name", "layer", "norm"),
    [
        ("cifar_resnet", "stem", "bn1"),
        ("cifar_resnet", "layer2.1", "layer2.1.bn2"),
        ("wide_resnet", "stem", "block1.layer.0.bn1"),
        ("wide_resnet", "block1.1", "block2.layer.0.bn1"),
        ("wide_resnet", "block3.1", "bn1"),
        ("vgg", "block2.1", "block2.4"),
        ("resnet", "layer1.0", "layer1.0.bn2"),
        ("resnet 50", "layer4.2", "layer4.2.bn3"),
        ("shufflenet 1", "layer2.7", "layer2.7.bn3"),
        ("shufflenet 2", "conv2", "bn2"),
        ("mobilenet", "conv2", "conv2.1"),
        ("mobilenet", "blocks.1.1", None),
        ("shufflenet 1", "layer2.0", None),
        ("shufflenet 2", "layer2.7", None),
        ("vgg classic", "hidden0", None),
        ("vit", "blocks.1", None),
        ("cifar_resnet", "pool", None),
    ],
)
def test_the_norm_before_the_last_relu_is_known(name, layer, norm):
    chain = small(name)
    assert chain.last_norm(layer) is (None if norm is None else chain.get_submodule(norm))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "vit"])
def test_reading_before_activations_counts_each_batch_once(name):
    chain = small(name).train()
    chain.trace(IMAGES, before_activation=True)
    counted = [
        m.num_batches_tracked.item() for m in chain.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    assert set(counted) == {1}


# Training and evaluation


@pytest.mark.parametrize("name", ["vgg classic", "wide_resnet"])
def test_dropout_follows_the_mode_of_the_network(name):
    chain = small(name)
    chain.train()
    assert not torch.equal(chain(IMAGES), chain(IMAGES))
    chain.eval()
    assert torch.equal(chain(IMAGES), chain(IMAGES))


@torch.no_grad()
def test_residual_networks_of_basic_blocks_begin_as_the_identity():
    torch.manual_seed(0)
    chain = build_model("resnet", num_classes=5, depth=18).eval()
    traced = chain.trace(IMAGES)
    assert torch.equal(traced["layer1.1"], traced["stem"])
    assert torch.equal(traced["layer3.1"], traced["layer3.0"])


def test_a_vision_transformer_begins_without_a_preference():
    chain = build_model("vit", num_classes=5, image_size=32, width=8, depth=2, heads=2, mlp=8)
    assert torch.equal(chain(IMAGES), torch.zeros(2, 5))


# Images


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 16, 28, 64])
@pytest.mark.parametrize("name", [name for name in SMALL if name != "vgg classic"])
def test_images_may_be_grey_and_of_other_sizes(name, size):
    chain = small(name, in_channels=1, image_size=size)
    assert chain(torch.randn(2, 1, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("family", "options", "sentence"),
    [
        ("resnot", {}, "no model family 'resnot'.*did you mean 'resnet'"),
        ("vgg", {"depht": 8}, "depht is an unknown key; did you mean 'depth'"),
        ("vgg", {"depth": 12}, "depth is 12.*8, 11, 13, 16 or 19"),
        ("vgg", {"image_size": 4}, "image_size 4 is too small.*8 pixels or more"),
        ("vgg", {"image_size": 28, "form": "classic"}, "28 is too small.*32 pixels or more"),
        ("cifar_resnet", {"depth": 9}, "depth is 9; .*6 n \\+ 2"),
        ("wide_resnet", {"depth": 20}, "depth is 20; .*6 n \\+ 4"),
        ("shufflenet", {"size": 3.0}, "size is 3; .*0.5, 1.0, 1.5, 2.0"),
        ("vit", {}, "needs to know image_size"),
        ("vit", {"image_size": 32, "patch": 5}, "patch 5 .* does not tile images of 32 .* 4 would"),
        ("vit", {"image_size": 32, "heads": 5}, "heads is 5, .*divide width 192"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(family, options, sentence):
    with pytest.raises(KdstepsError, match=sentence):
        build_model(family, num_classes=5, **options)


def test_a_vision_transformer_refuses_images_of_another_size():
    with pytest.raises(ValueError, match="28 x 28, this network takes 32"):
        small("vit")(torch.zeros(1, 3, 28, 28))


# What is published


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    if not BENCHMARK.is_file():
        pytest.skip("the facts about the benchmark's networks are not beside this repository")
    return json.loads(BENCHMARK.read_text())["networks"]


def drawn_again(keys: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """The weights that the file's `fill` describes."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    weights = {}
    for key, shape in keys:
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
        elif key.endswith(("running_mean", "bias")):
            weights[key] = 0.1 * torch.randn(shape, **options)
        elif key.endswith("running_var"):
            weights[key] = 1 + torch.rand(shape, **options)
        elif len(shape) == 1:
            weights[key] = 0.25 + 0.5 * torch.rand(shape, **options)
        else:
            scale = math.sqrt(2 / math.prod(shape[1:]))
            weights[key] = scale * torch.randn(shape, **options)
    return weights


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_the_benchmark_have_its_keys_and_give_its_logits(benchmark, name):
    expected = benchmark[name]
    family, options = NAMES[name]
    chain = build_model(family, num_classes=100, image_size=32, **options).double().eval()
    assert [[k, list(t.shape)] for k, t in chain.state_dict().items()] == expected["keys"]
    chain.load_state_dict(drawn_again(expected["keys"]))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    traced = chain.trace(images)
    places = [list(traced[layer].shape[1:]) for layer in (chain.layers[0], *chain.stages)]
    assert places == expected["stage_outputs"]
    sums, first = expected["logits_sum"], expected["logits_first5"]
    assert traced["head"][:, :5].tolist() == [pytest.approx(row, rel=0, abs=1e-6) for row in first]
    assert traced["head"].sum(dim=1).tolist() == pytest.approx(sums, rel=0, abs=1e-6)


def test_every_network_in_the_file_is_rebuilt(benchmark):
    assert set(benchmark) == set(NAMES)


def on_meta(family: str, **options: Any) -> Chain:
    """A network of shapes alone."""
    with torch.device("meta"):
        return build_model(family, **({"num_classes": 100, "image_size": 32} | options)).eval()


def num_parameters(chain: Chain) -> int:
    return sum(parameter.numel() for parameter in chain.parameters())


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_a_cifar_resnet_has_as_many_layers_with_weights_as_its_name_says(depth):
    chain = on_meta("cifar_resnet", depth=depth)
    counted = [n for n, m in chain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in counted if "downsample" not in name]) == depth


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
@pytest.mark.parametrize("form", ["benchmark", "classic"])
def test_a_vgg_has_three_convolutions_less_than_its_name_says(depth, form):
    chain = on_meta("vgg", depth=depth, form=form)
    assert sum(isinstance(m, nn.Conv2d) for m in chain.modules()) == depth - 3


@pytest.mark.parametrize(
    ("depth", "width", "millions"), [(16, 1, 0.2), (40, 1, 0.6), (16, 8, 11.0), (28, 10, 36.5)]
)
def test_wide_resnets_have_the_published_sizes(depth, width, millions):
    """arXiv:1605.07146, table 5, and section 2 for 16-1; ten classes."""
    chain = on_meta("wide_resnet", depth=depth, width=width, num_classes=10)
    assert num_parameters(chain) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("size", "parameters"), [(0.5, 1366792), (1.0, 2278604), (1.5, 3503624), (2.0, 7393996)]
)
def test_shufflenets_of_version_2_have_the_published_sizes(size, parameters):
    """Of torchvision's shufflenet_v2, whose stem is 3x3 where this one is 1x1; 1000 classes."""
    chain = on_meta("shufflenet", size=size, num_classes=1000)
    assert num_parameters(chain) == parameters - 24 * 3 * (9 - 1)


# Generalized layers of arXiv:2511.14981 at 32 x 32 (papers.md, section 2.2): each row a run of
# layers and the shape they share, and the parameters for 100 classes in millions
GENERALIZED = {
    "ResNet34": (
        ("resnet", {"depth": 34}),
        [(4, (64, 32)), (4, (128, 16)), (6, (256, 8)), (3, (512, 4)), (1, (512,))],
        21.33,
    ),
    "ResNet9": (
        ("resnet", {"depth": 9}),
        [(2, (64, 32)), (1, (128, 16)), (1, (256, 8)), (1, (512, 4)), (1, (512,))],
        4.95,
    ),
    "VGG19": (
        ("vgg", {"depth": 19, "form": "classic"}),
        [
            (2, (64, 32)),
            (2, (128, 16)),
            (4, (256, 8)),
            (4, (512, 4)),
            (4, (512, 2)),
            (1, (512,)),
            (2, (4096,)),
        ],
        39.33,
    ),
    "VGG11": (
        ("vgg", {"depth": 11, "form": "classic"}),
        [
            (1, (64, 32)),
            (1, (128, 16)),
            (2, (256, 8)),
            (2, (512, 4)),
            (2, (512, 2)),
            (1, (512,)),
            (2, (4096,)),
        ],
        28.52,
    ),
    "MobileNetV2": (
        ("mobilenet", {"form": "standard", "width": 1.0}),
        [
            (1, (32, 32)),
            (1, (16, 32)),
            (2, (24, 16)),
            (3, (32, 8)),
            (4, (64, 4)),
            (3, (96, 4)),
            (3, (160, 2)),
            (1, (320, 2)),
            (1, (1280, 2)),
            (1, (1280,)),
        ],
        2.35,
    ),
    "ViT_B": (
        ("vit", {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}),
        [(13, (65, 768))],
        85.22,
    ),
    "ViT_ETT": (("vit", {}), [(9, (65, 192))], 3.01),
}


def generalized(rows: list[tuple[int, tuple[int, ...]]], family: str) -> list[tuple[int, ...]]:
    """One shape a layer, from runs in which a map is its channels and its side."""
    shapes = []
    for count, shape in rows:
        is_map = len(shape) == 2 and family != "vit"
        shapes += [(shape[0], shape[1], shape[1]) if is_map else shape] * count
    return shapes


@pytest.mark.parametrize("name", GENERALIZED)
def test_generalized_layers_are_those_of_the_paper(name):
    (family, options), rows, millions = GENERALIZED[name]
    chain = on_meta(family, **options)
    assert num_parameters(chain) / 1e6 == pytest.approx(millions, abs=5e-3)
    # the paper reads nothing between a transformer's last block and its logits
    layers = chain.layers[:-1] if family == "vit" else chain.layers
    traced = chain.trace(torch.empty(1, 3, 32, 32, device="meta"))
    shapes = [tuple(traced[layer].shape[1:]) for layer in layers]
    assert shapes == generalized(rows, family)


@pytest.mark.parametrize("name", GENERALIZED)
def test_generalized_layers_of_larger_images_are_those_of_the_paper(name):
    """At 64 pixels all but VGG's maps, twice as large, and the stem of a ResNet are as at 32."""
    (family, options), rows, _ = GENERALIZED[name]
    chain = on_meta(family, image_size=64, **options)
    traced = chain.trace(torch.empty(1, 3, 64, 64, device="meta"))
    shapes = [tuple(traced[layer].shape[1:]) for layer in chain.layers]
    doubled = {"vgg": range(16), "resnet": range(1)}.get(family, range(0))
    for index, shape in enumerate(generalized(rows, family)):
        if index in doubled and len(shape) == 3:
            shape = (shape[0], 2 * shape[1], 2 * shape[2])
        assert shapes[index] == shape, chain.layers[index]


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("ResNet34", [3, 7, 13, 16]),
        ("ResNet9", [1, 2, 3, 4]),
        ("VGG19", [3, 7, 11, 15]),
        ("VGG11", [1, 3, 5, 7]),
        ("MobileNetV2", [3, 6, 13, 17]),
    ],
)
def test_default_cuts_of_convolutional_networks_are_the_layers_of_the_baselines(name, indices):
    """Papers.md, section 2.3: the layers that the paper's baselines distil."""
    (family, options), _, _ = GENERALIZED[name]
    chain = on_meta(family, **options)
    assert [chain.layers.index(stage) for stage in chain.stages] == indices


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("cifar_resnet", "depth", 20_000_000_000_000_000_000),
        ("cifar_resnet", "widths", [4, 4, 8, 10**20]),
        ("vgg", "hidden", 10**9),
        ("vit", "depth", 80_000),
        ("wide_resnet", "width", 10**6),
    ],
)
def test_sizes_beyond_any_use_are_refused_before_a_network_is_built(family, option, value):
    with pytest.raises(KdstepsError, match=rf"{option}.* is \d+; it should be at most"):
        registry.find("models", family, family).parse({option: value}, family)
