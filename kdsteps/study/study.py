"""A study: the entries and sections of params.yaml as typed settings, with all defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kdsteps.study import registry
from kdsteps.study.entries import Pair, Params
from kdsteps.study.exports import exported_runs
from kdsteps.study.loggers import LoggerSettings
from kdsteps.study.section import Section
from kdsteps.study.settings import Build, Dataset, Model, Options, Values
from kdsteps.study.training_settings import Distil, Train, ViewSettings
from kdsteps.study.tuning import num_tried

DEFAULT_REFERENCES = ("labels", "kd")


@dataclass(frozen=True)
class Method:
    """An entry of `methods` with what the method needs from a teacher.

    Attributes:
        method: The part: a shipped name, or a reference to the user's code.
        options: All of them, defaults filled in.
        wants: "nothing", "logits", "blocks" or "layers".
        plan: "stones", "pairs" or None.
        one_class: Whether it is defined only for images of one class.
        compares_images: Whether it cannot compute a batch in parts.
        needs_classifier: Whether it needs the teacher's classifier, as for its logits.
        needs_labels: Whether it cannot be used on images without labels.
        deploys_blocks: Whether the deployed network has blocks of the teacher too.
        lengths: Its options that are lengths of the run, and how many epochs have to follow.
        distil, build: The values that differ for this method.
        trials: The values that the stage `tune` tries; none: the method is not tuned.
    """

    method: str
    options: Options
    wants: str
    plan: str | None
    one_class: bool
    compares_images: bool
    needs_classifier: bool
    needs_labels: bool
    deploys_blocks: bool
    lengths: Mapping[str, int]
    distil: Distil | None
    build: Build | None
    trials: tuple[Values, ...] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that params.yaml describes, parsed and resolved once.

    Attributes:
        params: The file as written, with the defaults of its sections.
        datasets, models, trainings, methods: By name, options and overrides resolved; `trainings`
            has the section `train` of each model.
        loggers: Where metrics go while jobs train.
    """

    params: Params
    datasets: dict[str, Dataset]
    models: dict[str, Model]
    trainings: dict[str, Train]
    methods: dict[str, Method]
    loggers: tuple[LoggerSettings, ...] = ()
    _distil: dict[tuple[str, str], Distil] = field(default_factory=dict)
    _build: dict[tuple[str, str], Build] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[str, Pair]:
        return self.params.pairs

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.params.seeds

    @property
    def method_names(self) -> dict[str, str]:
        """The method of each entry of `methods`."""
        return {name: entry.method for name, entry in self.methods.items()}

    @property
    def references(self) -> dict[str, str]:
        """The entries of `methods` that others are compared with, by what the results call them.

        Those that `report.references` lists, under their own names; otherwise one of the method
        `labels` and one of `kd`, under these words.
        """
        if self.params.report.references is not None:
            return {name: name for name in self.params.report.references}
        found = {}
        for word in DEFAULT_REFERENCES:
            behind = [name for name, method in self.method_names.items() if method == word]
            if behind:
                found[word] = word if word in behind else behind[0]
        return found

    @property
    def used_datasets(self) -> tuple[str, ...]:
        """The data sets of pairs, in their order, then that of `probe`."""
        probe = () if self.params.probe is None else (self.params.probe.dataset,)
        return tuple(dict.fromkeys((*(pair.dataset for pair in self.pairs.values()), *probe)))

    def has_labels(self, pair: str) -> bool:
        """Whether the images of a pair have labels."""
        return self.datasets[self.pairs[pair].dataset].labels is None

    def distil(self, pair: str, method: str) -> Distil:
        """The section `distil` of one pair and method: a method's values win over a pair's."""
        if (pair, method) not in self._distil:
            of_pair = self.params.distil.updated(self.pairs[pair].distil)
            self._distil[pair, method] = of_pair.updated(self.methods[method].distil)
        return self._distil[pair, method]

    def views(self, pair: str, method: str) -> ViewSettings | None:
        """The numbered views or draws that a method's students see; None if there are none."""
        return self.distil(pair, method).numbered_views(self.params.cache.fixed_draws)

    def build(self, pair: str, method: str) -> Build:
        """The section `build` of one pair and method, in the same way."""
        if (pair, method) not in self._build:
            of_pair = self.params.build.updated(self.pairs[pair].build)
            self._build[pair, method] = of_pair.updated(self.methods[method].build)
        return self._build[pair, method]

    def num_trainings(self, method: str) -> int:
        """How often a student of one pair is trained by a method: for trials, and for the study."""
        tune, trials = self.params.tune, len(self.methods[method].trials)
        tried = [num_tried(trials, place, tune.halving) for place in range(len(tune.seeds))]
        return len(self.seeds) + (sum(tried) if trials else 0)

    @cached_property
    def exported(self) -> list[tuple[str, str]]:
        """Every export as its pair and its run, which is `best` or `method/seed`."""
        export = self.params.export
        if export is None:
            return []
        return exported_runs(export, self.pairs, list(self.methods), self.seeds)

    @cached_property
    def speed_metrics(self) -> tuple[str, ...]:
        """Those of your own metrics that are computed from the time that a network takes."""
        metrics = self.params.evaluate.metrics
        found = {metric: registry.find("metrics", metric, "evaluate.metrics") for metric in metrics}
        return tuple(name for name, part in found.items() if part.described.source == "speed")

    @cached_property
    def described(self) -> dict[str, Any]:
        """The study as JSON that `parse_study` reads: its entries, and its sections in full.

        Loggers are not part of it, since nothing depends on them.
        """
        sections = {
            name: section.model_dump(mode="json")
            for name, info in Params.model_fields.items()
            if not info.is_required() and isinstance(section := getattr(self.params, name), Section)
        }
        entries = self.params.model_dump(mode="json", exclude_unset=True, exclude={"loggers"})
        found = entries | sections
        if not any(entry.trials for entry in self.methods.values()):
            del found["tune"]  # nothing is tuned: the section decides nothing
        return found
