"""The page on one's own code: every example is complete, short, and runs outside the package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from _commands import REPOSITORY
from safetensors import safe_open

from kdsteps.cli.main import main
from kdsteps.jobs import code_identity, graph
from kdsteps.study.loading import load_study

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
    rules = [rule for rule in graph.OUTPUTS if rule != "report"]
    waiting = [
        graph.node(study, rule, names) for rule in rules for names in graph.jobs(study, rule)
    ]
    while waiting:
        node = next(node for node in waiting if all(map(Path.exists, files_of(node.inputs))))
        waiting.remove(node)
        outputs = graph.outputs(node.rule, node.names)
        arguments = [graph.stage_of(node.rule), "--settings", node.text, "--inputs"]
        arguments += [*named(node.inputs), "--outputs", *named(outputs)]
        arguments += ["--code", code_identity.code(study, node.rule, node.names)]
        assert main(arguments) == 0, f"{node.rule} {node.names}"
    assert main(["report"]) == 0
    chance = 1 / 4
    for method in ("kd", "means", "confident"):
        run = {"pair": "large-small", "method": method, "seed": "0"}
        found = json.loads(Path(graph.outputs("evaluate", run)["measures"]).read_text())
        assert found["accuracy"] > 1.5 * chance
        assert 0 < found["brier"] < 2
    with safe_open(graph.outputs("distil", run)["model"], framework="pt") as student:
        assert not [key for key in student.keys() if key.startswith("projector")]  # noqa: SIM118
    page = Path(graph.outputs("report", {})["page"]).read_text()
    assert "means" in page and "confident" in page and "Brier score" in page


def named(files: Mapping[str, Any]) -> list[str]:
    """Files as the command takes them: NAME=PATH, a name again for each file of a list."""
    lists = {name: [found] if isinstance(found, str) else found for name, found in files.items()}
    return [f"{name}={path}" for name, paths in lists.items() for path in paths]


def files_of(files: Mapping[str, Any]) -> list[Path]:
    return [Path(argument.partition("=")[2]) for argument in named(files)]
