"""A student of `simkd` on its whole way: it is deployed with a projector and the teacher's tail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from _commands import NET, write_study
from PIL import Image

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.cli.running import run_call
from kdsteps.export.record import read_record
from kdsteps.files.columns import PREDICTIONS
from kdsteps.files.tables import read_table
from kdsteps.jobs import graph
from kdsteps.study.loading import load_study

pytestmark = pytest.mark.slow

RUN = {"pair": "pair", "method": "simkd", "seed": "0"}
PLACE = Path("results/export/pair/simkd/0")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one student of `simkd`, exported in every format."""
    folder = tmp_path_factory.mktemp("study")
    write_study(
        folder,
        models={"big": NET, "small": NET | {"widths": [2, 2, 2, 4]}},
        methods={"simkd": {}},
        seeds=[0],
        train={"epochs": 1, "batch_size": 256, "learning_rate": 1e-6, "teacher_check": "warn"},
        export={"runs": ["simkd"], "formats": ["onnx", "safetensors", "timm"], "int8": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("KDSTEPS_JOB_CACHE", raising=False)
        data, run = ("--dataset", "digits"), ("--pair", "pair", "--method", "simkd", "--seed", "0")
        assert main(["prepare", *data]) == 0
        assert main(["train", *data, "--teacher", "big"]) == 0
        study = load_study("params.yaml")
        names = {"dataset": "digits", "teacher": "big"}
        run_call(call_of(study, "train_check", names), threads=1, gpus=0)
        assert main(["evaluate", *data, "--teacher", "big"]) == 0
        for stage in ("distil", "evaluate"):
            assert main([stage, *run]) == 0
        assert main(["export", "--pair", "pair", "--student", "simkd/0"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_every_file_that_is_written_decides_as_the_evaluation_did():
    record = read_record(PLACE / "export.json")
    written = {file.format: file for file in record.files if file.name}
    assert {"onnx", "int8", "safetensors"} == written.keys()
    assert written["onnx"].agreement == written["safetensors"].agreement == 1
    (missing,) = [file for file in record.files if not file.name]
    assert missing.format == "timm"
    assert "family simkd, not a network of timm" in missing.reason


def test_predict_classifies_its_test_images_as_the_evaluation_did(tmp_path: Path, capsys):
    table = read_table(graph.outputs("evaluate", RUN)["predictions"], PREDICTIONS)
    rows = table["image"].to_numpy()[:20]
    pixels = np.load(graph.outputs("prepare", {"dataset": "digits"})["images"])[rows]
    for number, image in enumerate(pixels):
        Image.fromarray(image[0]).save(tmp_path / f"{number:02}.png")
    assert main(["predict", str(PLACE), str(tmp_path), "--json"]) == 0
    found = [json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()]
    assert found == [str(label) for label in table["predicted"].to_pylist()[:20]]


def test_its_card_has_code_that_loads_its_weights(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (PLACE / "model_card.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "load_weights" in block]
    monkeypatch.chdir(PLACE)
    exec(code, names := {})
    assert any(isinstance(value, torch.nn.Module) for value in names.values())


def test_its_card_warns_of_the_teacher():
    card = (PLACE / "model_card.md").read_text()
    check = json.loads(Path("results/train/digits/big/check.json").read_text())
    assert check["problems"], "its learning rate is far too low"
    assert "> **Warning:** The teacher big: " in card
    assert "> **Warning:** Its accuracy is at the level of chance." in card  # the student's
    assert card.count("> **Warning:**") == 1 + len(check["problems"]) + len(check["warnings"])
