"""What users get wrong, by the real command: one sentence, status 2, results untouched."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _commands import DATA, NET, PLAN, TEACHER, command, files_in, run_of, write_study
from _disks import small_disk
from PIL import Image
from safetensors.torch import save_file

from kdsteps.cli.main import main
from kdsteps.files.checkpoints import read_checkpoint, write_checkpoint
from kdsteps.models import build_model

IMAGES = "results/prepare/digits/images.npy"
INDEX = "results/prepare/digits/index.parquet"
SUMMARY = "results/prepare/digits/summary.json"
WEIGHTS = "results/train/digits/big/teacher.safetensors"
PATIENT = {"epochs": 1, "batch_size": 256}

Refused = Callable[..., str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose dataset is prepared and whose teacher is trained."""
    folder = tmp_path_factory.mktemp("trained")
    write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare", *DATA]) == 0
        assert main(["train", *TEACHER]) == 0
        assert main(["build", *PLAN]) == 0
    logging.captureWarnings(False)
    for file in folder.rglob("*.provenance.json"):
        file.unlink()  # what readers say where nothing else notices damage
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "study")


@pytest.fixture
def refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Refused]:
    """Runs a command that ends with 2 and leaves all files as they were; gives its sentence."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)

    def run(*arguments: str) -> str:
        before = files_in(folder)
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert files_in(folder) == before
        return one_sentence(said.err, arguments[0])

    yield run
    logging.captureWarnings(False)  # as it was before `main`


def says(said: str, *words: str) -> bool:
    """Whether a sentence has the place, the value and what would be right, in this order."""
    return re.search(".*".join(map(re.escape, words)), said) is not None


def one_sentence(text: str, stage: str) -> str:
    """The sentence alone, without the command before it."""
    start = f"kdsteps {stage}: "
    assert text.startswith(start) and text.count("\n") == 1 and text.endswith("\n"), text
    return text.removeprefix(start).removesuffix("\n")


# params.yaml


def test_a_missing_study_is_said_by_the_real_process(tmp_path):
    done = command(tmp_path, "prepare", *DATA)
    assert done.returncode == 2
    assert done.stdout == ""
    said = one_sentence(done.stderr, "prepare")
    assert said.startswith("params.yaml: not found; ")
    assert "kdsteps init" in said
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "place", "found", "remedy"),
    [
        ("", "params.yaml: ", "empty", "datasets, models, pairs, methods, seeds"),
        ("- kd\n", "params.yaml: ", '["kd"]', "datasets, models, pairs, methods, seeds"),
        ("models: [a\n", "params.yaml: line 2 ", "the closing bracket", "missing"),
        ("models:\n\tbig: {}\n", "params.yaml: line 2 ", "a tab", "spaces"),
        ("seeds: [0]\nseeds: [1]\n", "params.yaml: line 2 ", "'seeds' appears twice", "delete one"),
        ("models: \x07\n", "params.yaml: line 1 ", "'\\x07'", "delete it"),
        ("report: {title: no}\n", "params.yaml: line 1 ", "'no'", "quotes"),
    ],
)
def test_what_is_no_study_is_said_with_its_line(refused, folder, text, place, found, remedy):
    (folder / "params.yaml").write_text(text)
    said = refused("prepare", *DATA)
    assert said.startswith(place)
    assert found in said
    assert remedy in said


def test_bytes_that_are_no_text_are_said(refused, folder):
    (folder / "params.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused("prepare", *DATA).startswith("params.yaml: is not valid UTF-8; ")


TYPO = {"dataset": "digits", "teacher": "bigg", "student": "small"}


@pytest.mark.parametrize(
    ("sections", "place", "found", "remedy"),
    [
        ({"distill": {}}, "distill", "an unknown key", "'distil'"),
        ({"distil": {"epoch": 3}}, "distil.epoch", "an unknown key", "'epochs'"),
        ({"distil": {"epochs": "many"}}, "distil.epochs", "'many'", "a whole number"),
        ({"train": {"epochs": -1}}, "train.epochs", "-1", "at least 0"),
        ({"methods": {"kd": {"temperature": 0}}}, "methods.kd.temperature", "0", "above 0"),
        ({"pairs": {"pair": TYPO}}, "pairs.pair.teacher", "'bigg'", "'big'"),
        ({"methods": {"kdd": {}}}, "methods.kdd", "'kdd'", "'kd'"),
        ({"seeds": []}, "seeds", "[]", "[0, 1, 2]"),
        ({"seeds": [0, 1, 0]}, "seeds", "0 twice", "each one once"),
    ],
)
def test_a_wrong_value_is_said_with_what_would_be_right(
    refused, folder, sections, place, found, remedy
):
    write_study(folder, **sections)
    said = refused("prepare", *DATA)
    assert said.startswith(f"params.yaml: {place}")
    assert found in said
    assert remedy in said


def test_the_real_process_says_the_same_and_ends_with_2(folder):
    write_study(folder, distil={"epoch": 3})
    before = files_in(folder)
    done = command(folder, "distil", *run_of("fitnet"))
    assert (done.returncode, done.stdout) == (2, "")
    assert says(one_sentence(done.stderr, "distil"), "params.yaml: distil.epoch", "'epochs'")
    assert files_in(folder) == before


# networks and checkpoints


def header_and_network(folder: Path, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    _, header = read_checkpoint(folder / WEIGHTS)
    options = {key: value for key, value in NET.items() if key != "family"}
    network = build_model(
        "cifar_resnet", num_classes=classes, in_channels=1, image_size=8, **options
    )
    return header, network.plain().state_dict()


def test_a_teacher_of_other_classes_is_refused(refused, folder):
    header, weights = header_and_network(folder, classes=100)
    write_checkpoint(folder / WEIGHTS, weights, header | {"num_classes": 100})
    said = refused("distil", *run_of("fitnet"))
    assert says(said, f"{WEIGHTS}: ", "100 classes", "10 classes", "train it on this data set")


def test_a_teacher_with_no_epochs_says_that_its_classifier_is_new(folder, monkeypatch):
    _, weights = header_and_network(folder, classes=100)
    torch.save(weights, folder / "theirs.pt")
    entry = NET | {"checkpoint": "theirs.pt", "train": {"epochs": 0}}
    write_study(folder, models={"big": entry, "small": NET})
    monkeypatch.chdir(folder)
    assert main(["train", *TEACHER]) == 0
    assert read_checkpoint(folder / WEIGHTS)[1]["untrained"] == ["fc.weight", "fc.bias"]


def test_a_teacher_with_no_epochs_is_taken_as_its_checkpoint_has_it(folder, monkeypatch):
    _, weights = header_and_network(folder, classes=10)
    torch.save({"model": weights}, folder / "theirs.pth")
    entry = NET | {"checkpoint": "theirs.pth", "train": {"epochs": 0}}
    write_study(folder, models={"big": entry, "small": NET})
    monkeypatch.chdir(folder)
    assert main(["train", *TEACHER]) == 0
    taken, _ = read_checkpoint(folder / WEIGHTS)
    assert all(torch.equal(taken[name], weight) for name, weight in weights.items())


def test_a_cut_at_a_layer_that_is_not_there_is_refused_with_the_nearest(refused, folder):
    write_study(folder, build={"cuts": [["layer1.0", "layer2.1"]]})
    said = refused("build", *PLAN)
    assert says(said, "build.cuts: ", "teacher", "'layer2.1'", "'layer2.0'")


def test_a_hint_from_a_layer_that_is_not_there_is_refused_with_the_nearest(refused, folder):
    write_study(folder, methods={"fitnet": {"student_layer": "layr1.0"}})
    said = refused("distil", *run_of("fitnet"))
    assert says(said, "methods.fitnet: ", "student", "'layr1.0'", "'layer1.0'")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def scrambled(file: Path) -> None:
    file.write_bytes(b"no such format" * 1000)


def with_a_flipped_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(bytes(content))


def from_elsewhere(file: Path) -> None:
    save_file({"weight": torch.zeros(3)}, file)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncated, "is not a complete safetensors file"),
        (emptied, "is not a complete safetensors file"),
        (scrambled, "is not a complete safetensors file"),
        (with_a_flipped_bit, "is damaged: its weights do not match their digest"),
        (from_elsewhere, "has no kdsteps header; a checkpoint from elsewhere goes under"),
    ],
)
def test_a_checkpoint_that_is_not_whole_and_ours_is_refused(refused, folder, spoil, sentence):
    spoil(folder / WEIGHTS)
    assert refused("distil", *run_of("fitnet")).startswith(f"{WEIGHTS}: {sentence}")


@pytest.mark.parametrize("field", ["model", "num_classes", "class_names", "image_shape"])
@pytest.mark.parametrize("change", ["missing", "of another type"])
def test_a_checkpoint_whose_header_lacks_a_field_is_refused(refused, folder, field, change):
    weights, header = read_checkpoint(folder / WEIGHTS)
    if change == "missing":
        del header[field]
    else:
        header[field] = "text"
    write_checkpoint(folder / WEIGHTS, weights, header)
    said = refused("distil", *run_of("fitnet"))
    assert says(said, f"{WEIGHTS}: ", f"header: {field}", "run again")


def test_a_checkpoint_of_kdsteps_is_as_good_as_one_from_elsewhere(folder, monkeypatch):
    (folder / WEIGHTS).rename(folder / "ours.safetensors")
    entry = NET | {"checkpoint": "ours.safetensors", "train": {"epochs": 0}}
    write_study(folder, models={"big": entry, "small": NET})
    monkeypatch.chdir(folder)
    assert main(["train", *TEACHER]) == 0
    ours, _ = read_checkpoint(folder / "ours.safetensors")
    taken, _ = read_checkpoint(folder / WEIGHTS)
    assert all(torch.equal(taken[name], weight) for name, weight in ours.items())


class Bomb:
    """Leaves a file behind if anybody unpickles it carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went off")))
    assert (tmp_path / "went off").exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_code_in_a_foreign_checkpoint_is_never_run(refused, folder, tmp_path, form):
    bomb = {"state_dict": {"weight": torch.zeros(2)}, "args": Bomb(tmp_path / "went off")}
    if form == "torch":
        torch.save(bomb, folder / "theirs.pt")
    else:
        (folder / "theirs.pt").write_bytes(pickle.dumps(bomb))
    write_study(folder, models={"big": NET | {"checkpoint": "theirs.pt"}, "small": NET})
    assert refused("train", *TEACHER).startswith("checkpoint theirs.pt: ")
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize("file", [WEIGHTS, IMAGES, INDEX, SUMMARY])
def test_code_in_place_of_any_result_is_never_run(refused, folder, tmp_path, file):
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    assert refused("distil", *run_of("fitnet")).startswith(f"{file}: is not a complete ")
    assert not (tmp_path / "went off").exists()


def test_objects_in_an_array_file_are_never_unpickled(refused, folder, tmp_path):
    np.save(folder / IMAGES, np.array([Bomb(tmp_path / "went off")]), allow_pickle=True)
    shutil.rmtree(folder / ".jobcache", ignore_errors=True)  # which has the result for its digest
    assert refused("train", *TEACHER).startswith(f"{IMAGES}: is not a complete array file")
    assert not (tmp_path / "went off").exists()


# tables and images


def test_a_result_without_a_column_is_refused(refused, folder):
    table = pq.read_table(folder / INDEX)
    pq.write_table(table.drop_columns(["label"]), folder / INDEX)
    said = refused("train", *TEACHER)
    assert says(said, f"{INDEX}: ", "'label'", "image, split, source, hash", "run the stage")


def test_a_result_with_a_column_of_another_type_is_refused(refused, folder):
    table = pq.read_table(folder / INDEX)
    labels = pa.array([str(label) for label in table["label"].to_pylist()])
    pq.write_table(table.set_column(1, "label", labels), folder / INDEX)
    said = refused("train", *TEACHER)
    assert says(said, f"{INDEX}: ", "'label'", "string", "int32", "run the stage")


def write_images(file: Path, labels: list[int], **columns: Any) -> None:
    """Grey images of noise with labels, as a Parquet file whose metadata names two classes."""
    contents = []
    for seed in range(len(labels)):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        picture = file.with_suffix(".png")
        Image.fromarray(pixels).save(picture)
        contents.append(picture.read_bytes())
        picture.unlink()
    given = {"image": contents, "label": labels} | columns
    table = pa.table({name: values for name, values in given.items() if values is not None})
    pq.write_table(table.replace_schema_metadata({"label_names": '["cat", "dog"]'}), file)


@pytest.mark.parametrize(
    ("labels", "columns", "words"),
    [
        (
            [0, 1] * 5,
            {"label": None, "lable": [0] * 10},
            ("theirs.parquet: ", "'label'", "'lable'"),
        ),
        (
            [0, 1] * 5 + [2, -1],
            {},
            ("theirs.parquet row 10: ", "label 2", "from 0 to 1", "2 images"),
        ),
        (
            [0] * 10,
            {},
            ("class 'dog'", "no training images", "add some"),
        ),
    ],
)
def test_a_data_set_that_cannot_be_is_refused(refused, folder, labels, columns, words):
    write_images(folder / "theirs.parquet", labels, **columns)
    write_study(folder, datasets={"digits": {"kind": "parquet", "train": "theirs.parquet"}})
    assert says(refused("prepare", *DATA), *words)


def test_a_stored_label_out_of_range_is_refused(refused, folder):
    table = pq.read_table(folder / INDEX)
    labels = table["label"].to_numpy().copy()
    labels[3] = 12
    pq.write_table(table.set_column(1, "label", pa.array(labels)), folder / INDEX)
    said = refused("train", *TEACHER)
    assert says(said, f"{INDEX}: row 3", "label 12", "from 0 to 9", "`kdsteps prepare`")


def test_a_class_folder_without_images_is_refused(refused, folder):
    write_pictures(folder / "pets")
    (folder / "pets/bird").mkdir()
    write_study(folder, datasets={"digits": {"kind": "folder", "path": "pets"}})
    assert says(refused("prepare", *DATA), "pets/bird: ", "no images", "move the folder away")


def test_a_picture_with_nan_is_refused_by_name(refused, folder):
    write_pictures(folder / "pets")
    pixels = np.full((8, 8), 0.5, dtype=np.float32)
    pixels[2, 3] = np.nan
    Image.fromarray(pixels).save(folder / "pets/cat/9.tiff")
    write_study(folder, datasets={"digits": {"kind": "folder", "path": "pets"}})
    said = refused("prepare", *DATA)
    assert says(said, "1 of 7 images", "cat/9.tiff: ", "NaN", "from 0 to 1", "prepare.broken")


def write_pictures(root: Path) -> None:
    for number, name in enumerate(["cat", "dog"] * 3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name / f"{number}.png")


# losses, disks, devices


def test_a_loss_that_is_not_finite_is_named_with_its_epoch_and_step(refused, folder):
    write_study(folder, train=PATIENT | {"epochs": 3, "learning_rate": 1e30})
    said = refused("train", *TEACHER)
    assert says(said, "the teacher diverged", "'labels'", "epoch 1, step", "learning_rate")


@pytest.fixture
def disk_of_64_kib(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def onto(disk: Path, folder: Path, stage: str) -> None:
    """Let the results of a stage lie on another disk."""
    shutil.rmtree(folder / "results" / stage, ignore_errors=True)
    (folder / "results" / stage).symlink_to(disk)


def fill(disk: Path, leave: int = 0) -> None:
    """Fill a small disk up but for `leave` KiB."""
    (disk / "ballast").write_bytes(bytes((64 - leave) * 1024))


@pytest.mark.parametrize(
    ("stage", "names", "first"),
    [
        ("prepare", DATA, IMAGES),
        ("train", TEACHER, WEIGHTS),
        ("distil", run_of("labels"), "results/distil/pair/labels/0/student.safetensors"),
    ],
)
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    refused, folder, disk_of_64_kib, stage, names, first
):
    shutil.rmtree(folder / ".jobcache")
    onto(disk_of_64_kib, folder, stage)
    fill(disk_of_64_kib)
    assert refused(stage, *names).startswith(f"{first}: the disk is full; free some space")
    assert set(files_in(disk_of_64_kib)) == {"ballast"}


def test_a_disk_that_holds_the_first_file_alone_gets_none(refused, folder, disk_of_64_kib):
    onto(disk_of_64_kib, folder, "distil")
    fill(disk_of_64_kib, leave=8)  # the student takes two pages of the disk
    said = refused("distil", *run_of("labels"))
    assert said.startswith("results/distil/pair/labels/0/history.parquet: the disk is full;")
    assert set(files_in(disk_of_64_kib)) == {"ballast"}


def test_a_remembered_result_that_finds_the_disk_full_is_said(refused, folder, disk_of_64_kib):
    onto(disk_of_64_kib, folder, "train")
    fill(disk_of_64_kib)
    assert refused("train", *TEACHER).startswith(f"{WEIGHTS}: the disk is full; free some space")
    assert set(files_in(disk_of_64_kib)) == {"ballast"}


def test_a_disk_that_fills_up_at_the_last_moment_is_said(refused, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert refused("prepare", *DATA).startswith("results/prepare/digits/")


def test_a_read_only_disk_is_said_before_the_training(refused, folder, disk_of_64_kib):
    onto(disk_of_64_kib, folder, "distil")
    subprocess.run(["mount", "-o", "remount,ro", str(disk_of_64_kib)], check=True)
    student = "results/distil/pair/labels/0/student.safetensors"
    said = refused("distil", *run_of("labels"))
    assert says(said, f"{student}: ", f"{folder}/results/distil writable")


@pytest.mark.skipif(os.geteuid() == 0, reason="whoever may do everything may write everywhere")
def test_a_folder_that_may_not_be_written_is_said_before_the_training(refused, folder):
    (folder / "results").chmod(0o555)
    said = refused("distil", *run_of("labels"))
    (folder / "results").chmod(0o755)
    assert says(said, "cannot be written", f"{folder}/results writable")


def test_a_file_where_a_folder_should_be_is_said_before_the_training(refused, folder, monkeypatch):
    monkeypatch.setattr("kdsteps.stages.distil.run", lambda job: pytest.fail("training began"))
    (folder / "results/distil").write_text("notes")
    said = refused("distil", *run_of("labels"))
    student = "results/distil/pair/labels/0/student.safetensors"
    assert says(said, f"{student}: ", "file", "its folder results/distil; move it away")


def test_a_folder_where_a_file_should_be_is_said_before_the_training(refused, folder):
    (folder / "results/distil/pair/labels/0/student.safetensors").mkdir(parents=True)
    student = "results/distil/pair/labels/0/student.safetensors"
    assert says(refused("distil", *run_of("labels")), f"{student}: ", "folder", "move it away")


def test_a_job_is_not_run_on_the_cpu_where_its_gpu_is_hidden(refused, folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = refused("evaluate", *TEACHER, "--gpus", "1")
    assert says(said, "--gpus: CUDA_VISIBLE_DEVICES is ''", "`--gpus 0`")
    assert not (folder / "results/evaluate/teachers/digits/big/measures.json").exists()


def test_more_layers_than_the_teacher_has_are_not_chosen_from(refused, folder):
    write_study(folder, methods={"feature_only": {}}, score={"num_layers": 50})
    assert main(["cache", *TEACHER]) == 0
    assert says(refused("score", *TEACHER), "score.num_layers", "50", "at most 5")


# what is not the user's mistake


def test_a_mistake_of_ours_keeps_its_traceback(folder, monkeypatch):
    def broken(job: Any) -> None:
        raise ValueError("a shape that cannot be")

    monkeypatch.chdir(folder)
    monkeypatch.setattr("kdsteps.stages.prepare.run", broken)
    with pytest.raises(ValueError, match="a shape that cannot be"):
        main(["prepare", *DATA])
    logging.captureWarnings(False)


def test_a_result_that_was_not_made_yet_is_named_with_what_makes_it(refused, folder):
    (folder / WEIGHTS).unlink()
    said = refused("distil", *run_of("fitnet"))
    assert says(said, f"{WEIGHTS}: not found", "'teacher'", "snakemake")
