"""An exported student outside the study: the same decisions, and a sentence for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from _exports import (
    CLASSES,
    Network,
    as_file,
    described,
    exported,
    with_description,
    write,
)
from _pictures import as_bytes, color, prepare
from _study import REPOSITORY
from PIL import Image

import kdsteps
from kdsteps.cli.main import main
from kdsteps.cli.predict import shown
from kdsteps.data.source import Broken
from kdsteps.errors import KdstepsError
from kdsteps.export.description import Description
from kdsteps.export.record import FILES
from kdsteps.export.seal import is_intact, is_sealed, sealed
from kdsteps.files.columns import INDEX
from kdsteps.files.tables import read_table

FILE = FILES["onnx"]


@pytest.fixture(scope="module")
def made() -> tuple[Network, onnx.ModelProto]:
    return exported()


@pytest.fixture(scope="module")
def model(made: tuple[Network, onnx.ModelProto]) -> onnx.ModelProto:
    return made[1]


@pytest.fixture(scope="module")
def folder(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("export") / "student", model)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, one of them not readable, a link to one, and a text."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    color(1, 30, 40).save(root / "b.png")
    color(2, 16, 12).save(root / "a.JPG")
    color(3, 50, 20).convert("L").save(root / "more" / "猫 \x1b[31m.png")
    (root / "broken.png").write_bytes(as_bytes(color(4))[:50])
    (root / "more" / "link.png").symlink_to("../b.png")
    (root / "notes.txt").write_text("no image")
    return root


def refusal(path: Path, **options: Any) -> str:
    """The sentence with which a student is refused."""
    with pytest.raises(KdstepsError) as caught:
        kdsteps.load(path, **options)(np.zeros((16, 12, 3), np.uint8))
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


def refusal_of(content: bytes, tmp_path: Path) -> str:
    file = tmp_path / "student.onnx"
    file.write_bytes(content)
    return refusal(file)


# what it predicts


def test_logits_of_pixels_are_those_of_torch(made: tuple[Network, onnx.ModelProto], folder: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 16, 12, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = made[0](torch.from_numpy(pixels)).numpy()
    found = kdsteps.load(folder)(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def hard_files(root: Path) -> None:
    """A data set of two classes with all kinds of image files, small and large."""
    random = np.random.default_rng(7)
    exif = Image.Exif()
    for number in range(24):
        height, width = random.integers(20, 200, 2).tolist()
        image, path = color(number, height, width), root / "ab"[number % 2] / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        exif[0x0112] = number % 8 + 1
        deep = random.integers(0, 65536, (height, width), dtype=np.uint16)
        clear = image.convert("RGBA")
        clear.putalpha(image.convert("L"))
        for chosen, suffix, options in (
            (image.resize((width * 3, height * 3)), ".jpg", {"exif": exif.tobytes()}),
            (image.quantize(16), ".gif", {}),
            (Image.fromarray(deep), ".png", {}),
            (clear, ".webp", {"lossless": True}),
            (image, ".tiff", {}),
            (image.convert("CMYK"), ".jpeg", {}),
        )[number % 6 :][:1]:
            chosen.save(path.with_suffix(suffix), **options)


@pytest.mark.parametrize(
    "sizes",
    [{"store": [18, 15], "image_size": [16, 12]}, {"resize": 19, "crop": [16, 12]}],
    ids=["stored larger", "resized and cropped"],
)
def test_image_files_are_decided_as_the_images_that_prepare_stored(
    sizes: dict[str, Any], made: tuple[Network, onnx.ModelProto], tmp_path: Path
):
    hard_files(tmp_path / "data")
    files = prepare(tmp_path / "out", "folder", {"path": str(tmp_path / "data"), **sizes})
    stored = np.load(files["images"])
    top, left = (stored.shape[2] - 16) // 2, (stored.shape[3] - 12) // 2
    seen = stored[:, :, top : top + 16, left : left + 12].transpose(0, 2, 3, 1)
    names = read_table(files["index"], INDEX)["source"].to_pylist()
    changes = {
        name: value if isinstance(value, int) else (*value,) for name, value in sizes.items()
    }
    description = replace(described(store=None), **changes)
    network, model = made
    student = kdsteps.load(
        write(tmp_path / "export", with_description(model, description.as_json()))
    )
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.ascontiguousarray(seen))).numpy()
    paths = [tmp_path / "data" / name for name in names]
    assert len(paths) == 24 and all(path.is_file() for path in paths)
    found = student(paths)
    plain = with_description(model, described(store=None).as_json())  # takes pixels as they are
    np.testing.assert_array_equal(found, kdsteps.load(write(tmp_path / "plain", plain))(seen))
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("threads", [0, -1])
def test_cores_that_cannot_be_are_refused(folder: Path, threads: int):
    with pytest.raises(KdstepsError, match=f"threads is {threads}; it should be 1 or more"):
        kdsteps.load(folder, threads=threads)


def test_paths_images_and_arrays_can_be_mixed(folder: Path, tmp_path: Path):
    image = color(1, 30, 40)
    image.save(tmp_path / "a.png")
    student = kdsteps.load(folder, threads=1)
    found = student([tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)])
    assert found.shape == (4, 5) and (found == found[0]).all()
    assert (student(image)[0] == found[0]).all()
    gray = np.asarray(image.convert("L"))
    assert (student(gray) == student(gray[:, :, None])).all()
    assert student([image, np.stack([np.asarray(image)] * 2)]).shape == (3, 5)
    assert student([]).shape == (0, 5)


def test_an_image_of_pillow_is_left_open_and_unchanged(folder: Path, tmp_path: Path):
    color(1, 300, 400).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        kdsteps.load(folder)(image)
        assert image.size == (400, 300)
        assert image.getpixel((399, 299)) is not None


def test_predictions_have_names_and_probabilities(folder: Path):
    student = kdsteps.load(str(folder / FILE))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
    logits = student(pixels).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = student.predict(pixels, top=9)
    assert student.classes == CLASSES and student.description.run == "pair/kd/0"
    for row, prediction in zip(expected, predictions, strict=True):
        assert prediction.label == CLASSES[row.argmax()] == prediction.top[0][0]
        assert prediction.probability == pytest.approx(row.max())
        assert [value for _, value in prediction.top] == pytest.approx(sorted(row, reverse=True))


def test_of_equal_logits_the_first_class_counts_as_in_evaluation(folder: Path):
    prediction = kdsteps.load(folder).prediction(np.array([1, 3, 3, 0, 3], np.float32), top=2)
    assert [name for name, _ in prediction.top] == [CLASSES[1], CLASSES[2]]


def test_a_network_without_resizing_refuses_other_sizes(model: onnx.ModelProto, tmp_path: Path):
    text = described(store=None).as_json()
    student = kdsteps.load(write(tmp_path, with_description(model, text)))
    assert student(np.zeros((16, 12, 3), np.uint8)).shape == (1, 5)
    with pytest.raises(KdstepsError, match=r"image 0: is 17 x 12, .* takes 16 x 12"):
        student(np.zeros((17, 12, 3), np.uint8))


def test_images_that_are_none_are_named(folder: Path, images: Path):
    student = kdsteps.load(folder)
    with pytest.raises(KdstepsError, match=r"broken\.png: .*truncated"):
        student([images / "b.png", images / "broken.png"])
    with pytest.raises(KdstepsError, match="gone: does not exist"):
        student("gone")
    for wrong, found in (
        (np.zeros((16, 12, 3)), "float64"),
        (np.zeros((2, 16, 12, 2), np.uint8), r"image 0 has the shape \(16, 12, 2\)"),
        (np.zeros((0, 12, 3), np.uint8), r"\(0, 12, 3\)"),
        (7, "int"),
    ):
        with pytest.raises(ValueError, match=found):
            student([wrong])  # type: ignore[list-item]


def test_the_number_of_images_at_a_time_changes_only_rounding(folder: Path):
    student = kdsteps.load(folder)
    contents = [as_bytes(color(seed, 20, 20)) for seed in range(7)]
    contents[2] = b"no image"
    one, all_ = (list(student.logits_of(contents, size)) for size in (1, 7))
    assert [isinstance(logits, Broken) for logits in one] == [n == 2 for n in range(7)]
    assert isinstance(all_[2], Broken)
    for ours, theirs in zip(one[3:], all_[3:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


# the command


def test_an_empty_folder_is_named_and_the_others_are_classified(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    color(1, 30, 40).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "empty"), str(tmp_path / "a.png")]
    assert main(["predict", str(folder), *given]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(given[1])
    assert f"{given[0]}: has no images; files should end in" in said.err
    assert "1 of 2 images or folders could not be classified" in said.err
    assert main(["predict", str(folder), given[0]]) == 2
    assert "has no images; files should end in" in capsys.readouterr().err


def test_each_image_has_a_line(folder: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    (images / "broken.png").unlink()
    assert main(["predict", str(folder), str(images), "--top", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = [f"{images}/a.JPG", f"{images}/b.png", f"{images}/more/猫 \\x1b[31m.png"]
    assert [line[0] for line in lines] == expected
    for _, first, high, second, low in lines:
        assert {first, second} < set(CLASSES)
        assert 1 >= float(high) >= float(low)


def test_a_folder_may_be_a_link_and_the_int8_file_is_chosen_by_an_option(
    folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (images / "broken.png").unlink()
    (tmp_path / "link").symlink_to(images)
    (tmp_path / FILES["int8"]).write_bytes((folder / FILE).read_bytes())
    assert main(["predict", str(tmp_path), f"{tmp_path}/link", "--int8"]) == 0
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:2] == [f"{tmp_path}/link/a.JPG", f"{tmp_path}/link/b.png"] and len(names) == 3


def test_images_that_cannot_be_read_are_named_and_the_others_predicted(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["predict", str(folder), str(images), "gone.png", "--json", "--batch-size", "2"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    found = [json.loads(line) for line in output.out.splitlines()]
    expected = [f"{images}/a.JPG", f"{images}/b.png", f"{images}/more/猫 \x1b[31m.png"]
    assert [entry["image"] for entry in found] == expected
    assert found[0]["class"] == found[0]["top"][0]["class"]
    assert 0 < found[0]["probability"] == found[0]["top"][0]["probability"] <= 1
    broken, gone, end = output.err.splitlines()
    assert broken.startswith(f"{images}/broken.png: ")
    assert gone == "gone.png: does not exist"
    assert end.startswith("kdsteps predict: 2 of 5 images")


def test_a_terminal_has_a_table(
    folder: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    assert main(["predict", str(folder), str(images)]) == 2
    a, b, c = capsys.readouterr().out.splitlines()
    name = shown(f"{images}/more/猫 \x1b[31m.png")
    assert a.index("0.") == b.index("0.") == c.index("0.") + 1  # 猫 is two columns wide
    assert c.startswith(f"{name}  ") and a.startswith(f"{images}/a.JPG   ")


def test_a_folder_without_images_and_wrong_options_are_mistakes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["predict", str(folder), str(tmp_path)]) == 2
    assert f"{tmp_path}: has no images" in capsys.readouterr().err
    for arguments, found in (
        (["--top", "0"], "--top: is '0'"),
        (["--threads", "x"], "--threads: is 'x'"),
        (["--batch-size", "-1"], "--batch-size"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["predict", str(folder), "a.png", *arguments])
        assert caught.value.code == 2
        assert found in capsys.readouterr().err


ONLY = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, *sys.argv[1].split(",")}:
            raise ModuleNotFoundError(f"no module {name}", name=name)

sys.meta_path.insert(0, Refused())
from kdsteps.cli.main import main
if sys.argv[2] == "python":
    import kdsteps
    sys.exit(kdsteps.load(sys.argv[3]).predict(sys.argv[4])[0].label == "")
sys.exit(main(sys.argv[2:]))
"""


def only_with(allowed: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command where no other packages are installed."""
    return subprocess.run(
        [sys.executable, "-c", ONLY, allowed, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_needs_onnxruntime_numpy_and_pillow_alone(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    own = "kdsteps,onnxruntime,numpy,PIL"
    done = only_with(f"{own},flatbuffers,google,packaging", "predict", folder, images / "b.png")
    assert main(["predict", str(folder), str(images / "b.png")]) == 0
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out), done.stderr
    done = only_with(f"{own},flatbuffers,google,packaging", "python", folder, images / "b.png")
    assert done.returncode == 0, done.stderr
    done = only_with("kdsteps,numpy,PIL", "predict", folder, images / "b.png")
    assert done.returncode == 2 and "pip install onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr
    done = only_with("kdsteps,numpy,PIL", "stale")
    assert done.returncode == 2 and "pip install kdsteps" in done.stderr


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = {*sys.modules}; import kdsteps\n"
        "new = {name.split('.')[0] for name in {*sys.modules} - before}\n"
        "assert new <= {'kdsteps', *sys.stdlib_module_names}, new\n"
        "assert not any(name.startswith('kdsteps.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


# damaged and hostile files


def test_a_flipped_bit_is_found_anywhere(model: onnx.ModelProto, tmp_path: Path):
    content, random = as_file(model), np.random.default_rng(0)
    assert is_intact(content)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        assert "damaged" in refusal_of(bytes(damaged), tmp_path)


def test_a_truncated_or_longer_file_is_found(model: onnx.ModelProto, tmp_path: Path):
    content = as_file(model)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        assert "damaged" in refusal_of(content[:length], tmp_path)
    assert "damaged" in refusal_of(content + b"\0", tmp_path)


def test_a_file_that_was_sealed_after_it_was_damaged_has_a_sentence_or_works(
    model: onnx.ModelProto, tmp_path: Path
):
    plain, random = model.SerializeToString(), np.random.default_rng(0)
    file, sentences = tmp_path / "student.onnx", []
    for _ in range(150):
        damaged = bytearray(plain)
        damaged[random.integers(len(plain))] ^= 1 << random.integers(8)
        try:
            file.write_bytes(sealed(bytes(damaged)))
        except ValueError:
            continue  # the entry for the digest itself
        try:
            assert kdsteps.load(file)(np.zeros((16, 12, 3), np.uint8)).shape == (1, 5)
        except KdstepsError as error:
            sentences.append(str(error))
    assert sentences and not any("\n" in sentence for sentence in sentences)


def test_other_files_are_refused(model: onnx.ModelProto, tmp_path: Path):
    foreign = with_description(model, None)
    del foreign.metadata_props[:]
    assert "kdsteps export" in refusal_of(foreign.SerializeToString(), tmp_path)
    assert "kdsteps export" in refusal_of(b"just some text\n" * 100, tmp_path)
    assert "description is damaged" in refusal_of(as_file(with_description(model, None)), tmp_path)
    (tmp_path / "empty").mkdir()
    assert f"has no {FILE}" in refusal(tmp_path / "empty")
    assert f"has no {FILES['int8']}" in refusal(tmp_path / "empty", int8=True)
    assert "does not exist" in refusal(tmp_path / "gone")
    assert "is a file" in refusal(tmp_path / "student.onnx", int8=True)
    assert "not a regular file" in refusal(Path("/dev/null"))


def test_a_description_is_needed_to_seal_a_file():
    assert not is_sealed(b"text") and not is_intact(b"text")
    with pytest.raises(ValueError, match=r"kdsteps\.digest"):
        sealed(b"text")


def test_a_network_that_is_not_the_one_described_is_refused(model: onnx.ModelProto, tmp_path: Path):
    def refused(**changes: Any) -> str:
        text = described(**changes).as_json()
        return refusal_of(as_file(with_description(model, text)), tmp_path)

    assert "[None, 5]" in refused(classes=CLASSES[:4])
    assert "[None, 16, 12, 3]" in refused(channels=1)
    assert "[None, 16, 12, 3]" in refused(image_size=(12, 16), store=(20, 20))
    other = onnx.ModelProto()
    other.CopyFrom(model)
    name = other.graph.input[0].name
    other.graph.input[0].name = "pixels"
    for node in other.graph.node:
        node.input[:] = ["pixels" if each == name else each for each in node.input]
    assert "'pixels'" in refusal_of(as_file(other), tmp_path)


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused(
    location: str, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    weights = next(each for each in outside.graph.initializer if len(each.raw_data) > 100)
    (tmp_path / "weights.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(10**15)}.items():
        weights.external_data.add(key=key, value=value)
    (tmp_path / "inside").mkdir()
    for here in (tmp_path, tmp_path / "inside"):
        monkeypatch.chdir(here)
        assert "onnxruntime cannot load it" in refusal_of(as_file(outside), tmp_path)


def test_a_description_survives_json():
    for description in (described(), described(resize=8, store=None), described(channels=1)):
        assert Description.from_json(description.as_json(), "here") == description


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format": 2}, "format 2"),
        ({"run": ""}, "run ''"),
        ({"network": "a\x1b[31m"}, r"network 'a\x1b[31m'"),
        ({"classes": ["cat"]}, "classes"),
        ({"classes": ["cat", "cat"]}, "classes"),
        ({"classes": ["cat", 7]}, "classes"),
        ({"classes": "ab"}, "classes 'ab'"),
        ({"channels": True}, "channels True"),
        ({"channels": 4}, "channels 4"),
        ({"image_size": [10**9, 10**9]}, "image_size [1000000000"),
        ({"image_size": [0, 8]}, "image_size [0, 8]"),
        ({"image_size": 8}, "image_size 8"),
        ({"store": 10**9}, "store 1000000000"),
        ({"crop": [8, 8, 8]}, "crop [8, 8, 8]"),
        ({"resize": 2.5}, "resize 2.5"),
        ({"store": 8}, "images of 8 x 8 for a network of 16 x 12"),
        ({"resize": [16, 11], "store": None}, "images of 16 x 11"),
        ({"mean": [0.5, 0.5]}, "2 values of mean for 3 channels"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"mean": [10**400] * 3}, "mean"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"provenance": []}, "provenance []"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_description_has_a_sentence(change: dict[str, Any], found: str):
    content = json.loads(described().as_json()) | change
    with pytest.raises(KdstepsError) as caught:
        Description.from_json(json.dumps(content), "student.onnx")
    sentence = str(caught.value)
    assert sentence.startswith("student.onnx: ") and found in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"format": 1', "[" * 100_000])
def test_a_damaged_description_has_a_sentence(text: str):
    with pytest.raises(KdstepsError, match=r"^student\.onnx: its description .*; export"):
        Description.from_json(text, "student.onnx")
