"""The jobs that a run would start, and those among them whose results the job cache has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import files_if_cached
from kdsteps.jobs.provenance import Provenance
from kdsteps.jobs.upgrades import Status, statuses
from kdsteps.study.study import Study


@dataclass(frozen=True)
class Remaining:
    """What is left to do in a study.

    Attributes:
        done: The number of jobs whose results are up to date.
        cached: Jobs whose results are copied from the job cache.
        left: Jobs that have to compute.
    """

    done: int
    cached: list[graph.JobNode]
    left: list[graph.JobNode]


def remaining(study: Study) -> Remaining:
    """The jobs that a run of a study would start."""
    found = statuses(study)
    stale = [status.node for status in found if status.stale]
    digest_of = _DigestOf(study, {path: status for status in found for path in status.outputs})
    cached: list[graph.JobNode] = []
    left: list[graph.JobNode] = []
    for node in stale:
        (left if _cached(study, node, digest_of) is None else cached).append(node)
    return Remaining(len(found) - len(stale), cached, left)


class _DigestOf:
    """The digest that a file of the study has once its job has run; "" where it is not known."""

    def __init__(self, study: Study, makers: Mapping[str, Status]) -> None:
        self.study, self.makers = study, makers
        self._cached = cache(self._files)

    def __call__(self, path: str) -> str:
        status = self.makers.get(path)
        if status is None:
            return ""
        name = os.path.basename(path)
        if not status.stale:
            known: Provenance | None = status.known
            return known.files.get(name, "") if known is not None else ""
        return self._cached(status.rule, tuple(status.names.items())).get(path, "")

    def _files(self, rule: str, names: tuple[tuple[str, str], ...]) -> dict[str, str]:
        node = graph.node(self.study, rule, dict(names))
        found = _cached(self.study, node, self) or {}
        outputs = graph.outputs(rule, node.names)
        return {outputs[name]: digest for name, digest in found.items() if name in outputs}


def _cached(study: Study, node: graph.JobNode, digest_of: _DigestOf) -> dict[str, str] | None:
    """The digests of the files of a job in the job cache; None if it does not have them."""
    code = code_identity.code(study, node.rule, node.names)
    return files_if_cached(node.rule, node.settings.as_json(), code, node.inputs, digest_of)
