"""Plan how a student and a teacher are joined: stepping stones, or pairs of layers.

reads   summary    summary.json of the stage prepare: image shape and classes
        scores     scores.parquet of the stage score, if layers are selected by their scores; for
                   images without labels, the ends of the teacher's stages are selected instead
writes  plan       plan.json: layers, shapes, connector or projector, parameters and MACs of each
                   stone or pair, and why it was chosen; checked by a forward pass. No weights
                   are needed.
"""

from __future__ import annotations

import logging
from typing import Any

from kdsteps.files.columns import SCORES
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import BuildSettings
from kdsteps.models import Chain
from kdsteps.models.cost import multiply_adds, num_parameters
from kdsteps.plans.layer_pairs import plan_pairs
from kdsteps.plans.stones import plan_stones
from kdsteps.scores.selection import Criterion, choose_layers
from kdsteps.stages._shared import untrained_model
from kdsteps.study.joints import most_pairs, pair_layers, pair_stages, stage_layers, stages_of
from kdsteps.study.settings import BuildPairs, BuildStones

log = logging.getLogger("kdsteps")

Rows = dict[str, dict[str, Any]]


def run(job: Job[BuildSettings]) -> None:
    """Write the plan of one pair and one method."""
    import torch

    torch.set_num_threads(job.threads)
    summary = read_json(job.inputs["summary"])
    shape = tuple(summary["image_shape"])
    settings = job.settings
    num_classes = len(summary["class_names"])
    teacher, student = (  # a plan needs shapes only
        untrained_model(model, shape, num_classes).eval()
        for model in (settings.teacher, settings.student)
    )
    scores = _scores(job)
    section = settings.build
    plan: dict[str, Any] = {"plan": settings.plan, "settings": settings.as_json()}
    if isinstance(section, BuildStones):
        joints = _joints(teacher, student, section, scores)
        plan["stones"] = plan_stones(teacher, student, shape, joints, section.connector)
    else:
        layers, plan["chosen_by"] = _layers(section, teacher, student, scores)
        plan["pairs"] = plan_pairs(
            teacher,
            student,
            shape,
            student_layers=section.student_layers,
            teacher_layers=layers,
            projector=section.projector,
        )
    for who, chain in (("teacher", teacher), ("student", student)):
        plan[who] = _described(chain, shape)
    for joint in plan[plan["plan"]]:
        log.info("%(student_layer)s -> %(teacher_layer)s: %(why)s", joint)
    write_json(job.outputs["plan"], plan)


def _scores(job: Job[BuildSettings]) -> Rows:
    if "scores" not in job.inputs:
        return {}
    rows = read_table(job.inputs["scores"], SCORES).to_pylist()
    return {row["layer"]: row for row in rows}


def _joints(
    teacher: Chain, student: Chain, section: BuildStones, scores: Rows
) -> list[tuple[str, str]]:
    cuts = section.cuts
    if cuts == "stages":
        return pair_stages(teacher, student, section.num_stones)
    if cuts == "quality":
        count = section.num_stones or len(stages_of(student, "student"))
        chosen = [choice.layer for choice in choose_layers(scores, by="quality", count=count)]
        return pair_layers(teacher, student, chosen, "build.cuts")
    return [(ours, theirs) for ours, theirs in cuts]


def _layers(
    section: BuildPairs, teacher: Chain, student: Chain, scores: Rows
) -> tuple[list[str], str]:
    """The teacher's layers to learn from, and in words what selected them."""
    select = section.select
    if isinstance(select, tuple):
        return list(select), "named in params.yaml"
    if not scores:  # of images without labels
        return stage_layers(section, teacher, student), "the ends of the teacher's stages"
    count = most_pairs(section, student)
    if select is None and section.num_pairs is None:
        selected = [layer for layer, row in scores.items() if row["chosen"]]
        chosen = [layer for layer in selected if scores[layer]["rank"] <= count]
        best = f"the {count} highest of those " if len(chosen) < len(selected) else "as "
        return chosen, f"{best}selected by the stage score"
    by: Criterion = select or "quality"
    chosen = [choice.layer for choice in choose_layers(scores, by=by, count=count)]
    return chosen, f"the {count} highest by {by}"


def _described(chain: Chain, shape: Any) -> dict[str, Any]:
    """The numbers of a network that the report shows."""
    import torch

    return {
        "layers": list(chain.layers),
        "stages": list(chain.stages),
        "parameters": num_parameters(chain),
        "multiply_adds": multiply_adds(chain, torch.zeros(1, *shape)),
    }
