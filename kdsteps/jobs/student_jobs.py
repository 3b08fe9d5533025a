"""The jobs of each pair and method: caches, scores, plans, trials, and runs with evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdsteps.jobs.hints import budget, caching, saving
from kdsteps.jobs.inputs import files_digest, weights_digest
from kdsteps.jobs.nodes import Graph
from kdsteps.jobs.outputs import Names, outputs
from kdsteps.jobs.reads import as_teacher, prepared_images, trained_teacher, trained_teachers
from kdsteps.jobs.settings import (
    BuildSettings,
    ChooseSettings,
    DistilSettings,
    EvaluateSettings,
    FeatureSettings,
    LogitSettings,
    ScoreSettings,
    TuneSettings,
)
from kdsteps.study.settings import BuildPairs, FeatureSample, MetricSettings
from kdsteps.study.study import Study
from kdsteps.study.training_settings import DrawSettings, FixedDraws, ViewSettings, name_of
from kdsteps.study.tuning import num_tried


def add_students(graph: Graph) -> set[tuple[str, str]]:
    """Add every job of a pair; return the data sets and teachers that these need."""
    study = graph.study
    teachers: set[tuple[str, str]] = set()
    scored: set[tuple[str, str]] = set()
    caches: dict[tuple[str, str, str], tuple[ViewSettings, int]] = {}
    for name, pair in study.pairs.items():
        taught_by = [(pair.dataset, teacher) for teacher in pair.teacher_names]
        for method, entry in study.methods.items():
            if entry.wants != "nothing":
                teachers.update(taught_by)
            if entry.plan is not None and _add_plan(graph, name, method):
                scored.update(taught_by)
            views = study.views(name, method) if entry.wants in ("logits", "blocks") else None
            if views is not None:
                epochs = study.num_trainings(method) * study.distil(name, method).epochs
                for teacher in taught_by:
                    key = (*teacher, name_of(views))
                    caches[key] = views, caches.get(key, (views, 0))[1] + epochs
            _add_runs(graph, name, method, views)
    for (dataset, teacher_name, views_name), (views, passes) in sorted(
        caches.items(), key=lambda item: item[0]
    ):
        names = {"dataset": dataset, "teacher": teacher_name, "views": views_name}
        found = prepared_images(dataset) | trained_teacher(names) | outputs("train_check", names)
        settings = LogitSettings.model_construct(views=views)
        graph.add("cache_outputs", names, found, settings, caching(study) | {"passes": passes})
    for dataset, teacher_name in sorted(scored):
        _add_scores(graph, dataset, teacher_name)
    return teachers


def _add_plan(graph: Graph, name: str, method: str) -> bool:
    """Add the job that plans one pair and method; return whether it needs scores."""
    study, pair, plan = graph.study, graph.study.pairs[name], graph.study.methods[method].plan
    section = study.build(name, method).of_plan(plan)
    settings = BuildSettings.model_construct(
        plan=plan,
        teacher=study.models[pair.only_teacher],
        student=study.models[pair.student],
        build=section,
    )
    read = {"summary": outputs("prepare", {"dataset": pair.dataset})["summary"]}
    if isinstance(section, BuildPairs):
        by_scores = not isinstance(section.select, tuple) and study.has_labels(name)
    else:
        by_scores = section.cuts == "quality"
    if by_scores:
        read |= outputs("score", {"dataset": pair.dataset, "teacher": pair.only_teacher})
    graph.add("build", {"pair": name, "method": method}, read, settings)
    return by_scores


def _add_runs(graph: Graph, name: str, method: str, views: ViewSettings | None) -> None:
    """Add the training and the evaluation of one pair and method for every seed."""
    study, pair, entry = graph.study, graph.study.pairs[name], graph.study.methods[method]
    recipe = study.distil(name, method)
    data = prepared_images(pair.dataset)
    read: dict[str, Any] = dict(data)
    compared: dict[str, str] = {}
    several = entry.wants != "nothing" and pair.teachers is not None
    if several:
        read |= trained_teachers(pair, views) | outputs("train_audit", {"pair": name})
    elif entry.wants != "nothing":
        teacher = {"dataset": pair.dataset, "teacher": pair.only_teacher}
        read |= as_teacher(outputs("train", teacher)["model"], outputs("train", teacher))
        read |= outputs("train_check", teacher)
        judged = outputs("evaluate_teacher", teacher)
        compared = as_teacher(judged["predictions"], judged)
    if entry.plan is not None:
        read |= outputs("build", {"pair": name, "method": method})
    if views is not None and not several:
        read |= outputs("cache_outputs", teacher | {"views": name_of(views)})
    evaluate = evaluate_settings(study)
    evaluate_text = evaluate.as_text()
    hints = caching(study) | saving(recipe)
    student = study.models[pair.student]
    checkpoint = graph.own_inputs[f"models.{pair.student}"].digest
    own_files = graph.own_inputs[f"methods.{method}"]
    fixed = _fixed_draws(study, name, method)

    def settings_of(rule: str, names: Names) -> DistilSettings:
        return DistilSettings.model_construct(
            student=student,
            method=entry.method,
            options=entry.options,
            distil=recipe,
            seed=int(names["seed"]),
            weights=weights_digest(checkpoint, outputs(rule, names)),
            files=files_digest(own_files, entry.method, outputs(rule, names)),
            combination=pair.combination if several else None,
            tuned=tuple(entry.trials[0]) if entry.trials else (),
            cache=fixed,
        )

    if entry.trials:
        choice = _add_trials(graph, name, method, read, hints, settings_of)
        read = read | {"choice": choice}
    for seed in study.seeds:
        names = {"pair": name, "method": method, "seed": str(seed)}
        graph.add("distil", names, read, settings_of("distil", names), hints)
        if not study.has_labels(name):
            continue  # there is nothing to compare predictions with
        trained = outputs("distil", names)
        judged = data | {"model": trained["model"], "model_digest": trained["digest"]}
        graph.add("evaluate", names, judged | compared, evaluate, text=evaluate_text)


def _add_trials(
    graph: Graph,
    name: str,
    method: str,
    read: dict[str, Any],
    hints: dict[str, int | str],
    settings_of: Callable[[str, Names], DistilSettings],
) -> str:
    """Add the trials of one pair and method for every seed; return the file of the choice."""
    tune, trials = graph.study.params.tune, graph.study.methods[method].trials
    made: list[str] = []
    for place, seed in enumerate(tune.seeds):
        count, earlier = num_tried(len(trials), place, tune.halving), list(made)
        some = count < len(trials)
        for number, values in enumerate(trials, start=1):
            names = {"pair": name, "method": method, "trial": str(number), "seed": str(seed)}
            settings = TuneSettings.model_construct(
                **dict(settings_of("tune", names).with_values(values)),
                values=values,
                survivors=count if some else None,
            )
            found = read | {"earlier": earlier} if some else read
            graph.add("tune", names, found, settings, hints)
            made.append(outputs("tune", names)["trial"])
    names = {"pair": name, "method": method}
    chosen = ChooseSettings.model_construct(trials=trials, seeds=tune.seeds)
    graph.add("tune_choose", names, {"results": made}, chosen)
    return outputs("tune_choose", names)["choice"]


def _add_scores(graph: Graph, dataset: str, teacher: str) -> None:
    params, names = graph.study.params, {"dataset": dataset, "teacher": teacher}
    cached = FeatureSettings.model_construct(cache=FeatureSample.taken_from(params.cache))
    read = prepared_images(dataset) | trained_teacher(names) | outputs("train_check", names)
    graph.add("cache", names, read, cached, budget(graph.study))
    features = outputs("cache", names)
    read = {"features": features["features"], "features_digest": features["digest"]}
    summary = outputs("prepare", {"dataset": dataset})["summary"]
    settings = ScoreSettings.model_construct(score=params.score)
    graph.add("score", names, read | {"summary": summary}, settings)


def evaluate_settings(study: Study) -> EvaluateSettings:
    """How students, and teachers whose images have labels, are evaluated."""
    metrics = MetricSettings.taken_from(study.params.evaluate)
    return EvaluateSettings.model_construct(evaluate=metrics)


def _fixed_draws(study: Study, pair: str, method: str) -> FixedDraws | None:
    """The draws that are fixed, if a student sees them, be it in a trial of `tune`."""
    fixed, recipe = study.params.cache.fixed_draws, study.distil(pair, method)
    trials = [
        recipe.model_copy(
            update={key.removeprefix("distil."): values[key] for key in values if "." in key}
        )
        for values in study.methods[method].trials
    ]
    seen = [each.numbered_views(fixed) for each in (recipe, *trials)]
    return fixed if any(isinstance(each, DrawSettings) for each in seen) else None
