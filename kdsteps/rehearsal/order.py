"""Which trials a rehearsal makes, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from kdsteps.jobs import graph
from kdsteps.jobs.resources import cores_there
from kdsteps.jobs.schedule import claim
from kdsteps.rehearsal.machine import IMPORTS, companions, start_seconds
from kdsteps.rehearsal.rehearsal import Rehearsal
from kdsteps.study.study import Study
from kdsteps.study.training_settings import Distil, Training

_WITH_NETWORKS = frozenset(
    {"train", "distil", "evaluate", "evaluate_teacher", "cache", "cache_outputs"}
)


def rehearse(found: Rehearsal, left: Collection[graph.JobNode]) -> None:
    """Run the trials of all jobs that are left, those that others need first."""
    study = found.study
    by_rule = {rule: [node for node in left if node.rule == rule] for rule in graph.OUTPUTS}
    for (dataset, model), (node, recipe) in _networks(study, left).items():
        trained = Path(graph.outputs(node.rule, node.names)["model"])
        if node.rule == "train" and node not in by_rule["train"] and trained.exists():
            found.take(dataset, model, trained)
        elif dataset in found.images:
            found.train(dataset, model, node, recipe)
    for scoring in by_rule["score"]:
        dataset, teacher = scoring.names["dataset"], scoring.names["teacher"]
        if found.model(dataset, teacher).exists():
            found.scores(graph.node(study, "cache", scoring.names), scoring)
    with companions(_others(found, by_rule["distil"])):
        _distil(found, by_rule["distil"])
    for node in [*by_rule["evaluate_teacher"], *by_rule["evaluate"]]:
        pair_of = study.pairs.get(node.names.get("pair", ""))
        dataset = node.names["dataset"] if pair_of is None else pair_of.dataset
        model = node.names["teacher"] if pair_of is None else pair_of.student
        known = ("evaluate", dataset, model) in found.trials
        if not known and found.model(dataset, model).exists():
            found.evaluate(node, dataset, model)


def start_of_jobs(found: Rehearsal, left: Collection[graph.JobNode]) -> float:
    """Seconds that a job takes besides its work: of evaluations of a few images, side by side."""
    at_once = found.sharing.cores // found.sharing.cores_of_one_of_many
    evaluations = (found.evaluation(node) for node in left if node.rule == "evaluate")
    first = next((options for options in evaluations if options), None)
    if first is not None:
        commands = [
            [*first, "--outputs", f"measures={number}.json", f"predictions={number}.parquet"]
            for number in range(at_once)
        ]
        if (seconds := start_seconds(commands, found.scratch)) is not None:
            return seconds
    return start_seconds([["-c", IMPORTS]] * at_once, found.scratch) or 0.0


def _others(found: Rehearsal, runs: Sequence[graph.JobNode]) -> int:
    """How many other students train next to each one on the CPU."""
    if not runs or found.sharing.gpus:
        return 0
    at_once = found.sharing.cores // claim(found.study, runs[0], found.sharing).threads
    return min(len(runs), at_once, cores_there()) - 1


def _distil(found: Rehearsal, runs: list[graph.JobNode]) -> None:
    """Train a student of each pair by each method."""
    study = found.study
    tried: set[tuple[str, str]] = set()
    for node in _spread(runs):
        pair, method = node.names["pair"], node.names["method"]
        entry = study.pairs[pair]
        models = {entry.student, *taught_by(study, node)}
        if (pair, method) in tried or entry.dataset not in found.images:
            continue
        tried.add((pair, method))
        key, dataset = ("distil", pair, method), entry.dataset
        if not all(found.model(dataset, model).exists() for model in models):
            found.leave_out(key, ("network",), dataset, models)
            continue
        if "plan" in node.inputs:
            planning = graph.node(study, "build", {"pair": pair, "method": method})
            scores = planning.inputs.get("scores")
            if scores is not None and not (found.scratch / scores).exists():
                found.leave_out(key, ("cache", "score"), dataset, models)
                continue
            if not found.build(planning):
                continue
        found.distil(node)


def _networks(
    study: Study, left: Collection[graph.JobNode]
) -> dict[tuple[str, str], tuple[graph.JobNode, Training]]:
    """The networks that jobs use, each with one of its jobs and a recipe."""
    found: dict[tuple[str, str], tuple[graph.JobNode, Training]] = {}
    for node in left:
        if node.rule in _WITH_NETWORKS:
            pair = study.pairs.get(node.names.get("pair", ""))
            if pair is None:
                dataset, teacher = node.names["dataset"], node.names["teacher"]
                training = graph.node(study, "train", {"dataset": dataset, "teacher": teacher})
                found.setdefault((dataset, teacher), (training, study.trainings[teacher]))
            else:
                recipe: Distil = study.distil(node.names["pair"], node.names["method"])
                run = graph.node(study, "distil", node.names)
                for teacher in taught_by(study, run):
                    names = {"dataset": pair.dataset, "teacher": teacher}
                    training = graph.node(study, "train", names)
                    recipe_of = study.trainings[teacher]
                    found.setdefault((pair.dataset, teacher), (training, recipe_of))
                found.setdefault((pair.dataset, pair.student), (run, recipe))
    return found


def taught_by(study: Study, node: graph.JobNode) -> tuple[str, ...]:
    """The teachers that a job of a pair uses."""
    uses = node.inputs.keys() & {"teacher", "teachers"}
    return study.pairs[node.names["pair"]].teacher_names if uses else ()


def _spread(runs: list[graph.JobNode]) -> list[graph.JobNode]:
    """Runs in an order in which each method and each pair comes early.

    All methods of the first pair come first; of the other pairs, another method each.
    """
    pairs = list(dict.fromkeys(node.names["pair"] for node in runs))
    methods = list(dict.fromkeys(node.names["method"] for node in runs))
    place = {
        (pair, method): (abs(row % len(methods) - column), row, column)
        for row, pair in enumerate(pairs)
        for column, method in enumerate(methods)
    }
    first_pair = pairs[0] if pairs else ""
    return sorted(
        runs,
        key=lambda node: (
            node.names["pair"] != first_pair,
            place[node.names["pair"], node.names["method"]],
        ),
    )
