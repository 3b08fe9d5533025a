"""The job graph of a study: which jobs there are, and what each reads, writes and depends on.

It is built once per study; Snakemake's many queries are then lookups.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kdsteps.errors import KdstepsError, nearest
from kdsteps.jobs.building import build
from kdsteps.jobs.inputs import Input
from kdsteps.jobs.nodes import Graph
from kdsteps.jobs.nodes import JobNode as JobNode
from kdsteps.jobs.outputs import OUTPUTS as OUTPUTS
from kdsteps.jobs.outputs import STAGES as STAGES
from kdsteps.jobs.outputs import Names as Names
from kdsteps.jobs.outputs import names_of as names_of
from kdsteps.jobs.outputs import outputs as outputs
from kdsteps.jobs.outputs import rules_of as rules_of
from kdsteps.jobs.outputs import stage_of as stage_of
from kdsteps.jobs.reads import LISTS as LISTS
from kdsteps.jobs.settings import JobSettings
from kdsteps.study.study import Study


def jobs(study: Study, rule: str) -> list[Names]:
    """The names of every job of a rule that the study needs."""
    return [node.names for node in _graph(study).nodes[rule].values()]


def node(study: Study, rule: str, names: Names) -> JobNode:
    """One job of the study.

    Raises:
        KeyError: The study has no such job.
    """
    return _graph(study).nodes[rule][tuple(sorted(names.items()))]


def maker(study: Study, path: str) -> JobNode | None:
    """The job that writes a file; None if no job of the study does."""
    return _graph(study).makers.get(path)


def own_inputs(study: Study) -> Mapping[str, Input]:
    """The images and checkpoints of the user, by entries such as `datasets.pets`."""
    return _graph(study).own_inputs


def inputs(study: Study, rule: str, names: Names) -> dict[str, Any]:
    """The files a job reads, by their names in the stage's command."""
    return node(study, rule, names).inputs


def hints(study: Study, rule: str, names: Names) -> dict[str, int | str]:
    """Options of a job that its result does not depend on."""
    return node(study, rule, names).hints


def settings(study: Study, rule: str, names: Names) -> JobSettings:
    """What a job reads from params.yaml."""
    return node(study, rule, names).settings


def settings_text(study: Study, rule: str, names: Names) -> str:
    """The settings of a job as the JSON text that decides whether it is rerun."""
    return node(study, rule, names).text


def all_outputs(study: Study, stage: str) -> list[str]:
    """Every file of a stage that the study needs."""
    return [
        path
        for rule in rules_of(stage)
        for names in jobs(study, rule)
        for path in outputs(rule, names).values()
    ]


def check_names(study: Study, rule: str, names: Names) -> None:
    """Raise KdstepsError if there is no such job, for names from the command line."""
    known = jobs(study, rule)
    if not known:
        raise KdstepsError(
            f"this study has no {stage_of(rule)} job; name a method in params.yaml that needs one"
        )
    for key, value in names.items():
        choices = list(dict.fromkeys(job[key] for job in known))
        if value not in choices:
            none = f"--{key}: this study has no {stage_of(rule)} job for {value!r}"
            raise KdstepsError(none + nearest(value, choices))
    if names not in known:
        given = " with ".join(names.values())
        listed = ", ".join(" with ".join(job[key] for key in names) for job in known)
        raise KdstepsError(f"this study has no {stage_of(rule)} job for {given}; it has {listed}")


@lru_cache(maxsize=8)
def _graph(study: Study) -> Graph:
    return build(study)
