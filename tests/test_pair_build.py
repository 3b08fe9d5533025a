"""Values of the section `build` that differ for one pair: whose they are, and what they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _commands import DATA, STUDY, TEACHER, write_study

from kdsteps.cli.main import main
from kdsteps.errors import KdstepsError
from kdsteps.files.columns import SCORES
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.study.loading import parse_study
from kdsteps.study.schema import study_schema
from kdsteps.study.study import Study

NAMED = {"select": ["layer1.0", "layer2.0"], "student_layers": ["layer2.0", "layer3.0"]}
PAIR = STUDY["pairs"]["pair"]


def study(build: dict[str, Any], **methods: dict[str, Any]) -> Study:
    """Two pairs, one of them with a section `build` of its own."""
    pairs = {"plain": PAIR, "own": PAIR | {"build": build}}
    return parse_study(STUDY | {"pairs": pairs, "methods": methods or {"feature_only": {}}})


def build_of(chosen: Study, pair: str, method: str = "feature_only") -> Any:
    """The section `build` of a job."""
    return graph.settings(chosen, "build", {"pair": pair, "method": method}).build


def test_a_pair_may_build_otherwise_than_the_others():
    chosen = study(NAMED)
    assert build_of(chosen, "own").select == ("layer1.0", "layer2.0")
    assert build_of(chosen, "plain").select is None
    assert build_of(chosen, "own").projector == build_of(chosen, "plain").projector


def test_what_a_method_says_goes_before_what_its_pair_says():
    chosen = study(NAMED, picked={"method": "feature_only", "build": {"select": "efficiency"}})
    assert build_of(chosen, "own", "picked").select == "efficiency"
    assert build_of(chosen, "own", "picked").student_layers == ("layer2.0", "layer3.0")


def test_a_pair_with_named_layers_waits_for_no_scores():
    chosen = study(NAMED)
    reads = {
        pair: set(graph.inputs(chosen, "build", {"pair": pair, "method": "feature_only"}))
        for pair in ("own", "plain")
    }
    assert "scores" in reads["plain"] - reads["own"]


def test_a_teacher_of_named_layers_alone_is_not_scored():
    pairs = {"own": PAIR | {"build": NAMED}}
    chosen = parse_study(STUDY | {"pairs": pairs, "methods": {"feature_only": {}}})
    assert graph.jobs(chosen, "score") == []
    assert len(graph.jobs(chosen, "train")) == 1


def test_a_student_of_fewer_layers_learns_from_the_best_of_those_selected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build = {"student_layers": ["layer1.0", "layer3.0"]}
    sections = {"pairs": {"pair": PAIR | {"build": build}}, "methods": {"feature_only": {}}}
    write_study(tmp_path, **sections, score={"num_layers": 3})
    assert main(["prepare", *DATA]) == 0
    for stage in ("train", "cache", "score"):
        assert main([stage, *TEACHER]) == 0
    assert main(["build", "--pair", "pair", "--method", "feature_only"]) == 0
    scores = read_table(Path("results/score/digits/big/scores.parquet"), SCORES).to_pylist()
    assert sum(row["chosen"] for row in scores) == 3
    plan = read_json(Path("results/build/pair/feature_only/plan.json"))
    best = [row["layer"] for row in scores if row["rank"] <= 2]
    assert [pair["teacher_layer"] for pair in plan["pairs"]] == best
    assert [pair["student_layer"] for pair in plan["pairs"]] == build["student_layers"]
    assert plan["chosen_by"] == "the 2 highest of those selected by the stage score"


def test_a_misspelt_key_of_a_pairs_build_is_told_with_its_place():
    with pytest.raises(KdstepsError, match=r"pairs\.own\.build\.selekt is an unknown key"):
        study({"selekt": "quality"})


def test_editors_know_what_may_stand_under_a_pairs_build():
    values = study_schema()["$defs"]["Pair"]["properties"]
    assert values["build"] != values["distil"]
    assert {"$ref": "#/$defs/Build"} in values["build"]["anyOf"]
