"""The page on one's own code: every example is complete, short, and runs outside the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from _commands import REPOSITORY
from safetensors import safe_open

from kdsteps.cli.main import main
from kdsteps.jobs import graph
from kdsteps.study.settings import load_study

TEXT = (REPOSITORY / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))
(STUDY,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_complete_in_under_forty_lines(name):
    code = [line for line in FILES[name].splitlines() if line.strip()]
    assert len(code) < 40
    compile(FILES[name], name, "exec")


@pytest.mark.slow
def test_the_study_of_the_page_runs_from_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "params.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    study = load_study("params.yaml")
    rules = sorted(graph.OUTPUTS, key=["evaluate", "report"].count)  # these read the others' files
    for rule in rules:
        for names in graph.jobs(study, rule):
            options = [word for name, value in names.items() for word in (f"--{name}", value)]
            assert main([graph.stage_of(rule), *options]) == 0, f"{rule} {names}"
    chance = 1 / 4
    for method in ("kd", "means", "confident"):
        run = {"pair": "large-small", "method": method, "seed": "0"}
        assert accuracy(graph.outputs("evaluate", run)["measures"]) > 1.5 * chance
    with safe_open(graph.outputs("distil", run)["model"], framework="pt") as student:
        assert not [key for key in student.keys() if key.startswith("projector")]  # noqa: SIM118
    page = Path(graph.outputs("report", {})["page"]).read_text()
    assert "means" in page and "confident" in page


def accuracy(path: str) -> float:
    found: float = json.loads(Path(path).read_text())["accuracy"]
    return found
