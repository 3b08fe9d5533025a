"""Every example of docs/own-networks.md works as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdsteps.stages._shared import untrained_model
from kdsteps.study.entries import ModelEntry
from kdsteps.study.resolving import resolve_model

PAGE = (Path(__file__).parents[1] / "docs/own-networks.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


ENTRIES: dict[str, Any] = {
    name: entry
    for block in blocks("yaml")
    for name, entry in yaml.safe_load(block)["models"].items()
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_builds_the_network_it_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file,) = [code for code in blocks("python") if code.startswith("# networks.py")]
    Path("networks.py").write_text(file)
    model = resolve_model(ModelEntry.model_validate(ENTRIES[name]), name)
    chain = untrained_model(model, (3, 32, 32), num_classes=10)
    assert chain.layers
    assert not chain.notes


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_an_example_in_python_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[number]
    exec(compile(code, "own-networks.md", "exec"), {"__name__": "example"})
    printed = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.splitlines() == printed
