"""Every recipe is a study whose jobs are known, and says what its title promises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdsteps.jobs import graph
from kdsteps.models import Chain, architecture, build_model
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.plans.stones import plan_stones
from kdsteps.study import registry
from kdsteps.study.joints import pair_stages
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.study import Study
from kdsteps.teachers.features import forecast_bytes

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml")}
BENCHMARK = ("cifar100-same-family", "cifar100-different-families")
LOGIT_FREE = ("logit-free-cifar10", "logit-free-cifar100", "logit-free-tiny-imagenet")
ON_FASHION = ("fashion-mnist-all-methods", "layer-sweep")

IMAGE_SIZES = {"digits": 8, "fashion": 28, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}

# of the table of the benchmark, as published
SAME_FAMILY = {
    "wrn40-2-wrn16-2", "wrn40-2-wrn40-1", "resnet56-resnet20", "resnet110-resnet20",
    "resnet110-resnet32", "resnet32x4-resnet8x4", "vgg13-vgg8",
}  # fmt: skip
DIFFERENT_FAMILIES = {
    "vgg13-mobilenetv2", "resnet50-mobilenetv2", "resnet50-vgg8", "resnet32x4-shufflenetv1",
    "resnet32x4-shufflenetv2", "wrn40-2-shufflenetv1",
}  # fmt: skip


def recipe(name: str) -> Study:
    return load_study(RECIPES[name])


def settings_of_jobs(study: Study) -> dict[str, dict[str, Any]]:
    """The settings of every job, by its rule and names."""
    return {
        f"{rule} {sorted(names.items())}": graph.settings(study, rule, names).as_json()
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    }


def without_what_differs(study: Study, *sections: str) -> dict[str, Any]:
    """The study without some sections and without its title."""
    left = {name: value for name, value in study.described.items() if name not in sections}
    return left | {"report": None}


def network(study: Study, name: str, image_size: int) -> Chain:
    """A network of the study with weights as they fall."""
    model = study.models[name]
    options = architecture(model.options)
    return build_model(
        model.family, num_classes=10, in_channels=3, image_size=image_size, **options
    )


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_order_of_keys_has_no_effect_on_jobs(name):
    study = recipe(name)
    again = parse_study(json.loads(json.dumps(study.described, sort_keys=True)))
    assert settings_of_jobs(again) == settings_of_jobs(study)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_job_of_a_recipe_knows_its_settings_and_files(name):
    study = recipe(name)
    made = {path for rule in graph.OUTPUTS for path in all_paths(study, rule)}
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            assert json.loads(graph.settings_text(study, rule, names))
            for files in graph.inputs(study, rule, names).values():
                assert made.issuperset(files if isinstance(files, list) else [files])
    assert len(graph.jobs(study, "distil")) == (
        len(study.pairs) * len(study.methods) * len(study.seeds)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"logit-free-cifar10"}))
def test_features_that_a_recipe_keeps_fit_into_its_budget(name):
    # one of two recipes with the same teachers, image size and budget is enough
    study = recipe(name)
    cache = study.params.cache
    for job in graph.jobs(study, "cache"):
        dataset = study.datasets[job["dataset"]]
        size = dataset.options.get("resize") or IMAGE_SIZES[job["dataset"]]
        found = feature_shapes(network(study, job["teacher"], size).eval(), (3, size, size))
        assert forecast_bytes(found, cache.images) <= cache.budget_gib * 2**30


def all_paths(study: Study, rule: str) -> list[str]:
    return [
        path for names in graph.jobs(study, rule) for path in graph.outputs(rule, names).values()
    ]


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("cifar100-same-family", SAME_FAMILY), ("cifar100-different-families", DIFFERENT_FAMILIES)],
)
def test_pairs_of_the_benchmark_bear_the_names_of_the_published_table(name, pairs):
    study = recipe(name)
    assert set(study.pairs) == pairs <= set(registry.published_pairs())
    for pair_name, pair in study.pairs.items():
        assert pair.published == pair_name == f"{pair.teacher}-{pair.student}"


@pytest.mark.parametrize("name", BENCHMARK)
def test_a_recipe_of_the_benchmark_says_how_many_runs_it_has(name):
    (said,) = re.findall(r"^# For a GPU: (\d+) runs", RECIPES[name].read_text(), re.MULTILINE)
    assert int(said) == len(graph.jobs(recipe(name), "distil"))


def test_both_halves_of_the_benchmark_have_one_recipe_for_training():
    same, different = (
        without_what_differs(recipe(name), "models", "pairs", "cache") for name in BENCHMARK
    )
    assert same == different
    shared = recipe(BENCHMARK[0]).models.keys() & recipe(BENCHMARK[1]).models.keys()
    assert shared == {"wrn40-2", "resnet32x4", "vgg13", "vgg8"}
    for name in shared:
        assert recipe(BENCHMARK[0]).models[name] == recipe(BENCHMARK[1]).models[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARK)
def test_stones_of_the_benchmark_are_cut_at_the_stages_of_every_pair(name):
    study = recipe(name)
    models = {entry: network(study, entry, 32).eval() for entry in study.models}
    for pair in study.pairs.values():
        teacher, student = models[pair.teacher], models[pair.student]
        joints = pair_stages(teacher, student, None)
        stones = plan_stones(teacher, student, (3, 32, 32), joints, "conv_norm")
        assert [stone["teacher_layer"] for stone in stones] == list(teacher.stages)
        assert len(stones) == len(student.stages)


@pytest.mark.parametrize("name", BENCHMARK)
def test_mobile_students_of_the_benchmark_learn_at_a_fifth_of_the_rate(name):
    for names in graph.jobs(study := recipe(name), "distil"):
        student = study.pairs[names["pair"]].student
        distil = graph.settings(study, "distil", names).distil
        if names["method"] == "feature_only":  # the recipe of its paper, for all students
            assert (distil.optimizer, distil.learning_rate) == ("adamw", 0.0075)
            continue
        slow = student.startswith(("mobilenet", "shufflenet"))
        assert (distil.optimizer, distil.learning_rate) == ("sgd", 0.01 if slow else 0.05)


@pytest.mark.parametrize("name", [*BENCHMARK, "fashion-mnist-all-methods"])
def test_comparisons_of_all_methods_leave_none_out(name):
    assert set(recipe(name).methods) >= set(registry.names("methods"))


def test_logit_free_studies_differ_in_their_images_alone():
    first, *others = (
        without_what_differs(recipe(name), "datasets", "models", "pairs", "cache")
        for name in LOGIT_FREE
    )
    assert all(other == first for other in others)
    small, same_size, large = (recipe(name).params.cache for name in LOGIT_FREE)
    assert small == same_size
    assert small.images == large.images


@pytest.mark.parametrize("name", LOGIT_FREE)
def test_every_logit_free_pair_is_there_as_intended_and_as_coded(name):
    study = recipe(name)
    intended = {pair for pair in study.pairs if not pair.endswith("-as_coded")}
    assert len(intended) == 4
    assert set(study.pairs) == intended | {f"{pair}-as_coded" for pair in intended}
    for pair in intended:
        one, other = ({"pair": p, "method": "feature_only"} for p in (pair, f"{pair}-as_coded"))
        chosen, named = (graph.settings(study, "build", names).build for names in (one, other))
        assert chosen.select == "quality"
        assert chosen.num_pairs == len(named.select) == 4
        slow, fast = (
            graph.settings(study, "distil", names | {"seed": "0"}).distil.learning_rate
            for names in (one, other)
        )
        assert slow < fast


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_size"), list(zip(LOGIT_FREE, (32, 32, 64), strict=True)))
def test_layers_that_logit_free_studies_name_are_there(name, image_size):
    study = recipe(name)
    models = {entry: network(study, entry, image_size) for entry in study.models}
    for pair_name, pair in study.pairs.items():
        names = {"pair": pair_name, "method": "feature_only"}
        build = graph.settings(study, "build", names).build
        teacher, student = models[pair.teacher], models[pair.student]
        named = isinstance(build.select, tuple)
        planned = plan_pairs(
            teacher,
            student,
            (3, image_size, image_size),
            student_layers=build.student_layers,
            teacher_layers=build.select if named else teacher.layers[-4:],
            projector=build.projector,
        )
        assert len(planned) == 4


def test_the_layer_sweep_teaches_each_layer_of_the_teacher_alone():
    study = recipe("layer-sweep")
    (pair,) = study.pairs.values()
    teacher, student = (network(study, name, 14) for name in (pair.teacher, pair.student))
    builds = [graph.settings(study, "build", n).build for n in graph.jobs(study, "build")]
    alone = [build for build in builds if isinstance(build.select, tuple)]
    assert [build.select for build in alone] == [(layer,) for layer in teacher.layers]
    assert {build.student_layers for build in alone} == {student.stages[-1:]}
    scored = {"dataset": pair.dataset, "teacher": pair.teacher}
    assert graph.jobs(study, "score") == [scored]  # what accuracy is held against


def test_both_studies_of_fashion_mnist_share_images_and_networks():
    one, other = (recipe(name) for name in ON_FASHION)
    for section in ("datasets", "models", "pairs", "prepare", "train", "cache"):
        assert getattr(one.params, section) == getattr(other.params, section)
