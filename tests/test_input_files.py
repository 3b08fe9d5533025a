"""Images and checkpoints that params.yaml names are inputs: a changed one runs its jobs again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from _commands import NET, STUDY
from PIL import Image

from kdsteps.cli.main import main
from kdsteps.jobs import graph
from kdsteps.jobs.inputs import checkpoint_digest, input_paths
from kdsteps.jobs.provenance import Provenance
from kdsteps.study.loading import parse_study
from kdsteps.study.settings import Model

TEACHER = {"dataset": "pets", "teacher": "big"}
RULES = ("prepare", "train", "tune", "distil", "evaluate")


@pytest.fixture(autouse=True)
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, color in (("cat", 30), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (color, color, 0)).save(tmp_path / "pets" / name / "0.png")
    (tmp_path / "big.pth").write_bytes(b"weights")
    return tmp_path / "pets"


def sections(**others: Any) -> dict[str, Any]:
    """A study of the images, with some sections replaced."""
    own: dict[str, Any] = {
        "datasets": {"pets": {"kind": "folder", "path": "pets"}},
        "models": {"big": NET, "small": NET},
        "pairs": {"pair": {"dataset": "pets", "teacher": "big", "student": "small"}},
        "methods": {"labels": {}, "kd": {}},
    }
    return STUDY | own | others


def jobs(**others: Any) -> dict[str, str]:
    """The settings of every job by its name."""
    study = parse_study(sections(**others))
    return {
        " ".join([rule, *names.values()]): graph.settings_text(study, rule, names)
        for rule in RULES
        for names in graph.jobs(study, rule)
    }


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_changed_added_or_removed_image_changes_the_job_that_prepares_it(pets):
    before = jobs()
    assert changed(before, jobs()) == set()
    Image.new("RGB", (8, 8), (31, 30, 0)).save(pets / "cat" / "0.png")
    exchanged = jobs()
    assert changed(before, exchanged) == {"prepare pets"}
    shutil.copy(pets / "cat" / "0.png", pets / "cat" / "1.png")
    added = jobs()
    assert changed(exchanged, added) == {"prepare pets"}
    (pets / "cat" / "1.png").unlink()
    assert changed(exchanged, jobs()) == set()


def test_a_changed_checkpoint_changes_the_job_that_reads_it():
    models = {"big": NET | {"checkpoint": "big.pth"}, "small": NET}
    before = jobs(models=models)
    Path("big.pth").write_bytes(b"other weights")
    assert changed(before, jobs(models=models)) == {"train pets big"}


MINE = """
from torch import nn
from kdsteps.methods.kd import KD

class Mine(KD):
    def __init__(self, *given, prototypes: str, others: list[str] = [], **options):
        super().__init__(*given, **options)

def build(num_classes: int, in_channels: int, image_size, start: str):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
"""


def test_a_changed_file_that_an_option_of_the_users_code_names_changes_its_jobs():
    Path("mine.py").write_text(MINE)
    for name in ("prototypes.pt", "more.csv", "start.pt"):
        Path(name).write_text("old")
    mine = {"method": "./mine.py:Mine", "prototypes": "prototypes.pt", "others": ["more.csv"]}
    methods = {"labels": {}, "mine": mine, "tuned": mine | {"tune": {"temperature": [2.0]}}}
    start = {"family": "./mine.py:build", "start": "./start.pt"}
    students = {f"distil pair {name} {seed}" for name in ("mine", "tuned") for seed in (0, 1)}

    own = {"models": {"big": start, "small": NET}, "methods": methods}

    def now() -> dict[str, str]:
        return jobs(**own)

    before = now()
    Path("more.csv").write_text("new")
    after = now()
    assert changed(before, after) == students | {"tune pair tuned 1 100"}
    Path("more.csv").write_text("old")
    Path("start.pt").write_text("new")
    assert changed(before, now()) == {"train pets big"}
    study = parse_study(sections(**own))
    (wanted, *_) = graph.jobs(study, "distil")
    assert {"prototypes.pt", "more.csv"} <= set(map(str, input_paths(study)))
    assert '"files"' not in graph.settings_text(study, "distil", wanted | {"method": "labels"})


def test_a_text_that_names_no_file_is_no_input():
    Path("mine.py").write_text(MINE)
    Path("folder").mkdir()
    odd = ["folder", "", "x" * 5000, "relu"]
    study = parse_study(
        sections(methods={"mine": {"method": "./mine.py:Mine", "prototypes": "no", "others": odd}})
    )
    assert graph.own_inputs(study)["methods.mine"] == (None, [])


@pytest.mark.parametrize("prefix", ["local-dir:", "local_dir:"])
def test_a_changed_file_in_a_folder_of_timm_is_noticed(prefix: str):
    folder = Path("published")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = Model(family="timm", options={"name": f"{prefix}{folder}", "pretrained": True})
    before = checkpoint_digest(model)
    assert before
    (folder / "config.json").write_text("{ }")
    assert checkpoint_digest(model) not in (before, "", None)
    assert checkpoint_digest(Model(family="timm", options={"name": "resnet18"})) is None


def test_without_the_images_what_the_result_was_made_from_counts(pets):
    before = jobs()
    outputs = graph.outputs("prepare", {"dataset": "pets"})
    Provenance("prepare", before["prepare pets"], "0" * 16, {}, {}, {}, 0, 1).write(outputs)
    shutil.rmtree(pets)
    assert changed(before, jobs()) == set()


def test_data_that_cannot_change_have_no_digest():
    study = parse_study(STUDY)
    names = {"dataset": "digits"}
    assert "source" not in json.loads(graph.settings_text(study, "prepare", names))


# DVC


def resolve(capsys: pytest.CaptureFixture[str], *dependencies: str) -> str:
    """What `kdsteps resolve` says where dvc.yaml has these dependencies; "" if it succeeds."""
    content = {"stages": {"resolve": {"cmd": "kdsteps resolve", "deps": list(dependencies)}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(content))
    status = main(["resolve"])
    said = capsys.readouterr().err
    assert status == (2 if said else 0)
    return said


@pytest.fixture
def written(pets: Path) -> Path:
    """params.yaml with images, a checkpoint and code of the user, who has none of the images."""
    (pets.parent / "mine.py").write_text(
        "import helper\nfrom kdsteps.methods.kd import KD\n\n\nclass Mine(KD): ...\n"
    )
    (pets.parent / "helper.py").touch()
    study = STUDY | {
        "datasets": {"pets": {"kind": "folder", "path": "pets/"}},
        "models": {"big": NET | {"checkpoint": "./big.pth"}, "small": NET},
        "pairs": {"pair": {"dataset": "pets", "teacher": "big", "student": "small"}},
        "methods": {"labels": {}, "mine": {"method": "./mine.py:Mine"}},
    }
    shutil.rmtree(pets)
    Path("params.yaml").write_text(yaml.safe_dump(study))
    return pets


def test_a_file_that_dvc_does_not_follow_is_named_with_the_line_to_write(written, capsys):
    said = resolve(capsys, "kdsteps")
    assert "kdsteps resolve: dvc.yaml: the stage 'resolve'" in said
    assert "`deps: [kdsteps, pets, big.pth, helper.py, mine.py]`" in said
    assert not Path("results/settings").exists()
    assert "depend on big.pth, " in resolve(capsys, "kdsteps", "pets")


def test_what_dvc_follows_is_accepted(written, capsys):
    assert resolve(capsys, "kdsteps", str(written), "./big.pth", "mine.py", "helper.py") == ""
    assert Path("results/settings/prepare.json").is_file()


def test_a_folder_above_is_followed_too(written, capsys):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["datasets"]["pets"]["path"] = "pets/all/of/them"
    Path("params.yaml").write_text(yaml.safe_dump(content))
    assert resolve(capsys, "pets", "big.pth", "mine.py", "helper.py") == ""


def test_images_next_to_the_results_cannot_be_followed(written, capsys):
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["datasets"]["pets"]["path"] = "."
    Path("params.yaml").write_text(yaml.safe_dump(content))
    assert "move the images into a folder" in resolve(capsys, "kdsteps")


@pytest.mark.parametrize("text", [None, "", "stages: {}", "stages: {resolve: 3}", "\t", "[]"])
def test_without_the_stage_nothing_is_checked(written, text):
    if text is not None:
        Path("dvc.yaml").write_text(text)
    assert main(["resolve"]) == 0
