"""The jobs of a study as nodes of its job graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdsteps.jobs.inputs import inputs_by_entry
from kdsteps.jobs.outputs import OUTPUTS, Names, covered, flat, outputs
from kdsteps.jobs.settings import JobSettings
from kdsteps.study.study import Study


@dataclass(frozen=True)
class JobNode:
    """One job of the graph.

    Attributes:
        rule, names: Which job it is.
        inputs: Files to read, by name; the report has lists of files.
        settings: What it reads from params.yaml.
        text: The settings as JSON.
        hints: Options that change no result: how often progress is saved, whether a teacher's
            logits are cached, what that may cost and how many passes over the images use them.
    """

    rule: str
    names: Names
    inputs: dict[str, Any]
    settings: JobSettings
    text: str
    hints: dict[str, int | str]

    @property
    def covered(self) -> frozenset[str]:
        """Names of inputs that Snakemake need not compare."""
        return covered(self.rule, self.inputs)

    @property
    def read(self) -> set[str]:
        """Every file that it reads."""
        return set(self.declared)

    @property
    def declared(self) -> list[str]:
        """Every file that it reads, as often as it is named, as Snakemake records them."""
        return [path for given in self.inputs.values() for path in flat(given)]

    @property
    def watched(self) -> set[str]:
        """The files that it reads whose content decides whether it is rerun."""
        compared = self.inputs.keys() - self.covered
        return {path for name in compared for path in flat(self.inputs[name])}


class Graph:
    """All jobs of a study, by rule and names.

    Attributes:
        makers: The job that writes a file, by path.
        own_inputs: The images and checkpoints of the user, by entries such as `datasets.pets`.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.nodes: dict[str, dict[tuple[tuple[str, str], ...], JobNode]] = {
            rule: {} for rule in OUTPUTS
        }
        self.makers: dict[str, JobNode] = {}
        self.own_inputs = inputs_by_entry(study)

    def add(
        self,
        rule: str,
        names: Names,
        inputs: dict[str, Any],
        settings: JobSettings,
        hints: dict[str, int | str] | None = None,
        text: str | None = None,
    ) -> None:
        """Add a job; `text` is its settings as JSON where that is known already."""
        node = JobNode(rule, names, inputs, settings, text or settings.as_text(), hints or {})
        self.nodes[rule][tuple(sorted(names.items()))] = node
        self.makers |= dict.fromkeys(outputs(rule, names).values(), node)
