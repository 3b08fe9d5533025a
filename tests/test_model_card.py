"""The model card: true to the record, safe for any name, and with code that runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from _exports import CLASSES, described, exported, with_description, write
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import save_file

import kdsteps
from kdsteps.data.decoding import decode
from kdsteps.data.source import Picture
from kdsteps.export.card import model_card
from kdsteps.export.markdown import code, code_block, prose, table
from kdsteps.export.record import FILES, ExportedFile, Record
from kdsteps.models import build_model
from kdsteps.models.input import InputChain, InputContract
from kdsteps.models.wrapped import ClassChain

HOSTILE = (
    "](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "<script>alert(1)</script>",
    "``` | `a` | b\\|c\\",
    "--- key: [1, {2}] # no *comment* & _more_",
    "'\" %s {{x}} https://evil.example www.evil.example",
)


def file(format: Any, **changes: Any) -> ExportedFile:
    values = {
        "name": FILES[format],
        "bytes": 2**20,
        "digest": "ab" * 20,
        "accuracy": 0.951,
        "agreement": 0.999,
        "max_difference": 3.2e-6,
        "latency_ms": 0.514,
        "images_per_second": 12_345.6,
        "batch_size": 64,
        "threads": 4,
        "runtime": "onnxruntime 1.32.0",
    }
    return ExportedFile(format, **values | changes)


def record(**changes: Any) -> Record:
    """The record of a student of five classes."""
    values: dict[str, Any] = {
        "pair": "big-small",
        "method": "kd",
        "seed": 2,
        "chosen": "The highest accuracy on the validation images among 12 runs.",
        "candidates": [],
        "dataset": "pets",
        "kind": "folder",
        "class_names": CLASSES,
        "num_images": {"train": 8000, "validation": 1000, "test": 1000},
        "image_shape": (3, 16, 12),
        "student": "small",
        "teacher": "big",
        "family": "cifar_resnet",
        "network_options": {"depth": 8, "widths": [4, 4, 4, 8]},
        "teacher_accuracy": 0.972,
        "algorithm": "kd",
        "options": {"temperature": 4.0},
        "metrics": {"accuracy": 0.9512, "nll": 0.2, "ece": 0.031, "parameters": 12345, "mine": 0.5},
        "accuracy_interval": (0.936, 0.963),
        "accuracy_per_class": [0.99, 0.71, None, 0.95, 0.96],
        "seeds": {"0": 0.94, "1": None, "2": 0.9512},
        "seeds_mean": 0.9456,
        "seeds_interval": (0.9, 0.991),
        "confidence": 0.95,
        "chance": 0.25,
        "diverged": False,
        "description": vars(described()),
        "files": [file("onnx"), file("int8", accuracy=0.94), file("safetensors")],
        "provenance": {"git_commit": "0123456789ab+", "versions": {"torch": "2.13.0"}},
    }
    return Record(**values | changes)


def tokens(text: str) -> list[Any]:
    """What a renderer of Markdown with tables makes of a card's text."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def shown(text: str) -> tuple[set[str], str]:
    """The types of all inline elements of a text in Markdown, and what is read in it."""
    inline = [child for token in tokens(text) for child in token.children or ()]
    return {child.type for child in inline}, " ".join(child.content for child in inline)


def blocks(text: str, language: str) -> list[str]:
    return [t.content for t in tokens(text) if t.type == "fence" and t.info == language]


# the header


def test_the_header_is_one_that_hugging_face_reads():
    read = ModelCard(model_card(record())).data.to_dict()
    assert read["library_name"] == "kdsteps"
    assert read["pipeline_tag"] == "image-classification"
    assert read["datasets"] == ["pets"]
    assert read["metrics"] == ["accuracy", "nll", "ece"]
    assert "license" not in read
    ((model),) = read["model-index"]
    assert model["name"] == "big-small/kd/2"
    ((result),) = model["results"]
    assert result["dataset"] == {"name": "pets", "type": "pets", "split": "test"}
    assert [entry["value"] for entry in result["metrics"]] == [0.9512, 0.2, 0.031]


def test_a_folder_for_timm_names_timm_as_its_library():
    with_timm = record(files=[file("onnx"), file("safetensors"), file("timm")])
    assert ModelCard(model_card(with_timm)).data.library_name == "timm"
    refused = record(files=[file("onnx"), ExportedFile("timm", None, "no network of timm")])
    assert ModelCard(model_card(refused)).data.library_name == "kdsteps"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_change_the_header(name: str):
    read = ModelCard(model_card(record(dataset=name, pair=name, method=name))).data.to_dict()
    assert "datasets" not in read
    assert read["model-index"][0]["name"] == f"{name}/{name}/2"
    assert read["model-index"][0]["results"][0]["dataset"]["name"] == name


# the text


def test_it_has_the_numbers_of_the_record():
    text = model_card(record())
    for found in (
        ("test accuracy | 95.1 %"),
        ("between 93.6 and 96.3 % (Wilson interval, 95 %)"),
        ("Over 2 seeds, the mean is 94.6 %, between 90.0 and 99.1 %"),
        ("from 94.0 % for the worst seed to 95.1 %"),
        ("With 1 more, the training diverged"),
        ("teacher | 97.2 %"),
        ("common class) | 25.0 %"),
        ("ECE | 3.1 %"),
        ("parameters | 12,345"),
        ("`mine` | 0.5"),
        ("1,000 test images, used once"),
        ("among 12 runs"),
        ("`0123456789ab` with changes that are not committed"),
        ("torch 2.13.0"),
        ("ab" * 20),
        ("`model.onnx` | 1.00 MiB | 95.1 % | 99.9 % | 3e-06 | 0.51 ms | 12,346 per s (4 cores)"),
    ):
        assert found in text, found


def test_the_weakest_classes_come_first_and_only_those_below_the_mean():
    section = model_card(record()).split("## Weakest classes")[1].split("##")[0]
    assert re.findall(r"\| `(.*?)` \| (.*?) %", section) == [("dog", "71.0"), ("Ünïcode", "95.0")]
    assert "250 test images on average" in section
    assert "Weakest" not in model_card(record(accuracy_per_class=None))


def test_warnings_and_a_single_seed_are_said():
    text = model_card(record(seeds={"2": 0.95}, seeds_interval=None), ["The *teacher* is bad."])
    assert "> **Warning:** The \\*teacher\\* is bad." in text.split("## Results")[0]
    assert "Only one seed finished" in text and "t interval" not in text
    wide = model_card(record(seeds_interval=(-0.7, 1.4)))
    assert "between 0.0 and 100.0 % (t interval" in wide


def test_a_student_at_chance_comes_with_a_warning():
    told = "> **Warning:** Its accuracy is at the level of chance."
    chance = record().chance
    assert told in model_card(record(metrics={"accuracy": chance + 0.001}))
    assert told not in model_card(record())
    assert told not in model_card(record(metrics={}))


def test_files_that_were_not_written_have_their_reason():
    refused = ExportedFile("timm", None, "the student is of the family cifar_resnet")
    slow = file("int8", notes=["It is slower than float32 on this CPU."])
    text = model_card(record(files=[file("onnx"), slow, refused]))
    assert "- `timm` was not written: the student is of the family cifar\\_resnet." in text
    assert "- `model.int8.onnx`: It is slower than float32" in text
    assert "create_model" not in text


def test_a_student_that_diverged_has_a_card_without_results():
    text = model_card(
        record(
            diverged=True,
            metrics={"accuracy": None, "parameters": 7},
            accuracy_interval=None,
            accuracy_per_class=None,
            files=[ExportedFile("onnx", None, "the training of the student diverged")],
        )
    )
    assert "model-index" not in ModelCard(text).data.to_dict()
    assert "The training diverged" in text
    assert "## Results" not in text and "## How to load" not in text


def test_a_teacher_is_named_only_where_there_is_one():
    assert "teacher" not in model_card(record(teacher=None, teacher_accuracy=None)).replace(
        "of the teacher may restrict", ""
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_sentences_cannot_become_markup(name: str):
    card = model_card(
        record(
            dataset=name,
            pair=name,
            method=name,
            student=name,
            teacher=name,
            family=name,
            kind=name,
            options={"layer": name},
            network_options={"name": name},
            class_names=(name, *CLASSES[1:]),
            accuracy_per_class=[0.1, 0.2, 0.3, 0.4, 0.5],
            chosen=name,
            files=[file("onnx", notes=[name]), ExportedFile("timm", None, name)],
            provenance={"git_commit": name, "versions": {name: name}},
        ),
        warnings=[name],
    )
    files = [file("onnx", notes=["x"]), ExportedFile("timm", None, "x")]
    plain = model_card(record(accuracy_per_class=[0.1, 0.2, 0.3, 0.4, 0.5], files=files))
    text, expected = ModelCard(card).text, ModelCard(plain).text
    types, read = shown(text)
    assert not types & {"html_inline", "link_open", "image"}
    assert not any(token.type == "html_block" for token in tokens(text))
    assert read.count(name) >= 8
    headings = [token for token in tokens(text) if token.type == "heading_open"]
    assert len(headings) == sum(token.type == "heading_open" for token in tokens(expected))
    cells = [token.type for token in tokens(text) if token.type in ("tr_open", "td_open")]
    assert cells == [t.type for t in tokens(expected) if t.type in ("tr_open", "td_open")]


@pytest.mark.parametrize("text", [*HOSTILE, "`", "a`b``c", " x ", "plain"])
def test_code_and_prose_are_read_as_they_were(text: str):
    assert shown(code(text))[1].strip() == text.strip()
    assert shown(prose(text))[1] == " ".join(text.split())
    assert shown(table(("head",), [(code(text),), (prose(text),)]))[1].count(text.strip()) == 2
    (fence,) = blocks(code_block(text, "python"), "python")
    assert fence.rstrip("\n") == text.rstrip()


# the code


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return exported()[1]


@pytest.fixture
def here(model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported folder, with a photo in it, as the current one."""
    random = np.random.default_rng(3)
    small = Image.fromarray(random.integers(0, 256, (6, 4, 3), dtype=np.uint8))
    small.resize((30, 40), Image.Resampling.BICUBIC).save(tmp_path / "image.jpg")
    monkeypatch.chdir(write(tmp_path, model))
    return tmp_path


def python_of(text: str, word: str) -> str:
    (block,) = (block for block in blocks(text, "python") if word in block)
    return block


def test_the_code_for_kdsteps_and_onnxruntime_predicts_the_same(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    text = model_card(record())
    for word in ("kdsteps.load", "InferenceSession"):
        block = python_of(text, word)
        assert len(block.splitlines()) <= 17
        exec(block, {})
    first, second = capsys.readouterr().out.split("\n")[:2]
    assert first == second == kdsteps.load(here).predict("image.jpg")[0].label


@pytest.mark.parametrize(
    "sizes",
    [
        {"store": (20, 14)},
        {"store": 16},
        {"store": (25, 17)},
        {"store": None, "crop": 17},
        {"store": None, "resize": 18, "crop": (16, 12)},
        {"store": None, "resize": (16, 12)},
        {"store": None, "resize": (20, 20), "crop": (16, 12)},
    ],
    ids=str,
)
def test_the_code_for_onnxruntime_resizes_as_the_description_says(
    sizes: dict[str, Any], here: Path, model: onnx.ModelProto
):
    description = described(**sizes)
    write(here, with_description(model, description.as_json()))
    found: dict[str, Any] = {}
    exec(python_of(model_card(record(description=vars(description))), "InferenceSession"), found)
    picture = decode(here / "image.jpg", description.form)
    assert isinstance(picture, Picture)
    _, height, width = picture.pixels.shape
    top, left = (height - 16) // 2, (width - 12) // 2
    expected = picture.pixels[:, top : top + 16, left : left + 12].transpose(1, 2, 0)
    assert np.abs(found["pixels"].astype(int) - expected).max() <= 2  # Pillow rounds differently
    assert expected.std() > 20


def test_the_code_for_weights_loads_them(here: Path):
    options = {"depth": 8, "widths": [4, 4, 4, 8]}
    torch.manual_seed(1)
    network = build_model(
        "cifar_resnet", num_classes=5, in_channels=3, image_size=(16, 12), **options
    )
    save_file(network.plain().state_dict(), here / FILES["safetensors"])
    block = python_of(model_card(record()), "safetensors")
    assert len(block.splitlines()) <= 13
    found: dict[str, Any] = {}
    exec(block, found)
    with torch.no_grad():
        expected = network.eval()(torch.full((1, 3, 16, 12), -2.0))  # (0 - 0.5) / 0.25
    assert torch.allclose(found["logits"], expected, atol=1e-5)


def test_the_code_for_weights_resizes_images_and_selects_classes_as_the_student_does(here: Path):
    options, outputs = {"depth": 8, "widths": [4, 4, 4, 8]}, ("other", *reversed(CLASSES))
    torch.manual_seed(1)
    inner = build_model(
        "cifar_resnet", num_classes=6, in_channels=3, image_size=(24, 20), **options
    )
    save_file(inner.plain().state_dict(), here / FILES["safetensors"])
    card = model_card(record(network_size=[24, 20], interpolation="bicubic", outputs=list(outputs)))
    some = "torch.zeros(1, 16, 12, 3, dtype=torch.uint8)"
    block = python_of(card, "safetensors")
    assert some in block
    found: dict[str, Any] = {}
    exec(block.replace(some, "torch.arange(576).byte().reshape(1, 16, 12, 3)"), found)
    student = InputChain(
        ClassChain(inner, outputs, CLASSES),
        InputContract((0.5,) * 3, (0.25,) * 3, (24, 20), "bicubic"),
    ).eval()
    pixels = torch.arange(576).byte().reshape(1, 16, 12, 3)
    with torch.no_grad():
        expected = student(pixels.permute(0, 3, 1, 2))
    assert torch.allclose(found["logits"], expected, atol=1e-5)


def test_the_code_for_timm_loads_the_folder(here: Path, capsys: pytest.CaptureFixture[str]):
    import timm

    torch.manual_seed(2)
    network = timm.create_model("resnet10t", num_classes=5)
    save_file(network.state_dict(), here / FILES["safetensors"], {"format": "pt"})
    config = {
        "architecture": "resnet10t",
        "num_classes": 5,
        "num_features": 512,
        "label_names": list(CLASSES),
        "pretrained_cfg": {
            "num_classes": 5,
            "input_size": [3, 32, 32],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    (here / FILES["timm"]).write_text(json.dumps(config))
    text = model_card(record(files=[file("safetensors"), file("timm")]))
    assert "Without `pretrained=True`, timm returns random weights" in text
    found: dict[str, Any] = {}
    exec(python_of(text, "create_model"), found)
    assert torch.equal(found["network"].conv1[0].weight, network.conv1[0].weight)
    assert capsys.readouterr().out.strip() in CLASSES


def test_a_gray_student_has_gray_code():
    gray = replace(record(), image_shape=(1, 16, 12), description=vars(described(channels=1)))
    block = python_of(model_card(gray), "InferenceSession")
    assert 'convert("L")' in block and "[None, :, :, None]" in block
