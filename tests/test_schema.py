"""The JSON schema of params.yaml: editors accept what kdsteps accepts and mark what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _commands import NET, STUDY

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.loading import parse_study
from kdsteps.study.schema import study_schema
from kdsteps.study.yaml_text import read_yaml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[1]
STUDIES = [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_that_come_with_kdsteps_fit(validator, path):
    assert list(validator.iter_errors(read_yaml(path.read_text()))) == []


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"evaluate": None, "methods": {"kd": None}},
        {"methods": {"mild": {"method": "kd", "temperature": 2}}},
        {"methods": {"kd": {"method": "dkd", "alpha": 2.0}}},
        {"methods": {"kd": {"distil": {"epochs": 3}, "build": None}}},
        {"models": {"big": NET | {"train": {"epochs": 3}, "checkpoint": "a.pt"}, "small": NET}},
        {
            "models": {
                "big": {"family": "timm", "name": "resnet18", "drop_rate": 0.1},
                "small": NET,
            }
        },
        {"build": {"cuts": [["layer1.0", "layer1.0"]]}},
        {"loggers": None},
        {"loggers": {"tensorboard": None, "here": {"logger": "tensorboard", "folder": "boards"}}},
        {"models": {"big": NET | {"normalize": "none", "expected_accuracy": 0.9}, "small": NET}},
        {"models": {"big": NET | {"classes": ["a", "b"], "checkpoint_key": "x"}, "small": NET}},
    ],
)
def test_what_kdsteps_accepts_fits(validator, sections):
    parse_study(STUDY | sections)
    assert list(validator.iter_errors(STUDY | sections)) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"sedes": [0]},
        {"loggers": {"tensorboard": {"foldr": "x"}}},
        {"loggers": {"mine": {}}},
        {"seeds": []},
        {"seeds": [-1]},
        {"distil": {"epoch": 3}},
        {"distil": {"epochs": 0}},
        {"distil": {"epochs": "3"}},
        {"methods": {"kd": {"temperature": 0}}},
        {"methods": {"kd": {"temprature": 2}}},
        {"methods": {"kd": {"method": "dkd", "temprature": 2.0}}},
        {"methods": {"mild": {"method": "kd", "temprature": 2}}},
        {"methods": {"mild": {"temperature": 2}}},
        {"methods": {"kd": {"distil": {"epoch": 3}}}},
        {"models": {"big": NET | {"dept": 8}, "small": NET}},
        {"models": {"big": NET | {"family": "cifar"}, "small": NET}},
        {"datasets": {"digits": {"kind": "digits", "size": 7}}},
        {"datasets": {"digits": {"size": 8}}},
        {"pairs": {"pair": {"dataset": "digits"}}},
        {"pairs": {"pair": STUDY["pairs"]["pair"] | {"distil": {"epoch": 3}}}},
        {"pairs": {"pair": STUDY["pairs"]["pair"] | {"build": {"cut": "stages"}}}},
    ],
)
def test_what_kdsteps_refuses_does_not_fit(validator, sections):
    with pytest.raises(KdstepsError):
        parse_study(STUDY | sections)
    assert list(validator.iter_errors(STUDY | sections))


def test_every_part_is_offered_with_its_options():
    schema = study_schema()["properties"]
    assert set(schema["methods"]["properties"]) == set(registry.names("methods"))
    families = schema["models"]["additionalProperties"]
    assert families["properties"]["family"]["enum"] == list(registry.names("models"))
    offered = {
        option["if"]["properties"]["family"]["const"]: set(option["then"]["properties"])
        for option in families["allOf"]
    }
    assert offered["cifar_resnet"] >= {"family", "depth", "widths", "train", "checkpoint"}


def _properties(schema: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every property that a schema describes, with its place; conditions describe nothing."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from _properties(item, f"{place}[{number}]")
    if isinstance(schema, dict):
        for name, inner in schema.items():
            if name == "properties":
                yield from ((f"{place}.{key}", value) for key, value in inner.items())
                inner = list(inner.values())
            if name not in ("if", "default", "enum"):
                yield from _properties(inner, f"{place}/{name}")


def test_every_key_is_described():
    found = dict(_properties(study_schema()))
    assert len(found) > 400  # options of methods, families and kinds among them
    assert [place for place, key in found.items() if not key.get("description", "").strip()] == []


def test_an_option_is_described_as_its_docstring_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        '''
def load(path: str, shade: float = 1.0, *, tint: int = 0):
    """Images of mine.

    Args:
        path: Where they are,
            on disk.
        shade, tint (int): How dark.

    Returns:
        nothing: of use
    """
'''
    )
    schema = registry.find("data", "./mine.py:load", "here").json_schema
    assert schema["description"] == "Images of mine."
    told = {name: option["description"] for name, option in schema["properties"].items()}
    assert told == {"path": "Where they are, on disk.", "shade": "How dark.", "tint": "How dark."}


def test_an_inherited_option_keeps_the_description_of_its_base():
    properties = registry.find("methods", "kd", "here").json_schema["properties"]
    assert properties["weight"]["default"] == 0.9  # declared in KD, described in Weighted
    assert "loss" in properties["weight"]["description"]


def test_the_command_prints_it(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == study_schema()
