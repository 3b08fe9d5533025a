"""Twenty good teachers pass the check, as trained here and as weights from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _teachers import Teachers, write_shapes
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
NETWORKS: dict[str, dict[str, Any]] = {
    "cifar_resnet": {"family": "cifar_resnet", "depth": 8, "widths": [8, 8, 16, 32]},
    "wide_resnet": {"family": "wide_resnet", "depth": 10, "width": 1},
    "mobilenet": {"family": "mobilenet", "width": 0.25},
    "vit": {"family": "vit", "width": 48, "depth": 2, "heads": 2, "mlp": 96, "patch": 4},
    "timm-resnet": {"family": "timm", "name": "test_resnet"},
    "timm-efficientnet": {"family": "timm", "name": "test_efficientnet"},
    "timm-byobnet": {"family": "timm", "name": "test_byobnet"},
    "timm-vit": {"family": "timm", "name": "test_vit", "patch_size": 4},
    "torchvision-shufflenet": {"family": "torchvision", "name": "shufflenet_v2_x0_5"},
    "torchvision-mobilenet": {
        "family": "torchvision",
        "name": "mobilenet_v2",
        "width_mult": 0.25,
        "small_stem": True,
    },
}
DRAWN = {"digits": True, "shapes": False}  # whether the splits are drawn at random


@pytest.fixture(scope="module", params=DRAWN)
def study(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[Teachers, bool]]:
    """A study in the current folder, and whether its splits are drawn at random."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        digits = {"kind": "digits", "size": 16}
        dataset = digits if request.param == "digits" else write_shapes(folder)
        yield Teachers(dataset, prepare={"validation": 0.35, "test": 0.3}), DRAWN[request.param]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_good_teacher_is_neither_stopped_nor_named(study, name, capsys):
    teachers, drawn = study
    trained = teachers.check(capsys, name, **NETWORKS[name])
    assert (trained.status, trained.found["problems"], trained.found["warnings"]) == (0, [], [])
    assert trained.found["notes"] == []
    save_file(teachers.weights(name), f"{name}.safetensors")
    outside = NETWORKS[name] | {"checkpoint": f"{name}.safetensors", "train": {"epochs": 0}}
    found = teachers.check(capsys, f"{name}-again", **outside).found
    assert found["accuracy"] == trained.found["accuracy"]
    assert found["problems"] == []
    assert ["test images were drawn" in warning for warning in found["warnings"]] == [True] * drawn
