"""What a job may know without resting on it: hints decide what is kept, never what comes out."""

from __future__ import annotations

from typing import Any

import pytest
from _commands import STUDY

from kdsteps.jobs import graph
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

AUGMENTED = {"distil": STUDY["distil"] | {"crop_padding": 4, "flip": True, "epochs": 7}}


def study(**sections: Any) -> Study:
    return parse_study(STUDY | AUGMENTED | sections)


def run(method: str, seed: int = 0) -> graph.Names:
    return {"pair": "pair", "method": method, "seed": str(seed)}


def ticket(of: Study) -> graph.Names:
    (found,) = graph.jobs(of, "cache_outputs")
    return found


def test_runs_that_look_logits_up_wait_for_one_ticket_and_others_for_none():
    given = study()
    path = graph.outputs("cache_outputs", ticket(given))["ticket"]
    assert path == "results/cache/digits/big/outputs_crop4_flip_batch256.json"
    tickets = {m: graph.inputs(given, "distil", run(m)).get("ticket") for m in given.methods}
    assert tickets == {"labels": None, "kd": path, "block_kd": path, "fitnet": None}


@pytest.mark.parametrize("beyond", [{"mixup": 0.2}, {"cutmix": 1}, {"randaugment": 5}])
def test_where_views_cannot_be_numbered_there_is_no_ticket(beyond):
    given = study(distil=AUGMENTED["distil"] | beyond)
    assert graph.jobs(given, "cache_outputs") == []
    assert "ticket" not in graph.inputs(given, "distil", run("kd"))


def test_every_way_to_see_the_images_has_a_ticket_of_its_own():
    methods = {
        "kd": {},
        "again": {"method": "kd", "distil": {"crop_padding": 0, "flip": False}},
        "half": {"method": "kd", "distil": {"precision": "bfloat16"}},
    }
    views = [names["views"] for names in graph.jobs(study(methods=methods), "cache_outputs")]
    assert sorted(views) == [
        "crop4_flip_batch256",
        "crop4_flip_bfloat16_batch256",
        "plain_batch256",
    ]


def test_the_passes_of_all_runs_that_look_up_count():
    few, many = study(), study(seeds=[0, 1, 2, 3])
    assert graph.hints(few, "cache_outputs", ticket(few))["passes"] == 2 * 2 * 7
    assert graph.hints(many, "cache_outputs", ticket(many))["passes"] == 2 * 4 * 7


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [0, 1, 2]},
        {"cache": {"outputs": "never"}},
        {"cache": {"budget_gib": 0.5}},
        {"train": STUDY["train"] | {"checkpoint_minutes": 0.5}},
        {"distil": AUGMENTED["distil"] | {"checkpoint_minutes": 0.5}},
    ],
)
def test_no_job_runs_again_because_of_a_hint(change):
    before, after = study(), study(**change)
    for rule in ("train", "cache", "cache_outputs", "distil"):
        for names in graph.jobs(before, rule):
            assert graph.settings_text(before, rule, names) == graph.settings_text(
                after, rule, names
            )
            assert graph.inputs(before, rule, names) == graph.inputs(after, rule, names)


def test_hints_are_words_and_whole_numbers_which_reach_the_jobs_of_a_cluster_unchanged():
    given = study(cache={"budget_gib": 0.0001}, methods={"kd": {}, "feature_only": {}})
    for rule in ("train", "cache", "cache_outputs", "distil"):
        hints = graph.hints(given, rule, graph.jobs(given, rule)[0])
        assert hints
        assert all(type(value) is int or str(value).isalpha() for value in hints.values())
        assert all(value > 0 for value in hints.values() if type(value) is int)
