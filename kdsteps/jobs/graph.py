"""Which jobs a study consists of: what each reads, writes and depends on, and nothing else.

The settings of a job are one JSON text with exactly the values it reads. It is the job's argument,
the reason to run it again and the key of its result, all at once, so whatever does not stand in it
cannot make a job run again.
"""

from __future__ import annotations

import json
from typing import Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.settings import (
    Build,
    Distil,
    Pair,
    Study,
    Train,
    Training,
    dataset_entry,
    merge,
    method_entry,
    model_entry,
)

STAGES = ("prepare", "train", "cache", "score", "build", "distil", "evaluate", "report")

Names = dict[str, str]
"""What tells one job of a rule from another: the wildcards of its paths."""

OUTPUTS: dict[str, dict[str, str]] = {
    "prepare": {
        "images": "results/prepare/{dataset}/images.npy",
        "index": "results/prepare/{dataset}/index.parquet",
        "summary": "results/prepare/{dataset}/summary.json",
    },
    "train": {
        "model": "results/train/{dataset}/{teacher}/teacher.safetensors",
        "history": "results/train/{dataset}/{teacher}/history.parquet",
    },
    "cache": {"features": "results/cache/{dataset}/{teacher}/features.parquet"},
    "cache_outputs": {"ticket": "results/cache/{dataset}/{teacher}/outputs_{views}.json"},
    "score": {"scores": "results/score/{dataset}/{teacher}/scores.parquet"},
    "build": {"plan": "results/build/{pair}/{method}/plan.json"},
    "distil": {
        "model": "results/distil/{pair}/{method}/{seed}/student.safetensors",
        "history": "results/distil/{pair}/{method}/{seed}/history.parquet",
    },
    "evaluate": {
        "measures": "results/evaluate/students/{pair}/{method}/{seed}/measures.json",
        "predictions": "results/evaluate/students/{pair}/{method}/{seed}/predictions.parquet",
    },
    "evaluate_teacher": {
        "measures": "results/evaluate/teachers/{dataset}/{teacher}/measures.json",
        "predictions": "results/evaluate/teachers/{dataset}/{teacher}/predictions.parquet",
    },
    "report": {
        "page": "results/report/index.html",
        "runs": "results/report/runs.parquet",
        "metrics": "results/report/metrics.json",
        "accuracy": "results/report/accuracy.png",
        "curves": "results/report/curves.png",
        "quality": "results/report/quality.png",
        "size": "results/report/size.png",
        "accuracy_table": "results/report/plots/accuracy.csv",
        "curves_table": "results/report/plots/curves.csv",
        "quality_table": "results/report/plots/quality.csv",
    },
}
"""Every file of every rule, by the name the stage's command knows it by."""


def stage_of(rule: str) -> str:
    """The stage a rule belongs to: `evaluate_teacher` is the stage `evaluate`."""
    return rule.split("_")[0]


def outputs(rule: str, names: Names | None = None) -> dict[str, str]:
    """The files a job writes; with no names, the patterns of its rule."""
    patterns = OUTPUTS[rule]
    return dict(patterns) if names is None else {k: v.format(**names) for k, v in patterns.items()}


def inputs(study: Study, rule: str, names: Names) -> dict[str, Any]:
    """The files a job reads, by the name the stage's command knows them by."""
    if rule == "prepare":
        return {}
    if rule == "report":
        return _report_inputs(study)
    if "pair" not in names:
        return _teacher_inputs(rule, names)
    pair = _pair(study, names)
    data = outputs("prepare", {"dataset": pair.dataset})
    teacher = {"dataset": pair.dataset, "teacher": pair.teacher}
    wants, plan = _method(study, names["method"], "wants"), _method(study, names["method"], "plan")
    if rule == "build":
        found = {"summary": data["summary"]}
        return found | (outputs("score", teacher) if _plan_needs_scores(study, names) else {})
    if rule == "evaluate":
        found = data | {"model": outputs("distil", names)["model"]}
        if wants != "nothing":
            found["teacher"] = outputs("evaluate_teacher", teacher)["predictions"]
        return found
    found = dict(data)
    if wants != "nothing":
        found["teacher"] = outputs("train", teacher)["model"]
    if plan is not None:
        found["plan"] = outputs("build", names)["plan"]
    if (lookup := _lookup(study, names)) is not None:
        found["ticket"] = outputs("cache_outputs", lookup)["ticket"]
    return found


def hints(study: Study, rule: str, names: Names) -> dict[str, int | str]:
    """What a job may know although its result does not rest on it: no reason to run it again.

    Returns:
        Options of its command by name: how often progress is saved; whether the teacher's answers
        are to be kept, what that may cost, and how many passes over the training images are made
        with them, in all runs of the study together.
    """
    budget: dict[str, int | str] = {"budget_mib": max(1, round(1024 * study.cache.budget_gib))}
    keep = budget | {"keep": study.cache.outputs}
    if rule == "cache":
        return budget
    if rule == "train":
        return _saving(_train_section(study, names["teacher"]))
    if rule == "distil":
        return keep | _saving(_distil_section(study, names))
    if rule == "cache_outputs":
        runs = [run for run in jobs(study, "distil") if _lookup(study, run) == names]
        return keep | {"passes": sum(_distil_section(study, run).epochs for run in runs)}
    return {}


def settings(study: Study, rule: str, names: Names) -> dict[str, Any]:
    """What a job reads of params.yaml, with every default filled in, and nothing else."""
    return _SETTINGS[rule](study, names)


def settings_text(study: Study, rule: str, names: Names) -> str:
    """The settings of a job as the one text that decides whether it runs again."""
    return json.dumps(settings(study, rule, names), sort_keys=True)


def jobs(study: Study, rule: str) -> list[Names]:
    """The names of every job of a rule that the study needs."""
    runs = [
        {"pair": pair, "method": method, "seed": str(seed)}
        for pair in study.pairs
        for method in study.methods
        for seed in study.seeds
    ]
    if rule == "report":
        return [{}]
    if rule in ("distil", "evaluate"):
        return runs
    if rule == "prepare":
        return [{"dataset": name} for name in _used(study, "dataset")]
    if rule == "build":
        return [
            {"pair": pair, "method": method}
            for pair in study.pairs
            for method in study.methods
            if _method(study, method, "plan") is not None
        ]
    if rule == "cache_outputs":
        lookups = [lookup for run in runs if (lookup := _lookup(study, run)) is not None]
        return [dict(items) for items in sorted({tuple(lookup.items()) for lookup in lookups})]
    taught = [name for name in study.methods if _method(study, name, "wants") != "nothing"]
    scored = [
        {"pair": pair, "method": method}
        for pair in study.pairs
        for method in taught
        if _method(study, method, "plan")
        and _plan_needs_scores(study, {"pair": pair, "method": method})
    ]
    pairs = {
        "train": study.pairs if taught else [],
        "evaluate_teacher": study.pairs if taught else [],
    }
    chosen = pairs.get(rule, [names["pair"] for names in scored])
    found = {(study.pairs[name].dataset, study.pairs[name].teacher) for name in chosen}
    return [{"dataset": dataset, "teacher": teacher} for dataset, teacher in sorted(found)]


def all_outputs(study: Study, stage: str) -> list[str]:
    """Every file the study needs of a stage."""
    rules = [rule for rule in OUTPUTS if stage_of(rule) == stage]
    return [
        path
        for rule in rules
        for names in jobs(study, rule)
        for path in outputs(rule, names).values()
    ]


def check_names(study: Study, rule: str, names: Names) -> None:
    """Raise a sentence if there is no such job, as when a command asks for it by hand."""
    there = jobs(study, rule)
    if not there:
        raise KdstepsError(
            f"this study has no {stage_of(rule)} job; name a method in params.yaml that needs one"
        )
    for key, value in names.items():
        choices = list(dict.fromkeys(job[key] for job in there))
        if value not in choices:
            hint = nearest(value, choices)
            raise KdstepsError(f"--{key}: {value!r} is not in this study{hint}")
    if names not in there:
        asked = " with ".join(names.values())
        known = ", ".join(" with ".join(job[key] for key in names) for job in there)
        raise KdstepsError(f"this study has no {stage_of(rule)} job for {asked}; there are {known}")


def _teacher_inputs(rule: str, names: Names) -> dict[str, Any]:
    data = outputs("prepare", {"dataset": names["dataset"]})
    if rule == "train":
        return data
    if rule == "score":
        return outputs("cache", names) | {"summary": data["summary"]}
    return data | {"model": outputs("train", names)["model"]}


def _report_inputs(study: Study) -> dict[str, Any]:
    """Every measure, history, plan and score, each kind as one list."""
    wanted = {
        "summaries": ("prepare", "summary"),
        "teacher_histories": ("train", "history"),
        "teacher_measures": ("evaluate_teacher", "measures"),
        "teacher_predictions": ("evaluate_teacher", "predictions"),
        "scores": ("score", "scores"),
        "plans": ("build", "plan"),
        "histories": ("distil", "history"),
        "measures": ("evaluate", "measures"),
        "predictions": ("evaluate", "predictions"),
    }
    return {
        name: [outputs(rule, names)[file] for names in jobs(study, rule)]
        for name, (rule, file) in wanted.items()
    }


def _prepare(study: Study, names: Names) -> dict[str, Any]:
    kind, options = dataset_entry(study.datasets[names["dataset"]], f"datasets.{names['dataset']}")
    return {"kind": kind, "options": options, "prepare": study.prepare.model_dump(mode="json")}


def _train(study: Study, names: Names) -> dict[str, Any]:
    section = _train_section(study, names["teacher"])
    return {"model": _model(study, names["teacher"]), "train": _training(section)}


def _cache(study: Study, names: Names) -> dict[str, Any]:
    return {"cache": study.cache.model_dump(mode="json", include={"images", "seed"})}


def _cache_outputs(study: Study, names: Names) -> dict[str, Any]:
    run = next(run for run in jobs(study, "distil") if _lookup(study, run) == names)
    keys = {"crop_padding", "flip", "precision", "batch_size"}
    return {"views": _distil_section(study, run).model_dump(mode="json", include=keys)}


def _score(study: Study, names: Names) -> dict[str, Any]:
    return {"score": study.score.model_dump(mode="json")}


def _build(study: Study, names: Names) -> dict[str, Any]:
    pair, plan = _pair(study, names), _method(study, names["method"], "plan")
    section = _build_section(study, names)
    keys = {"stones": {"cuts", "num_stones", "connector"}}.get(
        plan, {"select", "num_pairs", "student_layers", "projector"}
    )
    return {
        "plan": plan,
        "teacher": _model(study, pair.teacher),
        "student": _model(study, pair.student),
        "build": section.model_dump(mode="json", include=keys),
    }


def _distil(study: Study, names: Names) -> dict[str, Any]:
    method, options = method_entry(names["method"], study.methods[names["method"]])
    return {
        "student": _model(study, _pair(study, names).student),
        "method": method,
        "options": options,
        "distil": _training(_distil_section(study, names)),
        "seed": int(names["seed"]),
    }


def _evaluate(study: Study, names: Names) -> dict[str, Any]:
    return {"evaluate": study.evaluate.model_dump(mode="json")}


def _report(study: Study, names: Names) -> dict[str, Any]:
    return {"study": study.model_dump(mode="json")}


_SETTINGS = {
    "prepare": _prepare,
    "train": _train,
    "cache": _cache,
    "cache_outputs": _cache_outputs,
    "score": _score,
    "build": _build,
    "distil": _distil,
    "evaluate": _evaluate,
    "evaluate_teacher": _evaluate,
    "report": _report,
}


def _pair(study: Study, names: Names) -> Pair:
    return study.pairs[names["pair"]]


def _model(study: Study, name: str) -> dict[str, Any]:
    family, options = model_entry(study.models[name], f"models.{name}")
    return {"family": family, "options": options}


def _training(section: Training) -> dict[str, Any]:
    """Without what changes no result: how often progress is saved."""
    return section.model_dump(mode="json", exclude={"checkpoint_minutes"})


def _train_section(study: Study, teacher: str) -> Train:
    overrides = study.models[teacher].get("train", {})
    return merge(study.train, overrides, f"models.{teacher}.train")


def _distil_section(study: Study, names: Names) -> Distil:
    pair, entry = _pair(study, names), study.methods[names["method"]]
    section = merge(study.distil, pair.distil, f"pairs.{names['pair']}.distil")
    return merge(section, entry.get("distil", {}), f"methods.{names['method']}.distil")


def _lookup(study: Study, names: Names) -> Names | None:
    """What names the teacher's answers that a run looks up; None where it asks the live teacher."""
    views = _distil_section(study, names).views
    if views is None or _method(study, names["method"], "wants") not in ("logits", "blocks"):
        return None
    pair = _pair(study, names)
    return {"dataset": pair.dataset, "teacher": pair.teacher, "views": views}


def _saving(section: Training) -> dict[str, int | str]:
    return {"checkpoint_seconds": max(1, round(60 * section.checkpoint_minutes))}


def _method(study: Study, name: str, attribute: str) -> Any:
    method, _ = method_entry(name, study.methods[name])
    return getattr(registry.find("methods", method, "methods"), attribute)


def _build_section(study: Study, names: Names) -> Build:
    pair, entry = _pair(study, names), study.methods[names["method"]]
    section = merge(study.build, pair.build, f"pairs.{names['pair']}.build")
    return merge(section, entry.get("build", {}), f"methods.{names['method']}.build")


def _plan_needs_scores(study: Study, names: Names) -> bool:
    section, plan = _build_section(study, names), _method(study, names["method"], "plan")
    if plan == "stones":
        return section.cuts == "quality"
    return not isinstance(section.select, tuple)


def _used(study: Study, key: str) -> list[str]:
    return sorted({getattr(pair, key) for pair in study.pairs.values()})
