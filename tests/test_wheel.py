"""The wheel: built from the source distribution, and used in an empty folder."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from _installed import Installed, listed_files
from _study import REPOSITORY, clean_environment

from kdsteps.places import shipped

pytestmark = pytest.mark.slow

CODES = """
from kdsteps.jobs import code_identity, graph
from kdsteps.study.loading import load_study
study = load_study("params.yaml")
for rule in graph.OUTPUTS:
    for names in graph.jobs(study, rule):
        print(rule, *names.values(), code_identity.code(study, rule, names))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed.new(tmp_path_factory.mktemp("wheel"))


def test_it_has_the_package_the_workflow_the_profiles_and_the_recipes_and_nothing_else(
    installed: Installed,
):
    (wheel,) = installed.folder.parent.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = ("workflow", "profiles", "recipes")
    wanted = {*listed_files("kdsteps"), *(f"kdsteps/{name}" for name in listed_files(*folders))}
    assert packed == wanted
    assert all((REPOSITORY / name).is_dir() for name in folders)


def test_its_command_works_in_an_empty_folder(installed: Installed, tmp_path: Path):
    assert "stage by stage" in installed.run(tmp_path, "kdsteps", "--help")
    said = installed.run(tmp_path, "kdsteps", "layers", "timm:resnet18", "--image", "3,64,64")
    assert "layer4" in said
    assert list(tmp_path.iterdir()) in ([], [tmp_path / ".kdsteps"])


def test_it_finds_the_workflow_in_the_package(installed: Installed, tmp_path: Path):
    code = "from kdsteps.places import shipped; print(shipped('workflow') / 'Snakefile')"
    found = Path(installed.run(tmp_path, "python", "-c", code).strip())
    assert found == installed.packages.resolve() / "kdsteps/workflow/Snakefile"
    assert found.read_bytes() == (REPOSITORY / "workflow/Snakefile").read_bytes()


def test_a_clone_finds_the_workflow_next_to_the_package():
    assert shipped("workflow") == REPOSITORY.resolve() / "workflow"


def test_a_job_has_the_same_code_in_a_clone_and_in_the_wheel(installed: Installed, tmp_path: Path):
    """So results can be moved between them, and they share a job cache."""
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    ours = subprocess.run(
        [sys.executable, "-c", CODES],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "distil resnet20-resnet8 kd 0" in ours
    assert installed.run(tmp_path, "python", "-c", CODES) == ours


def test_the_version_has_one_place(installed: Installed, tmp_path: Path):
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert installed.run(tmp_path, "kdsteps", "--version").strip() == f"kdsteps {version}"
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
