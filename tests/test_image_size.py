"""Networks built for another size than that of the images: resizing is their first step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _commands import NET, write_study
from _entries import MEAN, STD, data_of, model
from _methods import batch_of, class_of, make, step
from _networks import ENTRIES, NUM_CLASSES
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from kdsteps.cli.main import main
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import read_checkpoint
from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.settings import CheckSettings
from kdsteps.methods.base import Batch, Task
from kdsteps.methods.fitnet import FitNet
from kdsteps.models import Chain, build_model
from kdsteps.models.cost import multiply_adds
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.models.input import InputChain, InputContract, Interpolation, Normalize, behind_resize
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.plans.stones import Stones, plan_stones
from kdsteps.stages._latency import _architecture as architecture_key
from kdsteps.stages._shared import (
    as_built,
    fresh_model,
    save_model,
    trained_model,
    untrained_model,
)
from kdsteps.study import registry
from kdsteps.study.joints import pair_stages
from kdsteps.study.loading import load_study
from kdsteps.teachers.frozen import frozen

OWN = InputContract((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))


def pixels(height: int, width: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def made(data: Prepared, **entry: Any) -> Chain:
    torch.manual_seed(0)
    return fresh_model(model(**entry), data).eval()


# the numbers


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 56), (12, 9), (24, 64)])
def test_normalized_images_are_resized_as_their_pixels_are(size, interpolation: Interpolation):
    images = pixels(24, 32)
    images[:, :, :12] = 255  # an edge, at which bicubic interpolation overshoots
    images[:, :, 12:18] = 0
    contract = replace(OWN, size=size, interpolation=interpolation)
    chain = build_model("cifar_resnet", num_classes=3, depth=8, widths=(2, 2, 2, 2))
    before = Normalize(torch.tensor(MEAN), torch.tensor(STD))(images)
    found = InputChain(chain, contract.after(MEAN, STD)).input(before)
    expected = InputChain(chain, contract).input(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    mode = {"nearest": "nearest-exact"}.get(interpolation, interpolation)
    how = InterpolationMode(mode)
    resized = transforms.resize(images.float(), list(size), how, antialias=True).clamp(0, 255)
    by_hand = (resized / 255 - torch.tensor(OWN.mean)[:, None, None]) / torch.tensor(OWN.std)[
        :, None, None
    ]
    torch.testing.assert_close(expected, by_hand, rtol=0, atol=1e-5)


def test_resizing_alone_leaves_the_data_sets_normalization():
    chain = made(data_of(8, 8), **NET, image_size=16)
    assert isinstance(chain, InputChain) and isinstance(chain.normalize, torch.nn.Identity)
    images = torch.randn(2, 3, 8, 8)
    right = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(chain.input(images), right)


@pytest.mark.parametrize("image_size", [None, 8, [8, 8]])
def test_images_of_the_networks_size_are_not_resized(image_size):
    chain = made(data_of(8, 8), **NET, image_size=image_size)
    assert not isinstance(chain, InputChain)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(chain(images), made(data_of(8, 8), **NET)(images))


def test_a_checkpoint_restores_the_resizing_and_differs_by_it(tmp_path):
    data, settings = data_of(8, 8), CheckSettings.model_construct()
    images = torch.randn(2, 3, 8, 8)
    logits = {}
    for how in ("bilinear", "bicubic"):
        entry = model(**NET, image_size=[12, 16], interpolation=how, normalize="none")
        chain = made(data, **NET, image_size=[12, 16], interpolation=how, normalize="none")
        path = tmp_path / how
        save_model(path, chain.plain(), as_built(entry, chain, data), data, settings)
        restored = trained_model(path, data)
        with torch.no_grad():
            logits[how] = restored(images)
            assert torch.equal(logits[how], chain(images))
    assert not torch.equal(logits["bilinear"], logits["bicubic"])
    # the key of cached logits holds the digest of the checkpoint
    assert (tmp_path / "bilinear").read_bytes() != (tmp_path / "bicubic").read_bytes()


# networks of every kind


KINDS: dict[str, dict[str, Any]] = {
    "cnn": {**NET, "image_size": 24},
    "vit": {
        "family": "vit",
        "width": 8,
        "depth": 2,
        "heads": 2,
        "mlp": 8,
        "zero_head": False,
        "image_size": [16, 24],
    },
    "timm vit": {
        "family": "timm",
        "name": "test_vit",
        "image_size": [32, 48],
        "interpolation": "bicubic",
    },
    "torchvision vit": {"family": "torchvision", "name": "vit_b_32", "image_size": 32},
}
OWN_INPUT: list[Any] = ["dataset", "none", {"mean": [0.5] * 3, "std": [0.25] * 3}]


@pytest.mark.parametrize("normalize", OWN_INPUT, ids=["dataset", "none", "numbers"])
@pytest.mark.parametrize("kind", ["cnn", "vit", "timm vit"])
@torch.no_grad()
def test_the_law_holds_at_every_layer_and_after_folding(kind, normalize):
    chain = made(data_of(16, 20), **KINDS[kind], normalize=normalize)
    images = torch.randn(3, 3, 16, 20)
    whole, read = chain(images), chain.trace(images)
    for layer in chain.layers:
        features = chain.front(layer)(images)
        assert torch.equal(features, read[layer])
        torch.testing.assert_close(chain.tail(layer)(features), whole, rtol=1e-5, atol=1e-6)
    folded = frozen(chain, (3, 16, 20))
    for layer, output in folded.trace(images).items():
        torch.testing.assert_close(output, read[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cnn", "vit", "timm vit", "torchvision vit"])
@torch.no_grad()
def test_shapes_and_macs_are_those_at_the_networks_size(kind):
    entry = KINDS[kind]
    chain = made(data_of(16, 20), **entry)
    size = entry["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    plain = chain.plain()
    macs = multiply_adds(plain, torch.zeros(1, 3, height, width))
    image = torch.zeros(1, 3, 16, 20)
    assert multiply_adds(behind_resize(chain), image) == macs
    built = untrained_model(model(**entry), (3, 16, 20), num_classes=3).eval()
    assert multiply_adds(behind_resize(built), image) == macs
    assert feature_shapes(built, (3, 16, 20)) == feature_shapes(chain, (3, 16, 20))
    inner = chain.chain if isinstance(chain, InputChain) else chain
    assert feature_shapes(chain, (3, 16, 20)) == feature_shapes(inner, (3, height, width))


def test_networks_are_timed_separately_where_size_resizing_or_outputs_differ():
    def key(**entry: Any) -> str:
        names = ["a", "b", "c"]
        described = model(**NET, **entry).model_dump(mode="json")
        header = {"model": described, "image_shape": [3, 16, 20], "class_names": names}
        return architecture_key(header)

    other = [{}, {"image_size": 32}, {"image_size": 32, "interpolation": "bicubic"}]
    other.append({"classes": ["a", "b", "c", "d"]})
    assert len({key(**entry) for entry in other}) == len(other)
    assert key(checkpoint="a.pt", normalize="none") == key()


@pytest.mark.parametrize("resized", ["teacher", "student", "both"])
@torch.no_grad()
def test_student_and_teacher_of_other_sizes_are_joined(resized):
    shape = (3, 16, 16)
    sizes = {
        "teacher": {"image_size": 32} if resized != "student" else {},
        "student": {"image_size": 24} if resized != "teacher" else {},
    }
    teacher = made(data_of(*shape[1:]), **NET, **sizes["teacher"]).requires_grad_(False)
    student = made(data_of(*shape[1:]), **NET, **sizes["student"])
    images = torch.randn(3, *shape)
    stones = plan_stones(teacher, student, shape, pair_stages(teacher, student), "conv_norm")
    side = sizes["teacher"].get("image_size", 16)
    assert [stone["teacher_shape"][1:] for stone in stones] == [
        [side // factor] * 2 for factor in (1, 2, 4)
    ]
    logits = Stones(teacher, stones).eval()(student.trace(images))
    assert [entry.shape for entry in logits] == [(3, 3)] * 3
    pairs = plan_pairs(
        teacher,
        student,
        shape,
        student_layers=None,
        teacher_layers=teacher.stages[-2:],
        projector="conv",
    )
    assert [pair["teacher_shape"][1] for pair in pairs] == [side // 2, side // 4]
    labels = torch.tensor([0, 1, 2])
    method = FitNet(teacher, student, Task(shape, 3, labels, batch_size=3))
    losses = method.terms(Batch(images, labels, labels, torch.zeros_like(labels)))
    assert all(loss.isfinite() for loss in losses.values())


LEARNING = [name for name in registry.names("methods") if class_of(name).wants != "nothing"]


@pytest.mark.parametrize("kind", ["large resnet", "large vit"])
@pytest.mark.parametrize("name", LEARNING)
def test_every_method_learns_from_a_teacher_of_another_size(name, kind):
    family, options = ENTRIES[kind]["family"], ENTRIES[kind]["options"]
    torch.manual_seed(0)
    inner = build_model(family, num_classes=NUM_CLASSES, image_size=(32, 24), **options)
    teacher = InputChain(inner, InputContract.of_size((32, 24), "bilinear", 3))
    method = make(name, teacher=teacher.requires_grad_(False).eval())
    assert all(loss.isfinite() for loss in step(method, batch_of()).values())
    if name != "simkd":
        return
    entry = method.deployed_entry(ENTRIES["resnet"], ENTRIES[kind] | {"image_size": [32, 24]})
    built = build_model("simkd", num_classes=NUM_CLASSES, image_size=16, **entry["options"]).eval()
    built.load_state_dict(method.deployed().state_dict())
    images = batch_of().images
    with torch.no_grad():
        torch.testing.assert_close(built(images), method.eval().deployed()(images))


# the settings


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"interpolation": "bicubic"}, "interpolation is 'bicubic' and image_size is not set"),
        ({"image_size": 16}, None),
        ({"image_size": [16, 24], "interpolation": "nearest"}, None),
    ],
)
def test_the_size_is_resolved_while_planning(entry, said):
    if said is None:
        found = model(**NET, **entry)
        assert found.image_size in ((16, 16), (16, 24))
        return
    with pytest.raises(KdstepsError, match=f"models.big.{said}; set it to the size"):
        model(**NET, **entry)


def test_a_size_that_a_network_does_not_take_is_a_sentence():
    with pytest.raises(KdstepsError, match=r"of a multiple of 32 pixels, not 16 x 20; .*size: 32"):
        made(data_of(16, 20), family="torchvision", name="vit_b_32")


@pytest.mark.parametrize("image_size", [None, 160])
def test_published_weights_of_a_fixed_size_say_that_they_are_resampled(tmp_path, image_size):
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "model.safetensors")
    config = {"num_classes": 1000, "input_size": [3, 160, 160], "fixed_input_size": True}
    content = {"architecture": "test_vit", **config, "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(content))
    options = {"name": f"local-dir:{tmp_path}", "pretrained": True}
    chain = build_model("timm", num_classes=1000, image_size=image_size or 32, **options)
    if image_size is not None:
        assert not chain.notes
        return
    (note,) = chain.notes
    for words in ("for images of 160 pixels", "built for 32", "resamples", "image_size to 160"):
        assert words in note


# a whole study

TRAIN = {"epochs": 1, "teacher_check": "warn"}
VIT = {"family": "vit", "width": 8, "depth": 2, "heads": 2, "mlp": 8, "train": TRAIN}


@pytest.mark.slow
def test_a_teacher_of_another_size_goes_through_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = VIT | {"image_size": 16, "interpolation": "bicubic"}
    student = NET | {"image_size": [12, 16]}
    write_study(
        tmp_path,
        models={"big": teacher, "small": student},
        methods={"kd": {}, "block_kd": {}, "feature_only": {}},
        seeds=[0],
        evaluate={"latency_runs": 3},
    )
    for rule in (
        *("prepare", "train", "train_check", "evaluate_teacher", "cache", "score", "build"),
        *("cache_outputs", "distil", "evaluate", "evaluate_latency"),
    ):
        for names in graph.jobs(load_study(), rule):
            run(rule, names)
    folder = Path("results")
    names = {"dataset": "digits", "teacher": "big"}
    weights, header = read_checkpoint(graph.outputs("train", names)["model"])
    assert header["model"]["image_size"] == [16, 16]
    own = {key: value for key, value in VIT.items() if key not in ("family", "train")}
    network = build_model("vit", num_classes=10, in_channels=1, image_size=16, **own).eval()
    network.load_state_dict(weights)
    assert expected_logits(folder, network, header) <= 1e-4
    measures = read_json(graph.outputs("evaluate_teacher", names)["measures"])
    assert measures["macs"] == multiply_adds(network, torch.zeros(1, 1, 16, 16))
    plan = read_json(graph.outputs("build", {"pair": "pair", "method": "block_kd"})["plan"])
    assert plan["teacher"]["multiply_adds"] == measures["macs"]
    latency = read_json(graph.outputs("evaluate_latency", {"pair": "pair"})["latency"])
    assert latency["teacher"]["latency_ms"] > 0 and latency["students"]["kd"]["latency_ms"] > 0


def expected_logits(folder: Path, network: Chain, header: dict[str, Any]) -> float:
    """The largest difference between the teacher's test logits and those worked out by hand."""
    table = read_table(
        graph.outputs("evaluate_teacher", {"dataset": "digits", "teacher": "big"})["predictions"],
        PREDICTIONS,
    )
    rows = table["image"].to_numpy()
    images = torch.from_numpy(np.load(folder / "prepare/digits/images.npy")[rows]).float()
    large = transforms.resize(images, [16, 16], InterpolationMode.BICUBIC, antialias=True).clamp(
        0, 255
    )
    mean, std = torch.tensor(header["mean"]), torch.tensor(header["std"])
    with torch.no_grad():
        logits = network((large / 255 - mean[:, None, None]) / std[:, None, None])
    return float((logits - torch.from_numpy(np.stack(table["logits"].to_numpy()))).abs().max())


def run(rule: str, names: dict[str, str]) -> None:
    """One job, as Snakemake runs it."""
    node = graph.node(load_study(), rule, names)
    lists = {name: value for name, value in node.inputs.items() if isinstance(value, list)}
    inputs = [f"{n}={path}" for n, path in node.inputs.items() if n not in lists]
    inputs += [f"{name}={path}" for name, paths in lists.items() for path in paths]
    outputs = [f"{name}={path}" for name, path in graph.outputs(rule, names).items()]
    command = [graph.stage_of(rule), "--settings", node.text]
    hints = [f"--{key.replace('_', '-')}={value}" for key, value in node.hints.items()]
    assert main([*command, "--inputs", *inputs, "--outputs", *outputs, *hints]) == 0
