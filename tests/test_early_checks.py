"""What can be known before the first job is said before the first job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _commands import DATA, NET, REPOSITORY, STUDY, TEACHER, run_of, write_study
from _pictures import prepared, write_folder
from _study import clean_environment

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.early_checks import check_study
from kdsteps.jobs.provenance import provenance_of_job
from kdsteps.models import build_model
from kdsteps.models.cost import activations, multiply_adds, num_parameters
from kdsteps.models.outline import outline
from kdsteps.study import registry
from kdsteps.study.image_size import declared_shape
from kdsteps.study.joints import Outline, check_build
from kdsteps.study.loading import parse_study
from kdsteps.study.settings import BuildPairs, BuildStones, Dataset
from kdsteps.study.study import Study

LAYERS = "stem, layer1.0, layer2.0, layer3.0, pool"  # of NET
DEEP = {"family": "cifar_resnet", "depth": 14, "widths": [2, 2, 2, 2]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, in which each test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(**sections: Any) -> str:
    """The sentence about a study with some sections replaced; "" if there is none."""
    study, sentence = parse_study(STUDY | sections), ""
    try:
        check_study(study)
    except KdstepsError as error:
        sentence = str(error)
    assert "\n" not in sentence
    return sentence


def data(kind: str, **options: Any) -> dict[str, Any]:
    return {"datasets": {"digits": {"kind": kind, **options}}}


def method(name: str, **entry: Any) -> dict[str, Any]:
    return {"methods": {name: entry}}


# layers


def test_a_study_without_mistakes_passes():
    assert said() == ""


@pytest.mark.parametrize(
    ("sections", "place", "found", "right"),
    [
        (method("block_kd", build={"num_stones": 4}), "block_kd", "num_stones is 4", "1 to 3"),
        (
            method("block_kd", build={"cuts": "quality", "num_stones": 6}),
            *("block_kd", "num_stones is 6", "at most 5"),
        ),
        (
            method("block_kd", build={"cuts": "quality", "num_stones": 4}),
            *("block_kd", "4 teacher layers", "at most 3"),
        ),
        (
            method("block_kd", build={"cuts": [["layer1.0", "layr2.0"]]}),
            *("block_kd", "the teacher has no layer 'layr2.0'", "'layer2.0'?"),
        ),
        (
            method("block_kd", build={"cuts": [["layer9", "layer2.0"]]}),
            *("block_kd", "the student has no layer 'layer9'", "'layer"),
        ),
        (
            method("block_kd", build={"cuts": [["pool", "pool"], ["stem", "stem"]]}),
            *("block_kd", "stem with stem follows pool", "shallow to deep"),
        ),
        (method("feature_only", build={"num_pairs": 6}), "feature_only", "is 6", "at most 5"),
        (method("feature_only", build={"num_pairs": 4}), "feature_only", "3 student", "num_pairs"),
        (
            method("feature_only", build={"student_layers": ["layer1.0", "layr2.0"]}),
            *("feature_only", "the student has no layer 'layr2.0'", "'layer2.0'?"),
        ),
        (
            method("feature_only", build={"select": ["layr2.0"]}),
            *("feature_only", "the teacher has no layer 'layr2.0'", "'layer2.0'?"),
        ),
        (
            method("feature_only") | {"score": {"num_layers": 6}},
            *("feature_only", "score.num_layers is 6", "at most 5"),
        ),
        (method("fitnet", teacher_layer="layr1.0"), "fitnet", "no layer 'layr1.0'", "'layer1.0'?"),
        (
            method("fitnet", tune={"teacher_layer": ["layer1.0", "layr2.0"]}),
            *("fitnet", "the teacher has no layer 'layr2.0'", "'layer2.0'?"),
        ),
        (method("at", student_layers=["nothing"]), "at", "no layer 'nothing'", LAYERS),
        (method("semckd", teacher_layers=["x"]), "semckd", "the teacher has no layer 'x'", LAYERS),
    ],
)
def test_layers_out_of_reach_are_named_with_those_there_are(sections, place, found, right):
    sentence = said(**sections)
    assert sentence.startswith(f"params.yaml: pairs.pair with {place}: ")
    assert found in sentence
    assert right in sentence.partition(found)[2]


def test_the_score_of_more_layers_than_a_teacher_has_is_refused_where_no_pair_uses_them():
    sections = method("block_kd", build={"cuts": "quality"}) | {"score": {"num_layers": 6}}
    assert said(**sections).startswith("params.yaml: models.big: score.num_layers is 6, but")


@pytest.mark.parametrize(
    ("section", "without", "who"),
    [
        (BuildStones(), "teacher", "the teacher has no stages"),
        (BuildStones(), "student", "the student has no stages"),
        (BuildStones(cuts="quality"), "teacher", "the teacher has no layers"),
        (BuildStones(cuts="quality"), "student", "the student has no stages"),
        (BuildPairs(), "teacher", "the teacher has no layers"),
        (BuildPairs(), "student", "the student has no stages"),
        (BuildPairs(select="quality"), "student", "the student has no stages"),
    ],
)
def test_a_network_that_cannot_be_cut_is_named(section, without, who):
    networks = {"teacher": Outline(("a", "b", "c"), ("a", "c"))}
    networks["student"] = networks["teacher"]
    with pytest.raises(KdstepsError, match=f"{who} to cut at; use methods that need"):
        check_build(section, 3, **networks | {without: Outline((), ())})


def test_fewer_stages_than_selected_layers_stop_nothing():
    networks = {"teacher": Outline(("a", "b", "c"), ("a", "c")), "student": Outline("ac", "ac")}
    check_build(BuildPairs(), 3, **networks)
    check_build(BuildPairs(student_layers=("c",)), 3, **networks)
    with pytest.raises(KdstepsError, match=r"2 student layers .* for 1 teacher layers"):
        check_build(BuildPairs(student_layers=("a", "c")), 1, **networks)


def test_each_pair_is_checked_with_its_own_networks():
    models = {"models": {"big": DEEP, "small": NET}}
    build = {"cuts": [["layer1.0", "layer1.1"]]}
    assert said(**models, **method("block_kd", build=build)) == ""
    assert "the student has no layer 'layer1.1'" in said(
        **models, **method("block_kd", build={"cuts": [["layer1.1", "layer1.1"]]})
    )


def test_all_options_that_name_layers_are_checked():
    named = {
        option
        for name in registry.names("methods")
        for option in registry.find("methods", name, "").described.wanted
        if option.endswith(("_layer", "_layers"))
    }
    assert named == {"student_layer", "student_layers", "teacher_layer", "teacher_layers"}


def test_layers_that_depend_on_an_unknown_image_size_are_checked_later(folder):
    write_folder(folder / "pets", {"cat": 3, "dog": 3})
    network = {"family": "timm", "name": "resnet10t"}
    sections = STUDY | data("folder", path="pets") | method("fitnet", teacher_layer="nowhere")
    study = parse_study(sections | {"models": {"big": network, "small": NET}})
    [later] = check_study(study)
    assert later.startswith("params.yaml: the layers of models.big, models.small are checked when")
    for seed in "01":
        finished("distil", pair="pair", method="fitnet", seed=seed)
    assert check_study(study) == []
    sized = sections | data("folder", path="pets", image_size=32)
    with pytest.raises(KdstepsError, match="the teacher has no layer 'nowhere'"):
        check_study(parse_study(sized))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cifar_resnet", {"depth": 8}),
        ("vit", {"patch": 4, "depth": 4}),
        ("timm", {"name": "resnet18"}),
        ("timm", {"name": "vit_tiny_patch16_224"}),
        ("torchvision", {"name": "mobilenet_v3_small"}),
    ],
)
def test_an_outline_has_the_layers_and_the_cost_of_the_network(family, options):
    chain = build_model(family, num_classes=10, in_channels=3, image_size=64, **options)
    found = outline(family, options | {"checkpoint": "x.pt"}, (3, 64, 64))
    images = torch.zeros(1, 3, 64, 64)
    assert found == {
        "layers": chain.layers,
        "stages": chain.stages,
        "parameters": num_parameters(chain),
        "multiply_adds": multiply_adds(chain, images),
        "activations": activations(chain, images),
    }


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, num_classes)
        assert float(self.head.bias.sum()) < 100  # needs values

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

class Fixed(Net):
    def __init__(self):
        super().__init__(7)
"""


@pytest.mark.parametrize("name", ["Net", "Fixed"])
def test_a_network_that_needs_values_is_outlined_as_well(folder, name):
    (folder / "mine.py").write_text(OWN)
    before = torch.get_rng_state()
    found = outline(f"./mine.py:{name}", {}, (3, 8, 8))
    assert found is not None
    assert found["layers"] == ("body",)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_cannot_be_built_or_is_fetched_has_no_outline():
    assert outline("cifar_resnet", {"depth": 9}, (3, 8, 8)) is None
    assert outline("timm", {"name": "hf-hub:nobody/nothing"}, (3, 8, 8)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 4},
        {"image_size": [4, 6]},
        {"store": 5},
        {"store": 6, "image_size": 4},
        {"resize": 6, "crop": 4},
        {"resize": [5, 4], "channels": 1},
        {"resize": [5, 4], "crop": [4, 3]},
    ],
)
def test_the_declared_shape_is_that_of_the_prepared_images(folder, options):
    write_folder(folder / "pets", {"cat": 6, "dog": 6})
    found, _ = prepared(folder / "out", "folder", {"path": "pets", **options})
    assert declared_shape(Dataset(kind="folder", options=options)) == found.image_shape
    assert declared_shape(Dataset(kind="folder", options={"resize": 8})) is None


# files


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        (data("folder", path="nowhere"), "there is no file or folder 'nowhere'"),
        (data("folder", path=["here", "nowhere"]), "there is no file or folder 'nowhere'"),
        (data("table", path="list.csv"), "there is no file or folder 'list.csv'"),
        (data("table", path="here/list.csv"), "none of the images in here/list.csv exist"),
        (data("parquet", train="here/train-*.parquet"), "file or folder 'here/train-*.parquet'"),
        (data("torchvision", name="CIFAR10", root="nowhere"), "there is no folder 'nowhere'"),
    ],
)
def test_missing_images_are_named_until_a_dvc_file_tracks_them(folder, sections, place):
    (folder / "here").mkdir()
    (folder / "here" / "list.csv").write_text("path,label\n0.png,0\n1.png,1\n")
    sentence = said(**sections)
    assert sentence.startswith("params.yaml: datasets.digits: ")
    assert place in sentence
    assert "; " in sentence.partition(place)[2]


def test_images_that_dvc_can_fetch_are_not_missing(folder):
    (folder / "pets.dvc").write_text("outs:\n- md5: 0123.dir\n  path: pets\n")
    assert said(**data("folder", path="pets", image_size=8)) == ""


def test_images_from_which_a_finished_result_exists_are_not_missing(folder):
    sections = data("folder", path="pets", image_size=8)
    assert "'pets'" in said(**sections)
    finished("prepare", dataset="digits")
    assert said(**sections) == ""


def test_a_missing_checkpoint_is_named_until_its_results_exist(folder):
    sections = {"models": {"big": NET | {"checkpoint": "theirs.pt"}, "small": NET}}
    sentence = "params.yaml: models.big.checkpoint: there is no file 'theirs.pt'; correct"
    assert said(**sections).startswith(sentence)
    finished("train", dataset="digits", teacher="big")
    assert said(**sections) == ""


def test_a_missing_checkpoint_of_a_student_is_named_unless_dvc_tracks_it(folder):
    sections = {"models": {"big": NET, "small": NET | {"checkpoint": "theirs.pt"}}}
    assert "models.small.checkpoint: there is no file 'theirs.pt'" in said(**sections)
    (folder / "theirs.pt.dvc").write_text("outs:\n- md5: 4567\n  path: theirs.pt\n")
    assert said(**sections) == ""


VIT = {"family": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 8}


def weights_for(size: int) -> None:
    own = {key: value for key, value in VIT.items() if key != "family"}
    network = build_model("vit", num_classes=10, in_channels=1, image_size=size, **own)
    torch.save(network.state_dict(), "theirs.pt")


@pytest.mark.parametrize("who", ["big", "small"])
def test_weights_for_another_image_size_are_named_while_planning(folder, who):
    weights_for(16)
    models = {"big": NET, "small": NET, who: VIT | {"checkpoint": "theirs.pt"}}
    sentence = said(models=models)
    assert sentence.startswith(f"params.yaml: models.{who}: checkpoint theirs.pt: is for images of")
    for words in ("16 pixels", "4 x 4 patches", "network for 8 (2 x 2)", "`image_size: 16`"):
        assert words in sentence
    assert said(models=models | {who: models[who] | {"image_size": 16}}) == ""
    assert said(models=models, **data("digits", size=16)) == ""
    unknown = data("folder", path=".")  # until its images are prepared
    assert said(models=models, **unknown) == ""
    weights_for(8)
    assert said(models=models) == ""


def test_a_checkpoint_in_the_home_folder_is_found_while_planning_and_by_jobs(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    weights_for(8)
    models = {"big": VIT | {"checkpoint": "~/theirs.pt"}, "small": NET}
    assert said(models=models) == ""
    given = parse_study(STUDY | {"models": models}).models["big"]
    build_model(given.family, num_classes=10, in_channels=1, image_size=8, **given.options)
    weights_for(16)
    assert "is for images of 16 pixels" in said(models=models)


def test_finished_jobs_and_unreadable_files_have_no_problem_of_size(folder):
    weights_for(16)
    models = {"big": VIT | {"checkpoint": "theirs.pt"}, "small": NET}
    finished("train", dataset="digits", teacher="big")
    assert said(models=models) == ""
    shutil.rmtree("results")
    Path("theirs.pt").write_bytes(b"no weights")
    assert said(models=models) == "", "the job that reads it says what is wrong"


def finished(rule: str, *, with_settings_of: Study | None = None, **names: str) -> None:
    """Make empty files of a job's results, as if it had run, with a record of settings or none."""
    outputs = graph.outputs(rule, names)
    for path in outputs.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    if with_settings_of is not None:
        text = graph.node(with_settings_of, rule, names).text
        provenance_of_job(rule, text, "", {}, outputs, 0.0, 0.0).write(outputs)


@pytest.mark.parametrize(
    ("rule", "names", "sections", "mistake"),
    [
        ("prepare", {"dataset": "digits"}, {}, data("folder", path="nowhere")),
        (
            *("prepare", {"dataset": "digits"}, data("folder", path="gone")),
            data("folder", path="gone", image_size=4),
        ),
        (
            *("train", {"dataset": "digits", "teacher": "big"}, {}),
            {"models": {"big": NET | {"checkpoint": "theirs.pt"}, "small": NET}},
        ),
    ],
)
def test_a_missing_file_is_named_although_results_of_other_settings_exist(
    folder, rule, names, sections, mistake
):
    before = parse_study(STUDY | sections)
    finished(rule, with_settings_of=before, **names)
    assert said(**sections) == ""
    assert "there is no file" in said(**mistake)


# batches


def test_a_batch_larger_than_the_data_is_refused_as_soon_as_the_data_are_known(folder):
    write_study(folder)
    assert main(["prepare", *DATA]) == 0
    assert said() == ""
    large = {"distil": {"batch_size": 5000}}
    assert "pairs.pair with labels: distil.batch_size is 5000, but there are " in said(**large)
    assert "models.big: train.batch_size is 5000, but" in said(train={"batch_size": 5000})
    tuned = {"labels": {"tune": {"distil.batch_size": [64, 5000]}}}
    assert (
        "pairs.pair with labels and distil.batch_size: 5000: distil.batch_size is 5000, but "
        in said(methods=STUDY["methods"] | tuned)
    )
    assert said(**large, prepare={"validation": 0.3}) == ""  # will be prepared again
    network = NET | {"checkpoint": "theirs.pt", "train": {"epochs": 0, "batch_size": 5000}}
    (folder / "theirs.pt").touch()
    assert said(models={"big": network, "small": NET}) == ""  # it is not trained
    for name in STUDY["methods"]:
        for seed in "01":
            finished("distil", pair="pair", method=name, seed=seed)
    assert said(**large) == ""  # finished by an earlier version
    for name in STUDY["methods"]:
        for seed in "01":
            before = parse_study(STUDY)
            finished("distil", with_settings_of=before, pair="pair", method=name, seed=seed)
    assert said() == ""
    assert "batch_size is 5000" in said(**large)  # finished with the batch size of before


def test_crops_that_would_show_nothing_of_an_image_are_refused(folder, capsys):
    assert said(distil={"crop_padding": 7}) == ""
    sentence = (
        "crop_padding is 8, but the images have 8 x 8 pixels, so some crops would show nothing of "
        "them; it should be at most 7"
    )
    assert f"pairs.pair with labels: distil.{sentence}" in said(distil={"crop_padding": 8})
    assert f"models.big: train.{sentence}" in said(train={"crop_padding": 8})
    write_study(folder, train={"crop_padding": 8, "epochs": 1})
    assert main(["prepare", *DATA]) == 0
    assert main(["train", *TEACHER]) == 2
    assert f"train.{sentence}" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused_by_the_first_job_that_knows(folder, capsys):
    write_study(folder, train={"batch_size": 5000, "epochs": 1})
    assert main(["prepare", *DATA]) == 0
    assert main(["train", *TEACHER]) == 2
    assert "train.batch_size is 5000, but there are" in capsys.readouterr().err
    write_study(folder, distil={"batch_size": 5000, "epochs": 1})
    assert main(["train", *TEACHER]) == 0
    assert main(["distil", *run_of("labels")]) == 2
    assert "distil.batch_size is 5000, but there are" in capsys.readouterr().err


# by the real program


@pytest.mark.slow
def test_snakemake_says_it_with_a_dry_run_and_ends_with_2(folder):
    for name in ("Snakefile", "workflow", "kdsteps"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)

    def planned(**sections: Any) -> str:
        write_study(folder, **sections)
        done = subprocess.run(
            [Path(sys.executable).parent / "snakemake", "-n", "--quiet"],
            cwd=folder,
            env=clean_environment() | {"PYTHONPATH": os.fspath(folder)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 2, done.stderr
        assert not (folder / "results").exists()
        return done.stderr

    assert "datasets.digits: there is no file or folder 'nowhere'" in planned(
        **data("folder", path="nowhere")
    )
    assert "block_kd: build.num_stones is 9, but student and teacher have 3 and 3" in planned(
        **method("block_kd", build={"num_stones": 9})
    )
    assert "models.big.checkpoint: there is no file 'theirs.pt'" in planned(
        models={"big": NET | {"checkpoint": "theirs.pt"}, "small": NET}
    )
    weights_for(16)
    assert "models.big: checkpoint theirs.pt: is for images of 16 pixels" in planned(
        models={"big": VIT | {"checkpoint": "theirs.pt"}, "small": NET}
    )


def test_a_table_of_images_with_one_of_them_is_left_to_prepare(folder):
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": [0, 1]}), folder / "list.parquet")
    (folder / "a.png").touch()
    assert said(**data("table", path="list.parquet", image_size=8)) == ""
