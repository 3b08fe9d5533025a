"""`kdsteps init`: what it sees, what it proposes, what it writes, and what it refuses."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from _pictures import as_bytes, color, write_folder
from _study import REPOSITORY, clean_environment
from PIL import Image

from kdsteps.cli import main as cli
from kdsteps.cli.init import _pipeline
from kdsteps.cli.networks import Network, pretrained_network
from kdsteps.cli.proposal import STUDENT, TEACHER, proposed_study, training_length
from kdsteps.cli.resolve import check_dependencies
from kdsteps.data.overview import Overview, look_at
from kdsteps.errors import KdstepsError
from kdsteps.files.checkpoints import write_checkpoint
from kdsteps.files.walk import Walk
from kdsteps.jobs import version_lock
from kdsteps.models import build_model
from kdsteps.places import installed_version, shipped
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.yaml_text import read_yaml


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which no git repository has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `kdsteps` says when it refuses."""
    assert cli.main(arguments) == 2
    return capsys.readouterr().err


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and ".git" not in file.relative_to(folder).parts[:1]
    }


def proposed(
    found: Overview, teacher: Network = TEACHER, student: Network = STUDENT, path: str = "pets"
) -> str:
    return proposed_study(path, found, teacher, student)


def overview(sizes: list[tuple[int, int]], **counts: int) -> Overview:
    found = counts or {"": 500}
    return Overview("folder", {"path": "x"}, found, {"a": 9, "b": 9}, tuple(sizes), False, {})


# What it sees


def test_class_folders(here: Path):
    write_folder(here / "pets", {"cat": 3, "dog": 5})
    found = look_at("pets")
    assert (found.kind, found.options) == ("folder", {"path": "pets"})
    assert (found.counts, found.class_counts) == ({"": 8}, {"cat": 3, "dog": 5})
    assert set(found.sizes) == {(6, 6)}
    assert not found.gray


def test_gray_images_are_seen_as_gray(here: Path):
    for label in ("a", "b"):
        (here / "scans" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (6, 6), 40 * number).save(here / "scans" / label / f"{number}.png")
    assert look_at("scans").gray


def test_a_folder_is_listed_once_and_its_sample_is_a_part_of_that_list(here: Path, monkeypatch):
    write_folder(here / "pets", {"cat": 300, "dog": 5})
    listings: list[Path] = []
    files = Walk.files
    monkeypatch.setattr(Walk, "files", lambda self, at: listings.append(at) or files(self, at))
    found = look_at("pets")
    assert len(listings) == 1
    assert len(found.sizes) == 105, "at most 100 of each of two classes"


def test_a_bare_folder_has_images_without_labels(here: Path):
    write_folder(here, {"photos": 7})
    Path("photos/.DS_Store").touch()
    found = look_at("photos")
    assert (found.kind, found.options, found.counts) == ("folder", {"path": "photos"}, {"": 7})
    assert not found.labeled


def test_class_folders_with_splits(here: Path):
    write_folder(here / "pets/train", {"cat": 3, "dog": 5})
    write_folder(here / "pets/test", {"cat": 2, "dog": 2}, start=50)
    found = look_at("pets")
    assert found.counts == {"train": 8, "test": 4}
    assert found.class_counts == {"cat": 3, "dog": 5}


def test_a_list_whose_columns_have_usual_names(here: Path):
    write_folder(here, {"photos": 4})
    rows = [f"photos/{n}.png,{'ab'[n % 2]},{'train' if n < 2 else 'val'}" for n in range(4)]
    Path("list.csv").write_text("\n".join(["Filename,species,split", *rows]))
    found = look_at("list.csv")
    assert found.kind == "table"
    columns = {"image": "Filename", "label": "species", "split": "split"}
    assert found.options == {"path": "list.csv"} | columns
    assert found.counts == {"train": 2, "validation": 2}


def test_parquet_files_as_from_hugging_face(here: Path):
    Path("flowers/data").mkdir(parents=True)
    for start, name in enumerate(("train-0", "train-1", "test-0")):
        contents = [{"bytes": as_bytes(color(10 * start + n)), "path": None} for n in range(4)]
        columns = pa.table({"img": contents, "fine_label": [0, 1] * 2})
        pq.write_table(columns, f"flowers/data/{name}.parquet")
    pq.write_table(pa.table({"x": [1]}), "flowers/data/notes.parquet")  # of no split
    found = look_at("flowers")
    assert found.kind == "parquet"
    assert found.options == {
        "train": "flowers/data/train*.parquet",
        "test": "flowers/data/test*.parquet",
        "image": "img",
        "label": "fine_label",
    }
    assert found.counts == {"train": 8, "test": 4}


def test_an_image_that_cannot_be_read_is_named(here: Path):
    write_folder(here / "pets", {"cat": 3, "dog": 3})
    Path("pets/dog/1.png").write_bytes(b"no image")
    assert list(look_at("pets").broken) == ["dog/1.png"]


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({}, "nowhere", ["'nowhere'", "does not exist"]),
        ({"flat/1.txt": b"", "flat/2.txt": b""}, "flat", ["--images flat/1.txt"]),
        ({"flat/1.doc": b""}, "flat", ["'flat' has no images", "folder of images per class"]),
        ({"flat/1.png": b"", "flat/all.csv": b"a"}, "flat", ["--images flat/all.csv"]),
        ({"list.csv": b"path,size\n1.png,3\n"}, "list.csv", ["no labels", "add a column `label`"]),
        ({"list.csv": b"what,label\n1.png,3\n"}, "list.csv", ["what, label", "`path`"]),
        ({"list.csv": b"path,label\n"}, "list.csv", ["lists no images"]),
        ({"list.csv": b""}, "list.csv", ["list.csv: is empty", "path,label"]),
        ({"list.csv": b"path,label\na,\xc4pfel\n"}, "list.csv", ["is not UTF-8; save it"]),
        ({"list.csv": "path,label\n".encode("utf-16")}, "list.csv", ["is not UTF-8; save it"]),
        ({"photos.zip": b""}, "photos.zip", ["'.zip'", ".csv"]),
        ({"p/a/1.png": b"x", "p/b/1.png": b"x"}, "p", ["a/1.png", "not an image"]),
    ],
)
def test_what_has_no_labeled_images_is_refused(
    here: Path, capsys, files: dict[str, bytes], path: str, words: list[str]
):
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    said = refused(capsys, "init", "study", "--images", path)
    assert all(word in said for word in words), said
    assert not Path("study").exists()


# What it proposes


@pytest.mark.parametrize(
    ("sizes", "store"),
    [
        ([(28, 28)], 28),
        ([(32, 48)], [32, 48]),
        ([(375, 500), (500, 333)], 64),
        ([(50, 90), (61, 40), (55, 58)], 48),
    ],
)
def test_images_are_stored_at_their_size_or_at_one_for_two_cores(sizes, store):
    content = read_yaml(proposed(overview(sizes)))
    assert content["datasets"]["pets"]["store"] == store


def test_a_training_is_longer_the_smaller_the_images_and_the_fewer():
    few, many = overview([(64, 64)], train=100, test=9), overview([(64, 64)], train=9000, test=9)
    assert training_length(few, 32)[1] > training_length(few, 64)[1] > 8
    assert training_length(many, 64)[1] == 8


def test_an_epoch_has_several_steps_unless_there_are_too_few_images():
    for count, batch in ((9000, 64), (300, 32), (100, 16), (12, 5)):
        found = overview([(64, 64)], train=count, test=9)
        assert training_length(found, 64)[2] == batch
    assert training_length(overview([(64, 64)]), 64)[0] == 360  # of 500, with the default splits


def test_a_named_network_of_timm_is_pretrained_and_sees_larger_images():
    teacher = pretrained_network("resnet18", "--teacher")
    student = pretrained_network("torchvision:resnet18", "--student")
    content = read_yaml(proposed(overview([(300, 300)]), teacher, student))
    for role, family in {"teacher": "timm", "student": "torchvision"}.items():
        wanted = {"family": family, "name": "resnet18", "pretrained": True}
        assert content["models"][role] == wanted
    assert content["datasets"]["pets"]["store"] == 224
    parse_study(content)


def test_without_a_name_nothing_is_downloaded():
    models = read_yaml(proposed(overview([(300, 300)])))["models"]
    assert not [model for model in models.values() if model.get("pretrained")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet181", ["timm has no 'resnet181'", "resnet18"]),
        ("qqqq", ["timm has no 'qqqq'", "there are ", " more"]),
        ("timn:resnet18", ["'timn'", "did you mean 'timm'"]),
    ],
)
def test_an_unknown_network_is_refused(name: str, words: list[str]):
    with pytest.raises(KdstepsError) as error:
        pretrained_network(name, "--teacher")
    assert all(word in str(error.value) for word in ["--teacher", *words])


def test_a_first_study_is_small_and_says_how_to_enlarge_it():
    text = proposed(overview([(64, 64)]))
    study = parse_study(read_yaml(text))
    assert set(study.methods) == {"labels", "kd"}
    assert len(study.seeds) == 3, "fewer could not tell methods apart"
    assert "# block_kd: {}" in text
    enlarged = text.replace("# block_kd:", "block_kd:").replace("# dkd:", "dkd:")
    assert set(parse_study(read_yaml(enlarged)).methods) == {"labels", "kd", "block_kd", "dkd"}


@pytest.mark.parametrize("name", ["2024", "yes", "my pets!", "-", "a: b", "ünü"])
def test_any_name_of_a_folder_makes_a_readable_study(name: str):
    classes = {"a\nb": 9, "c": 9}
    found = Overview("folder", {"path": f"../{name}"}, {"": 18}, classes, ((9, 9),), True, {})
    study = parse_study(read_yaml(proposed(found, path=f"../{name}")))
    (data,) = study.datasets.values()
    assert data.options["path"] == f"../{name}"


# Networks from files

LITTLE = {"depth": 8, "widths": [2, 2, 2, 2]}
CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def photos(here: Path) -> Path:
    write_folder(here / "photos", dict.fromkeys(CLASSES, 4))
    return here / "photos"


def save(path: str, classes: tuple[str, ...] = CLASSES, **more: object) -> None:
    """Write a checkpoint as the stages do, of a network for images of 8 x 8."""
    network = build_model("cifar_resnet", num_classes=len(classes), image_size=8, **LITTLE)
    header = {
        "model": {"family": "cifar_resnet", "options": LITTLE},
        "num_classes": len(classes),
        "class_names": list(classes),
        "image_shape": [3, 8, 8],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.3, 0.2, 0.1],
    }
    write_checkpoint(path, network.plain().state_dict(), header | more)


def save_resnet(path: str, num_classes: int, **more: object) -> None:
    weights = timm.create_model("test_resnet", num_classes=num_classes).state_dict()
    torch.save({"state_dict": weights, **more} if more else weights, path)


def models(study: str = "study") -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = read_yaml(Path(study, "params.yaml").read_text())[
        "models"
    ]
    return found


def test_a_teacher_of_kdsteps_is_used_as_its_file_says(photos: Path, capsys):
    save("old.safetensors")
    assert cli.main(["init", "study", "--images", "photos", "--teacher", "old.safetensors"]) == 0
    assert models()["teacher"] == {
        "family": "cifar_resnet",
        **LITTLE,
        "checkpoint": "../old.safetensors",
        "normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]},
        "train": {"epochs": 0},
    }
    text = Path("study/params.yaml").read_text()
    assert "store: 8" in text
    assert "\ntrain:" not in text, "nothing is trained with labels"
    stages = yaml.safe_load(Path("study/dvc.yaml").read_text())["stages"]
    assert stages["resolve"]["deps"] == ["kdsteps.lock", "../photos", "../old.safetensors"]
    assert not list(Path("study").rglob("*.safetensors")), "nothing is copied"


def test_outputs_by_name_are_put_into_order(photos: Path):
    names = ["dog", "cat", "fox", "eel"]
    save("old.safetensors", tuple(names))
    assert cli.main(["init", "study", "--images", "photos", "--teacher", "old.safetensors"]) == 0
    assert models()["teacher"]["classes"] == names


@pytest.mark.parametrize(
    ("classes", "as_it_is", "words"),
    [
        (("a", "b"), False, ["2 outputs (a, b)", "3 classes", "new classifier"]),
        (("cat", "dog", "fox"), False, ["3 outputs", "none for the class eel", "is trained"]),
        (("a", "b", "c"), True, ["a, b, c", "same order"]),
    ],
)
def test_a_teacher_of_other_classes_is_trained_and_that_is_said(
    photos: Path, capsys, classes: tuple[str, ...], as_it_is: bool, words: list[str]
):
    save("old.safetensors", classes)
    assert cli.main(["init", "study", "--images", "photos", "--teacher", "old.safetensors"]) == 0
    assert ("train" in models()["teacher"]) == as_it_is
    said, text = capsys.readouterr().out, Path("study/params.yaml").read_text()
    assert all(word in said and word in text for word in words), said


def test_weights_alone_need_the_name_of_their_network(photos: Path, capsys):
    save_resnet("plain.pth", 3)
    arguments = ["init", "study", "--images", "photos", "--teacher", "plain.pth"]
    assert "--teacher-network timm:resnet18" in refused(capsys, *arguments)
    assert cli.main([*arguments, "--teacher-network", "timm:test_resnet"]) == 0
    teacher = models()["teacher"]
    assert (teacher["name"], teacher["train"]) == ("test_resnet", {"epochs": 0})
    assert teacher["normalize"] == "pretrained"
    assert "does not name its 3 outputs" in capsys.readouterr().out


def test_a_file_of_timms_training_script_names_its_network(photos: Path):
    save_resnet("timm.pth", 7, arch="test_resnet", epoch=3)
    arguments = ["init", "study", "--images", "photos"]
    assert cli.main([*arguments, "--teacher", "timm.pth", "--student", "timm.pth"]) == 0
    for model in models().values():
        assert (model["family"], model["name"]) == ("timm", "test_resnet")
        assert model["checkpoint"] == "../timm.pth"
        assert "train" not in model
    assert "learning_rate: 0.01" in Path("study/params.yaml").read_text()


def test_a_network_with_options_can_be_named_with_a_file(photos: Path, capsys):
    options = {"channels": [8, 8, 16, 16]}
    network = timm.create_model("test_resnet", num_classes=3, **options)
    sets = {"student": network.state_dict(), "teacher": network.float().state_dict()}
    sets["teacher"] = {name: 2 * tensor for name, tensor in sets["teacher"].items()}
    torch.save(sets, "narrow.pth")
    arguments = ["init", "study", "--images", "photos", "--teacher", "narrow.pth"]
    said = refused(capsys, *arguments, "--teacher-network", "timm:test_resnet")
    assert "options that it was built with go into --teacher-network, as in '{family:" in said
    entry = "{family: timm, name: test_resnet, channels: [8, 8, 16, 16], "
    entry += "image_size: 40, checkpoint_key: teacher}"
    assert cli.main([*arguments, "--teacher-network", entry]) == 0
    teacher = models()["teacher"]
    assert teacher["channels"] == [8, 8, 16, 16]
    assert (teacher["checkpoint_key"], teacher["checkpoint"]) == ("teacher", "../narrow.pth")
    assert (teacher["image_size"], teacher["train"]) == (40, {"epochs": 0})


def test_the_size_that_weights_alone_were_trained_at_is_said_to_be_assumed(photos: Path, capsys):
    save_resnet("plain.pth", 3)
    arguments = ["init", "study", "--images", "photos", "--teacher", "plain.pth"]
    assert cli.main([*arguments, "--teacher-network", "test_resnet"]) == 0
    sentence = "set `image_size` if they had another size"
    assert sentence in capsys.readouterr().out
    assert sentence in Path("study/params.yaml").read_text()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{family: timm", ["closing bracket is missing", "'{family: torchvision, name:"]),
        ("{name: test_resnet}", ["family is missing"]),
        ("{family: timn, name: test_resnet}", ["'timn'", "did you mean 'timm'"]),
        ("{family: timm, name: test_resnet, normalize: none}", ["normalize is not an option"]),
        ("{family: ./net.py:Net}", ["your own code", "leave out --teacher", "`checkpoint`"]),
        ("./net.py:Net", ["your own code", "leave out --teacher", "`checkpoint`"]),
        ("mylab.nets:Net", ["your own code", "leave out --teacher", "`checkpoint`"]),
    ],
)
def test_an_entry_that_cannot_be_the_network_of_a_file_is_one_sentence(
    photos: Path, capsys, entry: str, words: list[str]
):
    save_resnet("plain.pth", 3)
    arguments = ["init", "study", "--images", "photos", "--teacher", "plain.pth"]
    said = refused(capsys, *arguments, "--teacher-network", entry)
    assert said.startswith("kdsteps init: --teacher-network")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_a_gray_teacher_gets_gray_images(photos: Path):
    weights = timm.create_model("test_resnet", num_classes=3, in_chans=1).state_dict()
    torch.save(weights, "gray.pth")
    arguments = ["init", "study", "--images", "photos", "--teacher", "gray.pth"]
    assert cli.main([*arguments, "--teacher-network", "test_resnet"]) == 0
    assert load_study("study/params.yaml").datasets["photos"].options["channels"] == 1


def write_code(path: str) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def write_diverged(path: str) -> None:
    save(path, diverged={"term": "labels", "epoch": 1, "step": 1})


@pytest.mark.parametrize(
    ("file", "write", "words"),
    [
        ("none.pth", None, ["there is no file none.pth"]),
        ("folder", lambda path: Path(path).mkdir(), ["folder", "file with the weights"]),
        ("text.pth", lambda path: Path(path).write_text("hello"), ["text.pth", "damaged"]),
        ("code.pth", write_code, ["code.pth", "never run", "state dict"]),
        ("old.safetensors", write_diverged, ["old.safetensors", "diverged"]),
        ("net.pth", lambda path: torch.save({"x": torch.ones(2)}, path), ["--teacher-network"]),
    ],
)
def test_a_file_that_cannot_be_a_teacher_is_one_sentence(
    photos: Path, capsys, file: str, write, words: list[str]
):
    if write:
        write(file)
    said = refused(capsys, "init", "study", "--images", "photos", "--teacher", file)
    assert said.startswith("kdsteps init: --teacher: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not Path("study").exists()


def test_weights_of_another_network_than_the_named_one_are_refused(photos: Path, capsys):
    save_resnet("plain.pth", 3)
    arguments = ["--images", "photos", "--teacher", "plain.pth", "--teacher-network"]
    assert "plain.pth" in refused(capsys, "init", "study", *arguments, "timm:test_convnext")
    assert "'timn'" in refused(capsys, "init", "study", *arguments, "timn:test_vit")
    save("old.safetensors")
    arguments = ["--images", "photos", "--teacher", "old.safetensors", "--teacher-network"]
    assert "says itself" in refused(capsys, "init", "study", *arguments, "timm:test_vit")
    arguments = ["--images", "photos", "--teacher", "timm:test_vit", "--teacher-network"]
    assert "--teacher-network" in refused(capsys, "init", "study", *arguments, "timm:test_vit")


def test_images_of_one_class_are_refused(here: Path, capsys):
    write_folder(here / "pets", {"big\ncat": 2})
    said = refused(capsys, "init", "study", "--images", "pets")
    assert "'pets' has only one class ('big\\ncat')" in said
    assert "at least two are needed: put the images of each class into a folder" in said
    assert said.count("\n") == 1
    write_folder(here, {"photos": 2})
    (here / "list.csv").write_text("path,label\nphotos/0.png,cat\nphotos/1.png,cat\n")
    said = refused(capsys, "init", "study", "--images", "list.csv")
    assert said.endswith("'list.csv' has only one class (cat); at least two are needed\n")
    assert not (here / "study").exists()


def test_images_without_labels_need_a_trained_teacher(here: Path, capsys):
    write_folder(here, {"photos": 20})
    said = refused(capsys, "init", "study", "--images", "photos")
    assert "no labels" in said
    assert "--teacher" in said
    save("old.safetensors")
    assert cli.main(["init", "study", "--images", "photos", "--teacher", "old.safetensors"]) == 0
    assert "20 images without labels" in capsys.readouterr().out
    study = load_study("study/params.yaml")
    assert study.datasets["photos"].labels == "none"
    assert set(study.methods) == {"feature_only", "embedding"}
    assert study.trainings["teacher"].epochs == 0


# What it writes


def test_the_files_of_a_study(here: Path, capsys):
    write_folder(here / "pets", {"cat": 10, "dog": 12})
    assert cli.main(["init", "studies/one", "--images", "pets"]) == 0
    said = capsys.readouterr().out
    assert "22 images of 2 classes: cat, dog" in said
    assert said.endswith(
        "    cd studies/one && kdsteps check\n    snakemake --cores 4 --resources gpu=1\n"
    )
    study = here / "studies/one"
    params = read_yaml((study / "params.yaml").read_text())
    assert params["datasets"]["pets"] == {"kind": "folder", "path": "../../pets", "store": 6}
    pipeline = yaml.safe_load((study / "dvc.yaml").read_text())
    assert pipeline["stages"]["resolve"]["deps"] == ["kdsteps.lock", "../../pets"]
    profile = shipped("profiles") / "default/config.yaml"
    assert (study / "profiles/default/config.yaml").read_bytes() == profile.read_bytes()
    assert (study / ".git").is_dir()
    assert "no_scm" not in (study / ".dvc/config").read_text()


def test_paths_in_the_study_are_relative_and_others_stay_absolute(here: Path, monkeypatch):
    write_folder(here / "study/pets", {"cat": 2, "dog": 2})
    write_folder(here / "elsewhere", {"cat": 2, "dog": 2})
    monkeypatch.chdir("study")
    assert cli.main(["init", ".", "--images", str(here / "study/pets")]) == 0
    assert load_study().datasets["pets"].options["path"] == "pets"
    assert cli.main(["init", "../other", "--images", str(here / "elsewhere")]) == 0
    other = load_study("../other/params.yaml").datasets["elsewhere"]
    assert other.options["path"] == str(here / "elsewhere")


def test_images_in_a_folder_named_like_a_value_of_dvc_are_followed(here: Path, monkeypatch):
    write_folder(here / "a${b}", {"cat": 2, "dog": 2})
    assert cli.main(["init", "study", "--images", "a${b}"]) == 0
    monkeypatch.chdir("study")
    listed = [sys.executable, "-m", "dvc", "stage", "list"]  # which replaces values
    subprocess.run(listed, env=clean_environment(), check=True)
    check_dependencies([Path("../a${b}")], "params.yaml")
    Path("dvc.yaml").write_text("stages: {resolve: {cmd: kdsteps resolve, deps: [kdsteps.lock]}}")
    with pytest.raises(KdstepsError, match=re.escape(r"`deps: [kdsteps.lock, '../a\${b}']`")):
        check_dependencies([Path("../a${b}")], "params.yaml")


def test_a_link_to_images_elsewhere_is_named_as_a_link(here: Path):
    write_folder(here / "far/away", {"cat": 2, "dog": 2})
    Path("pets").symlink_to("far/away")
    assert cli.main(["init", "study", "--images", "pets"]) == 0
    assert read_yaml(Path("study/params.yaml").read_text())["datasets"]["pets"]["path"] == "../pets"


def test_a_folder_with_the_files_of_all_splits_is_followed_once(here: Path, capsys):
    Path("flowers").mkdir()
    for start, name in enumerate(("test", "train")):
        contents = [as_bytes(color(10 * start + n)) for n in range(7)]
        columns = pa.table({"image": contents, "label": [f"class {n}" for n in range(7)]})
        pq.write_table(columns, f"flowers/{name}.parquet")
    assert cli.main(["init", "study", "--images", "flowers"]) == 0
    said = capsys.readouterr().out
    assert "class 4 and 2 more.\n" in said
    assert "Splits: 7 for train, 7 for test." in said
    stages = yaml.safe_load(Path("study/dvc.yaml").read_text())["stages"]
    assert stages["resolve"]["deps"] == ["kdsteps.lock", "../flowers"]


def test_images_next_to_the_results_are_refused(here: Path, capsys):
    write_folder(here / "pets", {"cat": 2, "dog": 2})
    assert "another folder" in refused(capsys, "init", "pets", "--images", "pets")
    assert "another folder" in refused(capsys, "init", "pets/study", "--images", "pets")


def test_without_images_it_is_the_study_of_digits_that_is_shipped(here: Path):
    assert cli.main(["init", "study"]) == 0
    written = (here / "study/params.yaml").read_bytes()
    assert written == (REPOSITORY / "params.yaml").read_bytes()


def test_in_a_git_repository_no_other_is_begun(here: Path):
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    assert cli.main(["init", "study"]) == 0
    assert not (here / "study/.git").exists()


def test_without_git_dvc_is_told_so(here: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    assert cli.main(["init", "study"]) == 0
    assert "no_scm = true" in (here / "study/.dvc/config").read_text()
    assert not (here / "study/.git").exists()


def test_nothing_is_overwritten(here: Path, capsys):
    assert cli.main(["init", "study"]) == 0
    before = tree(here)
    said = refused(capsys, "init", "study")
    assert "params.yaml, Snakefile" in said
    assert tree(here) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(here: Path, monkeypatch, capsys):
    def refused(path: Path, *given: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert cli.main(["init", "study"]) == 2
    said = capsys.readouterr().err
    assert "cannot be written (Permission denied); make . writable" in said


def test_one_file_that_is_there_is_enough_to_write_none(here: Path, capsys):
    Path("study").mkdir()
    Path("study/dvc.yaml").write_text("mine")
    assert "already has dvc.yaml, and" in refused(capsys, "init", "study")
    assert tree(here) == {"study/dvc.yaml": b"mine"}


def test_lists_of_ignored_paths_that_are_there_keep_their_lines(here: Path, capsys):
    Path("study").mkdir()
    mine = b"*.log\n\xff.png\n__pycache__/\n!/results/"
    Path("study/.gitignore").write_bytes(mine)
    assert cli.main(["init", "study"]) == 0
    assert cli.main(["init", "other"]) == 0
    there, new = (Path(name, ".gitignore").read_bytes() for name in ("study", "other"))
    assert there.startswith(mine + b"\n")
    lines, wanted = there.splitlines(), new.splitlines()
    assert set(lines) == {*mine.splitlines(), *wanted}
    assert lines.count(b"__pycache__/") == 1
    assert Path("study/.dvcignore").read_bytes() == Path("other/.dvcignore").read_bytes()


def test_the_pipeline_is_that_of_the_clone_except_for_how_it_follows_the_code():
    ours = (REPOSITORY / "dvc.yaml").read_text()
    ours = ours.replace("python -m kdsteps", "kdsteps").replace("[kdsteps]", "[kdsteps.lock]")
    ours = ours.replace("workflow, ", "").replace("      - workflow\n", "")
    for name in ("dots", "lines"):
        ours = ours.replace(f"workflow/plots/{name}.json", name)
    template = REPOSITORY / "kdsteps/cli/templates/pipeline.yaml"
    assert yaml.safe_load(template.read_text()) == yaml.safe_load(ours)


def test_the_best_student_of_the_studys_own_pair_has_a_name_for_dvc():
    found = yaml.safe_load(_pipeline([], "pairs: {photos: {dataset: photos}}"))
    assert found["artifacts"]["student"]["path"] == "results/export/photos/best"


# The version that a study belongs to


def test_a_study_of_another_version_is_refused(here: Path):
    assert version_lock.check_lock() == [], "a clone has no lock"
    version_lock.write_lock()
    assert version_lock.check_lock() == []
    Path("kdsteps.lock").write_text('version: "0.0.1"\ncode: "0"\n')
    with pytest.raises(KdstepsError, match="`kdsteps lock`") as error:
        version_lock.check_lock()
    assert "kdsteps 0.0.1" in str(error.value)
    assert f"{installed_version()} is installed" in str(error.value)


def test_other_code_of_the_same_version_updates_the_lock(here: Path):
    text = version_lock.lock_text()
    Path("kdsteps.lock").write_text(f'version: "{installed_version()}"\ncode: "0"\n')
    (said,) = version_lock.check_lock()
    assert "updated" in said
    assert Path("kdsteps.lock").read_text() == text


def test_lock_moves_a_study_to_the_installed_version(here: Path, capsys):
    assert "not found" in refused(capsys, "lock")
    Path("kdsteps.lock").write_text('version: "0.0.1"\ncode: "0"\n')
    assert cli.main(["lock"]) == 0
    assert f"kdsteps {installed_version()} (was 0.0.1)" in capsys.readouterr().out
    assert Path("kdsteps.lock").read_text() == version_lock.lock_text()


@pytest.mark.parametrize("text", ["", "[", "version", "code: 1"])
def test_a_damaged_lock_is_one_sentence(here: Path, text: str):
    Path("kdsteps.lock").write_text(text)
    with pytest.raises(KdstepsError, match=r"kdsteps\.lock.*`kdsteps lock`"):
        version_lock.check_lock()
