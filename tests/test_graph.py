"""Which jobs a study has, what each reads, and on which values each depends: no other ones."""

from __future__ import annotations

from typing import Any

import pytest
from _commands import NET, STUDY

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.jobs.settings import SETTINGS
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

TEACHER = {"dataset": "digits", "teacher": "big"}


def study(**sections: Any) -> Study:
    return parse_study(STUDY | sections)


def run(method: str, seed: int = 0) -> dict[str, str]:
    return {"pair": "pair", "method": method, "seed": str(seed)}


def all_settings(chosen: Study) -> dict[tuple[str, ...], str]:
    """The settings of every job by its rule and names."""
    return {
        (rule, *names.values()): graph.settings_text(chosen, rule, names)
        for rule in graph.OUTPUTS
        for names in graph.jobs(chosen, rule)
    }


def differing(**sections: Any) -> set[tuple[str, ...]]:
    """The jobs, without the report, whose settings differ from those of the small study."""
    before, after = all_settings(study()), all_settings(study(**sections))
    return {job for job in before if before[job] != after.get(job)} - {("report",)}


def test_every_pair_method_and_seed_is_one_run():
    assert graph.jobs(study(), "distil") == [
        run(method, seed) for method in ("labels", "kd", "block_kd", "fitnet") for seed in (0, 1)
    ]


def test_a_study_of_labels_alone_has_no_teacher():
    alone = study(methods={"labels": {}})
    for rule in ("train", "cache", "score", "build", "evaluate_teacher"):
        assert graph.jobs(alone, rule) == []
    data = {"images", "index", "summary", "images_digest"}
    assert set(graph.inputs(alone, "distil", run("labels"))) == data
    assert set(graph.inputs(alone, "evaluate", run("labels"))) == data | {"model", "model_digest"}


def test_a_pair_is_timed_once_on_one_student_of_each_method():
    assert graph.jobs(study(), "evaluate_latency") == [{"pair": "pair"}]
    found = graph.inputs(study(), "evaluate_latency", {"pair": "pair"})
    students = [graph.outputs("distil", run(method)) for method in sorted(STUDY["methods"])]
    teacher = graph.outputs("train", TEACHER)
    assert found == {
        "students": [files["model"] for files in students],
        "students_digest": [files["digest"] for files in students],
        "teacher": teacher["model"],
        "teacher_digest": teacher["digest"],
    }
    alone = study(methods={"labels": {}})
    read = set(graph.inputs(alone, "evaluate_latency", {"pair": "pair"}))
    assert read == {"students", "students_digest"}


def test_kd_waits_for_its_teacher_and_not_for_scores_or_plans():
    read = set(graph.inputs(study(), "distil", run("kd")))
    assert "teacher" in read
    assert read.isdisjoint({"plan", "scores", "features"})
    assert "plan" in graph.inputs(study(), "distil", run("block_kd"))


def test_scores_are_made_where_a_plan_asks_for_them():
    assert graph.jobs(study(), "score") == []
    by_quality = study(build={"cuts": "quality"})
    assert graph.jobs(by_quality, "score") == [TEACHER]
    names = {"pair": "pair", "method": "block_kd"}
    assert set(graph.inputs(by_quality, "build", names)) == {"summary", "scores"}
    assert set(graph.inputs(study(), "build", names)) == {"summary"}
    assert graph.jobs(study(methods={"feature_only": {}}), "score") == [TEACHER]
    named = study(methods={"feature_only": {}}, build={"select": ["layer1.0"]})
    assert graph.jobs(named, "score") == []


def test_a_teacher_of_two_pairs_is_trained_once():
    pairs = dict.fromkeys(("one", "other"), STUDY["pairs"]["pair"])
    assert graph.jobs(study(pairs=pairs), "train") == [TEACHER]


@pytest.mark.parametrize(
    ("sections", "jobs"),
    [
        ({"report": {"title": "Other"}}, set()),
        ({"seeds": [0, 1, 2]}, set()),
        ({"methods": STUDY["methods"] | {"dkd": {}}}, {("evaluate_latency", "pair")}),
        ({"score": {"num_layers": 2}}, set()),
        ({"train": STUDY["train"] | {"checkpoint_minutes": 1.0}}, set()),
        ({"prepare": {"seed": 1}}, {("prepare", "digits")}),
        ({"train": STUDY["train"] | {"seed": 1}}, {("train", "digits", "big")}),
        ({"build": {"num_stones": 2}}, {("build", "pair", "block_kd")}),
        (
            {"methods": STUDY["methods"] | {"kd": {"temperature": 2.0}}},
            {("distil", "pair", "kd", "0"), ("distil", "pair", "kd", "1")},
        ),
        (
            {"evaluate": {"calibration_bins": 10}},
            {("evaluate_teacher", "digits", "big")}
            | {
                ("evaluate", "pair", method, seed)
                for method in STUDY["methods"]
                for seed in ("0", "1")
            },
        ),
        ({"evaluate": {"latency_runs": 10}}, {("evaluate_latency", "pair")}),
        (
            {"models": {"big": NET | {"depth": 14}, "small": NET}},
            {("train", "digits", "big"), ("build", "pair", "block_kd")},
        ),
    ],
)
def test_a_changed_value_changes_exactly_the_jobs_that_read_it(sections, jobs):
    assert differing(**sections) == jobs


def test_a_default_that_is_written_out_changes_nothing():
    spelt_out = {"methods": STUDY["methods"] | {"kd": {"temperature": 4}}, "evaluate": {}}
    assert differing(**spelt_out) == set()


def test_overrides_reach_the_runs_they_belong_to_and_the_nearest_wins():
    pairs = {"pair": STUDY["pairs"]["pair"] | {"distil": {"epochs": 2, "flip": True}}}
    methods = {"kd": {"distil": {"epochs": 3}}, "labels": {}}
    chosen = study(pairs=pairs, methods=methods)
    kd = graph.settings(chosen, "distil", run("kd")).distil
    labels = graph.settings(chosen, "distil", run("labels")).distil
    assert (kd.epochs, kd.flip) == (3, True)
    assert (labels.epochs, labels.flip) == (2, True)


def test_settings_are_one_text_that_reads_back_for_every_rule():
    chosen = study(methods=STUDY["methods"] | {"feature_only": {}})
    for rule, kind in SETTINGS.items():
        for names in graph.jobs(chosen, rule):
            text = graph.settings_text(chosen, rule, names)
            assert "\n" not in text
            assert kind.model_validate_json(text, strict=True) == graph.settings(
                chosen, rule, names
            )


def test_names_are_the_wildcards_of_the_paths_in_their_order():
    assert graph.names_of("distil") == ("pair", "method", "seed")
    assert graph.names_of("cache_outputs") == ("dataset", "teacher", "views")
    assert graph.names_of("report") == ()


def test_files_that_snakemake_need_not_read_change_with_another_input_of_the_same_job():
    chosen = study(methods=STUDY["methods"] | {"feature_only": {}})
    for rule in graph.OUTPUTS:
        for names in graph.jobs(chosen, rule):
            node = graph.node(chosen, rule, names)
            watched = node.inputs.keys() - node.covered
            together = {"index", "summary"} if "images_digest" in watched else set()
            for name in (node.inputs.keys() & node.covered) - together - {"check"}:
                assert rule == "report" or f"{name}_digest" in watched
            large = {name for name, path in node.inputs.items() if str(path).endswith(LARGE)}
            assert large <= node.covered, (rule, names)


LARGE = (".npy", ".safetensors", "features.parquet", "predictions.parquet")


def test_every_file_of_a_study_is_named_once():
    paths = [path for stage in graph.STAGES for path in graph.all_outputs(study(), stage)]
    assert len(paths) == len(set(paths))


def test_what_one_job_reads_another_writes():
    chosen = study(build={"cuts": "quality"})
    written = {path for stage in graph.STAGES for path in graph.all_outputs(chosen, stage)}
    for rule in graph.OUTPUTS:
        for names in graph.jobs(chosen, rule):
            for found in graph.inputs(chosen, rule, names).values():
                assert set([found] if isinstance(found, str) else found) <= written


@pytest.mark.parametrize(
    ("rule", "names", "sentence"),
    [
        (
            "distil",
            run("kdd"),
            "--method: this study has no distil job for 'kdd'; did you mean 'kd'?",
        ),
        ("distil", run("kd", 7), "--seed: this study has no distil job for '7'; there are 0, 1"),
        (
            "train",
            {"dataset": "digits", "teacher": "small"},
            "--teacher: this study has no train job for 'small'; there is only big",
        ),
        (
            "score",
            TEACHER,
            "this study has no score job; name a method in params.yaml that needs one",
        ),
    ],
)
def test_a_job_that_the_study_has_not_is_refused(rule, names, sentence):
    with pytest.raises(KdstepsError) as raised:
        graph.check_names(study(), rule, names)
    assert str(raised.value) == sentence


def test_names_that_do_not_go_together_are_refused():
    sets = {name: {"kind": "digits", "size": 8} for name in ("one", "two")}
    pairs = {
        "a": {"dataset": "one", "teacher": "big", "student": "small"},
        "b": {"dataset": "two", "teacher": "small", "student": "small"},
    }
    chosen = study(datasets=sets, pairs=pairs)
    graph.check_names(chosen, "train", {"dataset": "two", "teacher": "small"})
    with pytest.raises(KdstepsError) as raised:
        graph.check_names(chosen, "train", {"dataset": "one", "teacher": "small"})
    assert str(raised.value) == (
        "this study has no train job for one with small; it has one with big, two with small"
    )
