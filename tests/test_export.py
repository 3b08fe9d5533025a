"""Networks as files for use elsewhere: what a file contains, and that it computes the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _entries import MEAN, STD, data_of, model
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.export import onnx_files
from kdsteps.export.checking import with_notes
from kdsteps.export.choosing import best_first, interval_of, last_validation
from kdsteps.export.description import METADATA_KEY, Description
from kdsteps.export.int8 import calibration_rows, quantized
from kdsteps.export.onnx_files import FromPixels, as_bytes, relative_difference, to_onnx
from kdsteps.export.record import Candidate, ExportedFile, FormatError, check_space
from kdsteps.export.seal import DIGEST_KEY, is_intact
from kdsteps.export.session import open_session
from kdsteps.export.timm_folder import load_timm, put_folder, timm_config
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.models.input import InputChain
from kdsteps.stages._shared import fresh_model

SIDE = 32
CLASSES = ("a", "b", "c")
DESCRIPTION = Description(
    run="pair/kd/0",
    network="small",
    classes=CLASSES,
    channels=3,
    image_size=(SIDE, SIDE),
    resize=None,
    store=None,
    crop=None,
    mean=MEAN,
    std=STD,
)
# one of every own family, as small as it goes
OWN: dict[str, dict[str, Any]] = {
    "cifar_resnet": {"depth": 8, "widths": (2, 2, 2, 2)},
    "wide_resnet": {"depth": 10, "width": 1},
    "resnet": {"depth": 9, "zero_init": False},
    "vgg": {"depth": 11},
    "mobilenet": {"width": 0.25},
    "shufflenet": {"version": 2, "size": 0.5},
    "vit": {"width": 8, "depth": 1, "heads": 2, "mlp": 8, "patch": 4, "zero_head": False},
}
OTHERS: dict[str, dict[str, Any]] = {
    "timm": {"name": "test_resnet"},
    "torchvision": {"name": "squeezenet1_1"},
}
SLOW = ("mobilenet", "shufflenet", "torchvision")
RESIZED: dict[str, dict[str, Any]] = {
    "bilinear, larger": {
        "image_size": [48, 40],
        "interpolation": "bilinear",
        "normalize": {"mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]},
    },
    "bicubic, smaller": {"image_size": 24, "interpolation": "bicubic"},
    "nearest, classes in another order": {
        "image_size": 64,
        "interpolation": "nearest",
        "classes": ["c", "x", "a", "b"],
    },
}


def images(count: int = 21) -> Tensor:
    """Images as they are stored, (N, H, W, C), of all brightnesses."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


def trained(family: str, **options: Any) -> Chain:
    """A network with batch statistics as if it had been trained."""
    torch.manual_seed(0)
    chain = build_model(family, num_classes=len(CLASSES), image_size=SIDE, **options).eval()
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return chain.requires_grad_(False)


def from_pixels(chain: nn.Module) -> nn.Module:
    return FromPixels(chain, torch.tensor(MEAN), torch.tensor(STD)).eval()


def opened(model: Any) -> Any:
    return open_session(as_bytes(model))


def predicted(session: Any, some: Tensor) -> np.ndarray:
    return onnx_files.run(session, some.numpy())


def assert_same(model: Any, network: nn.Module) -> None:
    """Check that a file computes what a network computes, for any number of images."""
    session = opened(model)
    batch, *shape = session.get_inputs()[0].shape
    assert isinstance(batch, str) and shape == [SIDE, SIDE, 3]
    for count in (1, 3, 7, 21):
        some = images(count)
        found, expected = predicted(session, some), network(some).numpy()
        assert relative_difference(found, expected) < 1e-5


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return from_pixels(trained("resnet", depth=9, zero_init=False))


@pytest.fixture(scope="module")
def exported(small: nn.Module) -> Any:
    return to_onnx(small, images(7), DESCRIPTION)


# ONNX


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in (*OWN, *OTHERS)
    ],
)
def test_an_onnx_file_agrees_with_torch_for_any_number_of_images(family: str):
    network = from_pixels(trained(family, **(OWN | OTHERS)[family]))
    assert_same(to_onnx(network, images(7), DESCRIPTION), network)


@pytest.mark.parametrize("entry", RESIZED)
def test_a_networks_own_resizing_normalization_and_classes_are_in_its_file(entry: str):
    torch.manual_seed(0)
    settings = model(family="cifar_resnet", **OWN["cifar_resnet"], **RESIZED[entry])
    chain = fresh_model(settings, data_of(SIDE, SIDE, CLASSES)).eval().requires_grad_(False)
    network = from_pixels(chain)
    assert_same(to_onnx(network, images(7), DESCRIPTION), network)


def test_normalization_is_in_the_file():
    class Means(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.mean(dim=(2, 3))

    session = opened(to_onnx(from_pixels(Means()), images(7), DESCRIPTION))
    for brightness in (0, 255):
        some = torch.full((1, SIDE, SIDE, 3), brightness, dtype=torch.uint8)
        expected = [(brightness / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)]
        assert predicted(session, some)[0] == pytest.approx(expected, rel=1e-5)


def test_a_file_describes_itself_and_mentions_no_paths(exported: Any):
    known = opened(exported).get_modelmeta().custom_metadata_map
    assert known.keys() == {METADATA_KEY, DIGEST_KEY}
    assert known[METADATA_KEY] == DESCRIPTION.as_json()
    assert is_intact(as_bytes(exported))
    rest = type(exported).FromString(as_bytes(exported))
    del rest.graph.initializer[:]  # weights are any bytes
    content = rest.SerializeToString()
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in content
    assert b".py" not in content


_OTHER_PROCESS = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import test_export as t
small = t.from_pixels(t.trained("resnet", depth=9, zero_init=False))
model = t.to_onnx(small, t.images(7), t.DESCRIPTION)
int8 = t.quantized(model, t.images().numpy(), t.DESCRIPTION)
print(*(hashlib.sha256(t.as_bytes(each)).hexdigest() for each in (model, int8)))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(exported: Any):
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS.format(tests=str(Path(__file__).parent))],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    int8 = quantized(exported, images().numpy(), DESCRIPTION)
    ours = [hashlib.sha256(as_bytes(each)).hexdigest() for each in (exported, int8)]
    assert done.stdout.split() == ours


def test_a_file_for_one_number_of_images_is_not_accepted(monkeypatch, small: nn.Module):
    def fixed(network: nn.Module, some: Tensor) -> Any:
        program = torch.onnx.export(network, (some[:2],), dynamo=True, verbose=False)
        return program.model_proto

    monkeypatch.setattr(onnx_files, "_ATTEMPTS", [fixed])
    with pytest.raises(FormatError, match="number of images is fixed"):
        to_onnx(small, images(7), DESCRIPTION)


def test_a_file_that_computes_something_else_is_not_accepted(monkeypatch, small, exported):
    monkeypatch.setattr(onnx_files, "_ATTEMPTS", [lambda *_: exported])
    other = from_pixels(trained("cifar_resnet", **OWN["cifar_resnet"]))
    with pytest.raises(FormatError, match="differ from those of torch"):
        to_onnx(other, images(7), DESCRIPTION)


def test_a_reason_is_that_of_the_first_exporter(monkeypatch, small):
    def refuses(reason: str) -> Any:
        def attempt(*_: Any) -> Any:
            try:
                raise ValueError(f"{reason}\nand much more")
            except ValueError as error:
                raise RuntimeError("failed; \x1b[96msee above\x1b[0m") from error

        return attempt

    monkeypatch.setattr(onnx_files, "_ATTEMPTS", [refuses("no such operation"), refuses("no")])
    with pytest.raises(FormatError, match=r"ValueError: no such operation\)$"):
        to_onnx(small, images(7), DESCRIPTION)


# int8


def test_int8_agrees_roughly_and_logits_may_exceed_those_of_the_calibration(
    small: nn.Module, exported: Any
):
    dim, bright = images() // 8, images()
    file = quantized(exported, dim.numpy(), DESCRIPTION)
    last = [node for node in file.graph.node if node.op_type in ("Gemm", "MatMul", "Conv")][-1]
    weights = {each.name for each in file.graph.initializer}
    assert {*last.input} & weights, "the last layer has weights in float32"
    found = predicted(opened(file), dim)
    assert relative_difference(found, small(dim).numpy()) < 0.1
    assert np.isfinite(predicted(opened(file), bright)).all()
    assert opened(file).get_modelmeta().custom_metadata_map[METADATA_KEY] == DESCRIPTION.as_json()
    assert any(node.op_type == "QuantizeLinear" for node in file.graph.node)


def test_calibration_images_are_spread_over_all_training_images():
    rows = np.arange(1000, 3000)
    chosen = calibration_rows(rows)
    assert (len(chosen), chosen[0], chosen[-1]) == (100, 1000, 2999)
    assert np.ptp(np.diff(chosen)) <= 1
    assert calibration_rows(rows[:7]).tolist() == rows[:7].tolist()


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "words"),
    [
        (0.9, 1.0, []),
        (0.891, 1.0, []),
        (0.88, 1.0, ["2.0 points"]),
        (0.9, 2.5, ["slower", "2.50 ms", "1.20 ms"]),
    ],
)
def test_int8_that_is_worse_or_slower_says_so(accuracy, latency_ms, words):
    float32 = ExportedFile("onnx", "model.onnx", accuracy=0.9, latency_ms=1.2)
    int8 = ExportedFile("int8", "model.int8.onnx", accuracy=accuracy, latency_ms=latency_ms)
    notes = " ".join(with_notes(int8, float32).notes)
    assert bool(notes) == bool(words)
    assert all(word in notes for word in words)


# a folder for timm


def written_folder(folder: Path, name: str, **options: Any) -> tuple[Chain, Tensor]:
    """A network of timm as a folder, and images as it takes them."""
    from safetensors.torch import save_file

    chain = trained("timm", name=name, **options)
    inner = chain.chain if isinstance(chain, InputChain) else chain
    weights = folder / "weights"
    save_file(inner.plain().state_dict(), weights)
    some = images(7).permute(0, 3, 1, 2) / 255
    config = timm_config(
        inner.plain(),
        weights,
        some,
        options={"name": name, **options},
        class_names=CLASSES,
        mean=MEAN,
        std=STD,
        interpolation="bicubic",
    )
    put_folder(folder, weights, config)
    return chain, some


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"drop_rate": 0.1}),
        ("test_vit", {"patch_size": 4, "class_token": False, "global_pool": "avg"}),
    ],
)
def test_timm_loads_a_folder_and_returns_the_same_logits(tmp_path: Path, name, options):
    from timm.data import resolve_data_config

    chain, some = written_folder(tmp_path, name, **options)
    loaded = load_timm(tmp_path)
    assert torch.equal(loaded(some), chain(some))
    found = resolve_data_config({}, model=loaded)
    assert (tuple(found["mean"]), tuple(found["std"])) == (MEAN, STD)
    assert (tuple(found["input_size"]), found["interpolation"]) == ((3, SIDE, SIDE), "bicubic")
    assert loaded.pretrained_cfg["num_classes"] == len(CLASSES)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(CLASSES)


def test_a_network_with_a_small_stem_is_no_folder_for_timm(tmp_path: Path):
    with pytest.raises(FormatError, match="small stem"):
        written_folder(tmp_path, "test_resnet", small_stem=True)


def test_a_folder_from_which_timm_makes_other_logits_is_refused(tmp_path: Path, monkeypatch):
    from kdsteps.export import timm_folder

    monkeypatch.setattr(timm_folder, "load_timm", lambda _: nn.Flatten())
    with pytest.raises(FormatError, match="other logits"):
        written_folder(tmp_path, "test_resnet")


# the best run, and its interval


def test_the_best_run_is_first_and_ties_are_broken_by_loss_then_by_order():
    found = best_first(
        [
            Candidate("p/a/0", 0.8, 0.5),
            Candidate("p/b/0", None, None),
            Candidate("p/c/0", 0.9, 0.6),
            Candidate("p/d/0", 0.9, 0.4),
            Candidate("p/e/0", 0.9, 0.4),
        ]
    )
    assert [each.run[2] for each in found] == ["d", "e", "c", "a", "b"]


def test_the_last_epoch_counts_whose_weights_are_deployed():
    history = {
        "epoch": [1, 1, 2, 2],
        "name": ["validation_accuracy", "validation_loss"] * 2,
        "value": [0.9, 0.1, 0.7, 0.3],
    }
    assert last_validation(history) == (0.7, 0.3)
    assert last_validation({"epoch": [1], "name": ["total"], "value": [1.0]}) == (None, None)


def test_the_interval_of_an_accuracy_is_wilsons():
    low, high = interval_of(0.9, 100, 0.95)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-4), pytest.approx(0.9448, abs=1e-4))
    assert interval_of(None, 100, 0.95) is None


def test_a_full_disk_says_nothing_about_a_format(monkeypatch):
    check_space(ValueError("not supported"))
    inner = OSError(errno.ENOSPC, "No space left on device")
    outer = RuntimeError("cannot save")
    outer.__cause__ = inner
    for error in (inner, outer):
        with pytest.raises(KdstepsError, match="the disk is full; make room there, or set TMPDIR"):
            check_space(error)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("kdsteps.export.record.shutil.disk_usage", lambda path: usage)
    with pytest.raises(KdstepsError, match="the disk is full"):
        check_space(ValueError("no such tensor"))
