"""Results that DVC has and the folder has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from _study import TINY

from kdsteps.files.text import write_json
from kdsteps.jobs import graph
from kdsteps.jobs.pulling import advice
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study, with a dvc.lock that lists the files of one stage."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(TINY))
    study = load_study()
    for stage in graph.STAGES:
        for path in graph.all_outputs(study, stage):
            write_json(path, {})
    outs = [{"path": "results/distil", "hash": "md5", "nfiles": 9}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"distil": {"outs": outs}}}))
    return study


def test_a_finished_study_needs_no_advice(study: Study):
    assert advice(study) == []


def test_missing_files_are_counted(study: Study):
    for path in graph.all_outputs(study, "distil")[:3]:
        Path(path).unlink()
    assert advice(study) == [
        "results/distil: has 6 of the 9 files that dvc.lock lists; `dvc pull` fetches the others, "
        "and they need not be computed"
    ]


def test_results_of_new_jobs_are_not_in_dvc(study: Study):
    Path("params.yaml").write_text(yaml.safe_dump(TINY | {"seeds": [0, 1]}))
    assert advice(load_study()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "stages: 3", "stages: {distil: {outs: [3]}}", "{", "\0"]
)
def test_a_damaged_lock_gives_no_advice(study: Study, text: str):
    Path(graph.all_outputs(study, "distil")[0]).unlink()
    Path("dvc.lock").write_text(text)
    assert advice(study) == []
