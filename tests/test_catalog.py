"""A study that uses a tagged version of the workflow, as `snakedeploy` sets it up."""

from __future__ import annotations

import shutil

import pytest
import yaml
from _study import TINY, Study

pytestmark = [pytest.mark.stories, pytest.mark.slow]

# What `snakedeploy deploy-workflow` writes, with a clone in place of GitHub.
SNAKEFILE = """
configfile: "config/config.yaml"

module kdsteps:
    snakefile:
        gitfile("{clone}", path="workflow/Snakefile", tag="v1")
    config:
        config

use rule * from kdsteps
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("catalog")
    clone = Study.new(folder / "clone", TINY)
    clone.git("tag", "v1")
    study = folder / "study"
    for name in ("config", "profiles"):
        shutil.copytree(clone.path / name, study / name)  # a link becomes a file
    (study / "workflow").mkdir()
    (study / "workflow/Snakefile").write_text(SNAKEFILE.format(clone=clone.path))
    return Study(study)


def test_the_study_is_the_one_that_its_configuration_names(deployed: Study):
    assert not (deployed.path / "params.yaml").exists()
    params = yaml.safe_load((deployed.path / "config/params.yaml").read_text())
    assert params == TINY
    deployed.snakemake("prepare_all")
    assert (deployed.path / "results/prepare/digits/images.npy").is_file()
    planned = deployed.planned()
    assert planned["distil"] == len(TINY["methods"])
    assert "prepare" not in planned


def test_another_key_of_the_configuration_is_refused(deployed: Study):
    said = deployed.snakemake("--dry-run", "--config", "seeds=3", status=2).strip()
    assert "--config: seeds would have no effect; change the values in config/params.yaml" in said
    said = deployed.snakemake("--dry-run", "--config", "params=other.yaml", status=2).strip()
    assert said.splitlines()[-1].startswith("other.yaml: not found")
