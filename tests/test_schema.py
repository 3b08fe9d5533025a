"""The JSON schema of params.yaml: editors accept what kdsteps accepts and mark what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from _commands import NET, STUDY

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.schema import study_schema
from kdsteps.study.study import parse_study
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
    ],
)
def test_what_kdsteps_accepts_fits(validator, sections):
    parse_study(STUDY | sections)
    assert list(validator.iter_errors(STUDY | sections)) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"sedes": [0]},
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


def test_the_command_prints_it(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == study_schema()
