"""Networks of tokens, images of any proportions: the law at every layer, maps of patches alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _methods import class_of
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Batch, Task
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.models.cut.cutting import CutChain
from kdsteps.models.cut.layouts import layouts, token_grid
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.plans.stones import Stones, plan_stones
from kdsteps.study.joints import pair_stages

pytest.importorskip("timm")

Case = tuple[str, Any, dict[str, Any], int, int]
# name, image size, options, prefix tokens in the blocks, layers
TRANSFORMERS: list[Case] = [
    ("vit_small_patch16_dinov3", 32, {}, 5, 14),
    ("vit_small_patch16_dinov3", (32, 48), {"depth": 2}, 5, 4),
    ("vit_small_patch14_reg4_dinov2", 28, {"depth": 2}, 5, 4),
    ("vit_tiny_patch16_224", 48, {"depth": 2, "reg_tokens": 6}, 7, 4),
    ("vit_tiny_patch16_224", (16, 32), {"depth": 2}, 1, 4),
    ("deit_tiny_distilled_patch16_224", (32, 48), {"depth": 2}, 2, 4),
    ("vit_tiny_r_s16_p8_224", (64, 96), {"depth": 2}, 1, 4),
    ("cait_xxs24_224", (32, 64), {"depth": 2}, 0, 4),
]
MAPS: list[Case] = [
    ("swin_tiny_patch4_window7_224", (64, 96), {"depths": (1, 1, 2, 1)}, 0, 10),
    ("pvt_v2_b0", (32, 64), {}, 0, 20),
    ("mvitv2_tiny", (64, 96), {}, 0, 11),  # tokens of several resolutions
    ("test_resnet", (16, 32), {}, 0, 9),
    ("test_convnext", (32, 48), {}, 0, 13),
]


def build(case: Case) -> Chain:
    name, size, options, *_ = case
    torch.manual_seed(0)
    return build_model("timm", name=name, num_classes=3, image_size=size, **options).eval()


def shape_of(case: Case) -> tuple[int, int, int]:
    size = case[1]
    return (3, size, size) if isinstance(size, int) else (3, *size)


def pictures(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def names(case: Case) -> str:
    return f"{case[0]}-{case[1]}".replace(" ", "")


@pytest.mark.parametrize("case", [*TRANSFORMERS, *MAPS], ids=names)
@torch.no_grad()
def test_tail_after_front_is_the_network_at_every_layer(case):
    chain, images = build(case), pictures(shape_of(case))
    whole = chain(images)
    spread = (whole - whole.mean(dim=0)).abs().max()
    assert len(chain.layers) == case[4]
    assert not chain.notes
    for layer in chain.layers:
        joined = chain.tail(layer)(chain.front(layer)(images))
        assert (joined - whole).abs().max() <= 1e-4 * spread, layer


@pytest.mark.parametrize("case", TRANSFORMERS, ids=names)
@torch.no_grad()
def test_a_map_of_tokens_is_the_patches_alone_in_the_proportions_of_the_image(case):
    chain, shape = build(case), shape_of(case)
    found = feature_shapes(chain, shape)
    features = chain.trace(pictures(shape))
    (grid,) = {found[stage].size for stage in chain.stages}
    assert grid[0] * shape[2] == grid[1] * shape[1]
    for stage in chain.stages:
        assert (found[stage].layout, found[stage].prefix) == ("tokens", case[3])
        maps = found[stage].to_map(features[stage])
        assert maps.shape[2:] == grid
        assert torch.equal(maps[:, :, 0, 1], features[stage][:, case[3] + 1])
        assert torch.equal(maps[:, :, -1, -1], features[stage][:, -1])


@pytest.mark.parametrize("case", MAPS, ids=names)
def test_maps_have_the_proportions_of_the_image(case):
    chain, (_, height, width) = build(case), shape_of(case)
    for stage, shape in feature_shapes(chain, shape_of(case)).items():
        if stage in chain.stages:
            assert shape.height * width == pytest.approx(
                shape.width * height, abs=max(height, width)
            )
            assert shape.layout == chain.layout(stage)


@torch.no_grad()
def test_stones_join_networks_of_tokens_and_of_maps_on_images_that_are_not_square():
    teacher = build(TRANSFORMERS[4]).requires_grad_(False)
    shape = shape_of(TRANSFORMERS[4])
    torch.manual_seed(1)
    student = build_model("cifar_resnet", num_classes=3, image_size=shape[1:], depth=8)
    plan = plan_stones(teacher, student, shape, pair_stages(teacher, student), "conv_norm")
    assert [stone["teacher_features"]["prefix"] for stone in plan] == [1, 1]
    assert "1 prefix tokens" in plan[0]["why"]
    logits = Stones(teacher, plan)(student.trace(pictures(shape)))
    assert [entry.shape for entry in logits] == [(3, 3)] * 2


@pytest.mark.parametrize("reversed_pair", [False, True])
@pytest.mark.parametrize(
    "name", ["at", "fitnet", "ofd", "reviewkd", "semckd", "simkd", "block_kd", "feature_only"]
)
def test_methods_on_maps_train_with_tokens_and_images_that_are_not_square(name, reversed_pair):
    shape = (3, 32, 48)
    tokens = build_model(
        "timm",
        name="vit_tiny_patch16_224",
        num_classes=3,
        image_size=shape[1:],
        depth=4,
        embed_dim=24,
        num_heads=2,
        reg_tokens=6,
    )
    maps = build_model("cifar_resnet", num_classes=3, image_size=shape[1:], depth=8)
    teacher, student = (tokens, maps) if not reversed_pair else (maps, tokens)
    teacher.requires_grad_(False).eval()
    plan: dict[str, Any] = {}
    count = min(len(teacher.stages), len(student.stages))
    if name == "block_kd":
        joints = pair_stages(teacher, student)
        plan["stones"] = plan_stones(teacher, student, shape, joints, "conv_norm")
    elif name == "feature_only":
        plan["pairs"] = plan_pairs(
            teacher,
            student,
            shape,
            student_layers=None,
            teacher_layers=teacher.stages[-count:],
            projector="conv",
        )
    labels = torch.arange(8) % 3
    task = Task(shape, 3, labels, plan or None, batch_size=8)
    method = class_of(name)(teacher, student, task).train()
    batch = Batch(pictures(shape, 8), labels, torch.arange(8), torch.zeros(8, dtype=torch.long), 1)
    loss = torch.stack(list(method.terms(batch).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


@torch.no_grad()
def test_our_own_vit_takes_images_that_are_not_square():
    chain = build_model("vit", num_classes=3, image_size=(16, 32), width=8, depth=2, heads=2, mlp=8)
    images = pictures((3, 16, 32))
    shapes = feature_shapes(chain, (3, 16, 32))
    assert shapes["stem"] == FeatureShape("tokens", 8, 8, 16, prefix=1)  # patches of 2 pixels
    chain.eval()
    for layer in chain.layers:
        assert torch.equal(chain.tail(layer)(chain.front(layer)(images)), chain(images))


class Foreign(nn.Module):
    """Three tokens before those of the patches, and nothing that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.extra = nn.Parameter(torch.rand(1, 3, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.extra.expand(len(images), -1, -1), tokens], dim=1)
        return self.fc(self.blocks(tokens).mean(dim=1))


def test_prefix_tokens_of_a_foreign_network_follow_from_its_patch_embedding():
    chain = CutChain(Foreign(), image_shape=(3, 16, 32))
    assert chain.token_grid("blocks.0") == (3, 4, 8)
    assert not chain.notes


def test_a_number_of_prefix_tokens_that_does_not_fit_is_noted():
    chain = CutChain(Foreign(), image_shape=(3, 16, 32), prefix_tokens=2)
    assert "prefix_tokens 2 does not fit blocks.0, blocks.1" in chain.notes[0]


@pytest.mark.parametrize(
    ("tokens", "seen", "image", "prefix", "expected"),
    [
        (197, [(56, 56), (14, 14)], (224, 224), None, (1, 14, 14)),
        (9, [(2, 2)], (32, 32), 5, (5, 2, 2)),  # not 3 x 3
        (9, [], (48, 48), None, (0, 3, 3)),
        (9, [], (48, 48), 5, (5, 2, 2)),
        (4, [(2, 2)], (32, 32), 5, (0, 2, 2)),  # before the prefix is added
        (10, [], (32, 64), 2, (2, 2, 4)),
        (7, [], (100, 35), None, (0, 7, 1)),  # no grid: a column
    ],
)
def test_a_grid_is_that_of_a_map_or_has_the_proportions_of_the_image(
    tokens, seen, image, prefix, expected
):
    assert token_grid(tokens, seen, image, prefix) == expected


def test_the_order_of_dimensions_follows_from_the_proportions_of_the_image():
    assert layouts([(2, 8, 4, 8), (2, 4, 8, 8), (2, 5, 8), (2, 5)], (32, 64), ()) == [
        "map", "map_last", "tokens", "vector",
    ]  # fmt: skip
    assert layouts([(2, 8, 8, 8), (2, 4, 4, 8)], (32, 32), ()) == ["map_last", "map_last"]


def test_a_network_that_takes_no_such_proportions_names_the_size_that_it_takes():
    options = {"name": "efficientformer_l1", "num_classes": 3}
    with pytest.raises(KdstepsError, match=r"images of 3 x 64 x 96 .*image_size .*to 224, and"):
        build_model("timm", image_size=(64, 96), **options)
