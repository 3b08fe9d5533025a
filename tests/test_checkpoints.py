"""Weights from files: what is read, what is refused, and that no code in a file is ever run."""

from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.checkpoints import load_weights, read_weights

OPTIONS = {"num_classes": 5, "depth": 8, "widths": (4, 4, 4, 4)}


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return build_model("cifar_resnet", **OPTIONS).eval()


def as_saved(state, form):
    """A state dict as other projects save it."""
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    return {
        "bare": state,
        "under model": {"epoch": 240, "model": state, "best_acc": np.float64(0.7)},
        "under state_dict": {"state_dict": state, "arch": "resnet8"},
        "of DataParallel": wrapped,
        "of DataParallel under model": {"model": wrapped, "epoch": 3},
        "compiled in DataParallel": {f"_orig_mod.{k}": t for k, t in wrapped.items()},
        "beside options": {"opt": argparse.Namespace(lr=0.05, milestones=[150]), "model": state},
    }[form]


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize(
    "form",
    [
        "bare",
        "under model",
        "under state_dict",
        "of DataParallel",
        "of DataParallel under model",
        "compiled in DataParallel",
        "beside options",
    ],
)
def test_published_forms_of_a_checkpoint_load(tmp_path, trained, form, suffix):
    path = tmp_path / f"weights.{suffix}"
    torch.save(as_saved(trained.state_dict(), form), path)
    assert_same(build_model("cifar_resnet", **OPTIONS, checkpoint=str(path)), trained)


def test_the_format_before_zip_files_loads(tmp_path, trained):
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(build_model("cifar_resnet", **OPTIONS, checkpoint=str(path)), trained)


def test_safetensors_load_with_and_without_a_wrapper(tmp_path, trained):
    state = trained.state_dict()
    save_file(state, tmp_path / "bare.safetensors")
    save_file({f"module.{k}": t for k, t in state.items()}, tmp_path / "wrapped.safetensors")
    for name in ("bare", "wrapped"):
        path = tmp_path / f"{name}.safetensors"
        assert_same(build_model("cifar_resnet", **OPTIONS, checkpoint=str(path)), trained)


def test_weights_of_half_precision_and_without_counters_load(trained):
    other = build_model("cifar_resnet", **OPTIONS)
    weights = {
        key: tensor.half()
        for key, tensor in trained.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    load_weights(other, weights, "file")
    assert other.fc.weight.dtype == torch.float32
    assert torch.equal(other.fc.weight, trained.fc.weight.half().float())
    assert other.bn1.num_batches_tracked.item() == 0


def assert_same(loaded: nn.Module, trained: nn.Module) -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(images), trained(images))


class Code:
    """What runs when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


def test_code_in_a_checkpoint_is_named_and_never_run(tmp_path, trained):
    path, flag = tmp_path / "weights.pth", tmp_path / "has_run"
    torch.save({"model": trained.state_dict(), "hook": Code(flag)}, path)
    with pytest.raises(KdstepsError, match=r"holds Python code \(\w+\.mkdir\), which is never run"):
        read_weights(path)
    assert not flag.exists()


def test_a_bare_pickle_with_code_is_refused_and_never_run(tmp_path):
    path, flag = tmp_path / "weights.pth", tmp_path / "has_run"
    path.write_bytes(pickle.dumps(Code(flag), protocol=2))
    with pytest.raises(KdstepsError, match=r"weights.pth"):
        read_weights(path)
    assert not flag.exists()


def test_a_whole_network_in_a_checkpoint_is_refused(tmp_path, trained):
    torch.save(trained, tmp_path / "network.pth")
    with pytest.raises(KdstepsError, match=r"holds Python code .* the state dict alone"):
        read_weights(tmp_path / "network.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "zeros"])
def test_damaged_and_foreign_files_are_named(tmp_path, trained, suffix, damage):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"these are not weights\n" * 20,
            "zeros": bytes(1000),
        }[damage]
    )
    with pytest.raises(KdstepsError, match=rf"weights.{suffix}: is damaged or"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KdstepsError, match=r"nowhere\.pth: there is no such file"):
        build_model("cifar_resnet", **OPTIONS, checkpoint=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "entries epoch, optimizer"),
        ({}, "nothing"),
        ([1, 2], "a list"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_outlined(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(KdstepsError, match=f"other.pth: holds {found}; a state dict"):
        read_weights(tmp_path / "other.pth")


def test_wrong_keys_and_shapes_are_listed_and_nothing_is_loaded(trained):
    before = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    weights = {key: torch.zeros_like(tensor) for key, tensor in before.items()}
    for key in ("conv1.weight", "bn1.bias", "layer1.0.bn1.bias", "layer1.0.bn2.bias"):
        del weights[key]
    weights["extra.weight"] = torch.zeros(1)
    weights["fc.weight"] = torch.zeros(100, 4)
    with pytest.raises(KdstepsError) as caught:
        load_weights(trained, weights, "teacher.pth")
    assert str(caught.value) == (
        "teacher.pth: does not fit the network; of its keys "
        "4 missing (conv1.weight, bn1.bias, layer1.0.bn1.bias, …), "
        "1 unexpected (extra.weight), "
        "1 of another shape (fc.weight (100, 4), the network's (5, 4))"
    )
    assert all(torch.equal(before[key], tensor) for key, tensor in trained.state_dict().items())
