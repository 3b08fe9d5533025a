"""Weights from files: what is found and read, what is refused, and that no code is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.chain import Chain
from kdsteps.models.checkpoints import load_weights, size_problem
from kdsteps.models.weight_files import read_file

OPTIONS: dict[str, Any] = {"num_classes": 5, "depth": 8, "widths": (4, 4, 4, 4)}

State = dict[str, Tensor]


def network(seed: int, **options: Any) -> Chain:
    torch.manual_seed(seed)
    return build_model("cifar_resnet", **(OPTIONS | options)).eval()


@pytest.fixture
def trained() -> Chain:
    return network(1)


def loaded(path: Any, **options: Any) -> Chain:
    """Another network with the weights of a file."""
    torch.manual_seed(2)
    return build_model("cifar_resnet", **(OPTIONS | options), checkpoint=str(path))


def assert_same(chain: nn.Module, trained: nn.Module) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chain.eval()(images), trained(images))


def renamed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other() -> State:
    """A network of another depth."""
    return network(5, depth=14).state_dict()


LOSS = torch.ones(3)
FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"epoch": 240, "model": state, "best_acc": np.float64(0.7)},
    "state_dict": lambda state: {"state_dict": state, "arch": "resnet8"},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
    "model_ema": lambda state: {"model_ema": state, "decay": 0.999},
    "net": lambda state: {"net": state, "acc": 71.2},
    "student": lambda state: {"student": state, "teacher": other()},
    "weights": lambda state: {"weights": state, "meta": {"date": "today"}},
    "DataParallel": lambda state: renamed(state, "module."),
    "DataParallel in model": lambda state: {"model": renamed(state, "module."), "epoch": 3},
    "compiled in DataParallel": lambda state: renamed(state, "_orig_mod.module."),
    "compiled inside": lambda state: {
        name.replace("layer1.0.", "layer1.0._orig_mod."): tensor for name, tensor in state.items()
    },
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7), **renamed(state, "module.")},
    "backbone": lambda state: renamed(state, "backbone."),
    "Lightning": lambda state: {
        "state_dict": renamed(state, "model."),
        "pytorch-lightning_version": "2.4",
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
    },
    "mixed prefixes": lambda state: {
        "state_dict": renamed(state, "architecture.") | renamed(other(), "teacher.")
    },
    "weights of a loss": lambda state: {"state_dict": state | {"criterion.centers": LOSS}},
    "extra states": lambda state: state | {"bn1._extra_state": torch.zeros(0), "_extra_state": 3},
    "options beside": lambda state: {
        "opt": argparse.Namespace(lr=0.05, at=Path("a")),
        "model": state,
    },
    "optimizer beside": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4, 3, 3, 3)}}},
    },
    "twice the same": lambda state: {"model": state, "model_ema": dict(state)},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_in_which_projects_save_weights_load(tmp_path, trained, form):
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "weights.pt")
    assert_same(loaded(tmp_path / "weights.pt"), trained)


@pytest.mark.parametrize("form", ["bare", "DataParallel", "AveragedModel", "backbone"])
def test_safetensors_have_the_same_forms(tmp_path, trained, form):
    save_file(FORMS[form](trained.state_dict()), tmp_path / "weights.safetensors")
    assert_same(loaded(tmp_path / "weights.safetensors"), trained)


@pytest.mark.parametrize("first", [b"\x80", b"PK"], ids=["pickle", "zip file"])
def test_safetensors_may_begin_like_another_format(tmp_path, trained, first, monkeypatch):
    """The length of their header comes first: one of 32 files begins with a pickle's byte."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read as a pickle"))
    path = tmp_path / "weights.safetensors"
    save_file(trained.state_dict(), path, metadata={"note": ""})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = next(
        n for n in range(length, length + 2**17) if n.to_bytes(8, "little")[: len(first)] == first
    )
    header = content[8 : 8 + length].ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes().startswith(first)
    assert_same(loaded(path), trained)


def test_the_format_before_zip_files_loads(tmp_path, trained):
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(loaded(path), trained)


def test_safetensors_are_known_by_their_content(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "weights.bin")
    assert_same(loaded(tmp_path / "weights.bin"), trained)


def test_what_was_chosen_and_left_out_is_noted(tmp_path, trained):
    path = tmp_path / "weights.pt"
    torch.save(FORMS["mixed prefixes"](trained.state_dict()), path)
    took, left = loaded(path).notes
    assert took.endswith("took checkpoint_key: state_dict with checkpoint_prefix: architecture.")
    assert "left out" in left and "teacher." in left


def test_averaged_weights_are_taken_when_they_are_named(tmp_path, trained):
    path, averaged = tmp_path / "weights.pt", network(3)
    torch.save({"state_dict": trained.state_dict(), "state_dict_ema": averaged.state_dict()}, path)
    plain = loaded(path)
    assert_same(plain, trained)
    assert "averaged weights; checkpoint_key: state_dict_ema takes them" in plain.notes[0]
    assert_same(loaded(path, checkpoint_key="state_dict_ema"), averaged)


@pytest.mark.parametrize(
    ("content", "choices", "options"),
    [
        (
            lambda one, two: {"student": one, "teacher": two},
            "checkpoint_key: student; checkpoint_key: teacher",
            {"checkpoint_key": "teacher"},
        ),
        (
            lambda one, two: renamed(one, "student.") | renamed(two, "teacher."),
            "checkpoint_prefix: student.; checkpoint_prefix: teacher.",
            {"checkpoint_prefix": "teacher"},
        ),
        (
            lambda one, two: {"runs": {"first": one, "last": two}},
            "checkpoint_key: runs.first; checkpoint_key: runs.last",
            {"checkpoint_key": "runs.last"},
        ),
    ],
)
def test_two_sets_of_weights_that_fit_are_listed_and_an_option_decides(
    tmp_path, trained, content, choices, options
):
    path = tmp_path / "weights.pt"
    torch.save(content(network(3).state_dict(), trained.state_dict()), path)
    with pytest.raises(KdstepsError, match=rf"2 different sets of weights.*{choices}"):
        loaded(path)
    assert_same(loaded(path, **options), trained)


def test_a_key_or_prefix_that_leads_nowhere_is_answered_with_those_there_are(tmp_path, trained):
    path = tmp_path / "weights.pt"
    torch.save({"net": renamed(trained.state_dict(), "module.")}, path)
    with pytest.raises(KdstepsError, match=r"checkpoint_key 'nett'.*mean 'net'\?; there are 'net'"):
        loaded(path, checkpoint_key="nett")
    with pytest.raises(KdstepsError, match=r"checkpoint_prefix 'modul\.'.*there are 'module\.'"):
        loaded(path, checkpoint_prefix="modul")


def test_a_classifier_for_other_classes_starts_anew_only_to_be_trained(tmp_path, trained):
    path, wide = tmp_path / "weights.pt", network(3, num_classes=1000)
    torch.save({"model": wide.state_dict()}, path)
    with pytest.raises(KdstepsError, match=r"weights.pt: .*fc\.weight, fc\.bias .*for 5 classes"):
        loaded(path)
    chain = loaded(path, will_train=True)
    assert chain.new_weights == ("fc.weight", "fc.bias")
    assert torch.equal(chain.conv1.weight, wide.conv1.weight)
    assert chain.fc.weight.shape == (5, 4)
    assert "classifier differs, so fc.weight, fc.bias start with new weights" in chain.notes[-1]


def test_a_backbone_without_classifier_starts_one_anew(tmp_path, trained):
    path = tmp_path / "weights.pt"
    state = {name: t for name, t in trained.state_dict().items() if not name.startswith("fc.")}
    torch.save(renamed(state, "backbone.") | {"head.weight": torch.ones(7, 4)}, path)
    with pytest.raises(KdstepsError, match="weights for 5 classes"):
        loaded(path)
    chain = loaded(path, will_train=True)
    assert torch.equal(chain.conv1.weight, trained.conv1.weight)


@pytest.mark.parametrize("will_train", [False, True])
def test_half_the_weights_missing_are_refused(tmp_path, trained, will_train):
    path, state = tmp_path / "weights.pt", trained.state_dict()
    torch.save({name: state[name] for name in list(state)[: len(state) // 2]}, path)
    with pytest.raises(KdstepsError, match=r"does not fit the network; of its keys \d+ missing"):
        loaded(path, will_train=will_train)


def test_a_deeper_network_of_the_same_names_is_refused(tmp_path):
    torch.save(other(), tmp_path / "weights.pt")
    with pytest.raises(KdstepsError, match=r"unexpected \(layer1\.1\.conv1\.weight"):
        loaded(tmp_path / "weights.pt", will_train=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, trained, value):
    path, state = tmp_path / "weights.pt", trained.state_dict()
    state["layer1.0.conv2.weight"][0, 1, 2] = value
    torch.save({"model": state}, path)
    with pytest.raises(KdstepsError, match=r"weights.pt: layer1\.0\.conv2\.weight .* 3 of 144"):
        loaded(path)
    with pytest.raises(KdstepsError, match=r"teacher: layer1\.0\.conv2\.weight .* 3 of 144"):
        load_weights(network(3), state, "teacher")


def test_weights_of_half_precision_and_without_counters_load(trained):
    chain = network(3)
    weights = {
        name: tensor.half()
        for name, tensor in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    load_weights(chain, weights, "file")
    assert chain.fc.weight.dtype == torch.float32
    assert torch.equal(chain.fc.weight, trained.fc.weight.half().float())
    assert chain.bn1.num_batches_tracked.item() == 0


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
        read_file(path)
    assert not flag.exists()


def test_a_bare_pickle_with_code_is_refused_and_never_run(tmp_path):
    path, flag = tmp_path / "weights.pth", tmp_path / "has_run"
    path.write_bytes(pickle.dumps(Code(flag), protocol=2))
    with pytest.raises(KdstepsError, match=r"weights.pth"):
        read_file(path)
    assert not flag.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_in_a_checkpoint_is_named(tmp_path, trained, zipped):
    path = tmp_path / "network.pth"
    torch.save({"net": trained}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(KdstepsError, match=r"holds a whole network as code \(kdsteps"):
        read_file(path)


@pytest.mark.parametrize("name", ["network.pt", "network.pth"])
def test_a_torchscript_program_is_named(tmp_path, name):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / name)
    with pytest.raises(KdstepsError, match=rf"{name}: is a TorchScript program; .*state_dict\(\)"):
        read_file(tmp_path / name)


def test_an_exported_program_is_named(tmp_path):
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "network.pt2")
    with pytest.raises(KdstepsError, match=r"network.pt2: is a program of torch\.export"):
        read_file(tmp_path / "network.pt2")


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
        read_file(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(KdstepsError, match=r"nowhere\.pth: there is no such file"):
        loaded(tmp_path / "nowhere.pth")
    with pytest.raises(KdstepsError, match="is a folder"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "entries epoch, optimizer"),
        ({}, "nothing"),
        ([1, 2], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"unet.in.weight": torch.ones(2)}, "entries unet.in.weight"),
    ],
)
def test_a_file_without_weights_of_the_network_is_outlined(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(KdstepsError, match=f"other.pth: has {found}, but no weight of the net"):
        loaded(tmp_path / "other.pth")


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


# Positions for images of another size

TINY_VIT: dict[str, Any] = {"num_classes": 5, "width": 8, "depth": 2, "heads": 2, "mlp": 8}
SWIN = {"name": "swin_tiny_patch4_window7_224", "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def vit(size: Any, patch: int = 4, **options: Any) -> Chain:
    return build_model("vit", image_size=size, patch=patch, **(TINY_VIT | options))


@pytest.mark.parametrize(
    ("made_for", "size", "words"),
    [
        (32, 16, ("images of 32 pixels", "8 x 8", "for 16 (4 x 4)", "set `image_size: 32`")),
        (16, [16, 24], ("images of 16 pixels", "for 16 x 24 (4 x 6)", "set `image_size: 16`")),
        ([16, 24], 16, ("has 25 positions (positions.table)", "the network's 17 for 4 x 4", "set")),
    ],
)
def test_positions_for_another_size_are_refused_with_both_sizes(tmp_path, made_for, size, words):
    path = str(tmp_path / "vit.pt")
    torch.save(vit(made_for).state_dict(), path)
    assert vit(made_for, checkpoint=path).notes == []
    with pytest.raises(KdstepsError, match=f"^checkpoint {path}: ") as refused:
        vit(size, checkpoint=path)
    assert all(word in str(refused.value) for word in words), refused.value
    with torch.device("meta"):
        planned = vit(size, num_classes=7)
    assert size_problem(planned, path, num_classes=7) == str(refused.value)


def test_weights_that_differ_in_more_than_positions_are_no_matter_of_size(tmp_path):
    path = str(tmp_path / "vit.pt")
    torch.save(vit(32, depth=3).state_dict(), path)
    for network in (vit(16), vit(32, depth=3, patch=8)):  # fewer blocks; larger patches
        assert size_problem(network, path, num_classes=5) is None
    with pytest.raises(KdstepsError, match="does not fit the network; of its keys"):
        vit(16, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        (
            {"name": "test_vit"},
            64,
            ("images of 160 pixels (pos_embed", "for 64 (4 x 4)", "`image_size: 160`", "dynamic"),
        ),
        (SWIN | {"embed_dim": 8}, 64, ("relative_position_bias_table (169, 1), ", "set `image_si")),
    ],
)
def test_positions_of_networks_of_timm_are_refused_likewise(tmp_path, options, size, words):
    path = str(tmp_path / "weights.pt")
    made = build_model("timm", num_classes=3, **options)
    torch.save(made.plain().state_dict(), path)
    with pytest.raises(KdstepsError) as refused:  # the classifier may differ besides
        build_model("timm", num_classes=5, image_size=size, checkpoint=path, **options)
    assert all(word in str(refused.value) for word in words), refused.value


def test_windows_of_another_size_are_not_only_a_matter_of_images(tmp_path):
    path, network = str(tmp_path / "weights.pt"), SWIN | {"embed_dim": 8, "num_classes": 3}
    torch.save(build_model("timm", image_size=64, **network).plain().state_dict(), path)
    with pytest.raises(KdstepsError, match=r"or use the network with windows of their size$"):
        build_model("timm", image_size=64, checkpoint=path, window_size=4, **network)
    with pytest.raises(KdstepsError, match="does not fit the network; of its keys"):
        build_model(
            "timm", image_size=64, checkpoint=path, **(network | {"num_heads": [2, 2, 2, 2]})
        )


def test_the_options_in_the_sentence_let_timm_resample_the_positions(tmp_path):
    timm = pytest.importorskip("timm")
    path, options = str(tmp_path / "weights.pt"), {"img_size": 160, "dynamic_img_size": True}
    trained = timm.create_model("test_vit", num_classes=5, **options).eval()
    torch.save(trained.state_dict(), path)
    given = {"name": "test_vit", "num_classes": 5, **options}
    chain = build_model("timm", image_size=64, checkpoint=path, **given).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chain(images), trained(images))
