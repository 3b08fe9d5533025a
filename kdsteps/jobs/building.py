"""How the job graph of a study is built: every job with its inputs, settings and hints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdsteps.jobs.accepted import ACCEPTED
from kdsteps.jobs.exports import export_inputs, export_settings
from kdsteps.jobs.inputs import inputs_by_entry, weights_digest
from kdsteps.jobs.outputs import OUTPUTS as OUTPUTS
from kdsteps.jobs.outputs import STAGES as STAGES
from kdsteps.jobs.outputs import Names as Names
from kdsteps.jobs.outputs import covered, flat
from kdsteps.jobs.outputs import names_of as names_of
from kdsteps.jobs.outputs import outputs as outputs
from kdsteps.jobs.outputs import rules_of as rules_of
from kdsteps.jobs.outputs import stage_of as stage_of
from kdsteps.jobs.settings import (
    AuditSettings,
    BuildSettings,
    CheckSettings,
    ChooseSettings,
    DistilSettings,
    EvaluateSettings,
    FeatureSettings,
    JobSettings,
    LatencySettings,
    LogitSettings,
    NetworkProbeSettings,
    PrepareSettings,
    ReportSettings,
    ScoreSettings,
    TrainSettings,
    TuneSettings,
    UntrainedProbeSettings,
)
from kdsteps.study.entries import Pair
from kdsteps.study.probe_settings import Probe, ProbeSettings
from kdsteps.study.settings import BuildPairs, FeatureSample, MetricSettings, TimingSettings
from kdsteps.study.study import Study
from kdsteps.study.training_settings import (
    DrawSettings,
    FixedDraws,
    Training,
    ViewSettings,
    name_of,
)
from kdsteps.study.tuning import num_tried

_REPORTED = {
    "image_files": ("prepare", "images"),
    "indexes": ("prepare", "index"),
    "summaries": ("prepare", "summary"),
    "image_digests": ("prepare", "digest"),
    "teacher_histories": ("train", "history"),
    "teacher_checks": ("train_check", "check"),
    "teacher_measures": ("evaluate_teacher", "measures"),
    "teacher_predictions": ("evaluate_teacher", "predictions"),
    "layer_scores": ("score", "scores"),
    "plans": ("build", "plan"),
    "tunings": ("tune_choose", "trials"),
    "histories": ("distil", "history"),
    "measures": ("evaluate", "measures"),
    "predictions": ("evaluate", "predictions"),
    "latencies": ("evaluate_latency", "latency"),
    "exports": ("export", "record"),
}
"""What the report reads: each kind of file as one list, by rule and name of the output."""
_PROBES = {
    "probes": ("evaluate_probe", "probe"),
    "teacher_probes": ("evaluate_probe_teacher", "teacher_probe"),
    "untrained_probes": ("evaluate_probe_untrained", "untrained_probe"),
}
"""What it also reads of a study with `probe`."""

LISTS = frozenset(
    {*_REPORTED, *_PROBES, "accepted", "students", "students_digest", "earlier", "results"}
    | {"teachers", "teachers_digest", "checks", "tickets", "audits"}
)
"""Names of inputs that are lists of files."""


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
        return {path for given in self.inputs.values() for path in flat(given)}

    @property
    def watched(self) -> set[str]:
        """The files that it reads whose content decides whether it is rerun."""
        compared = self.inputs.keys() - self.covered
        return {path for name in compared for path in flat(self.inputs[name])}


class Graph:
    """All jobs of a study, by rule and names."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.nodes: dict[str, dict[tuple[tuple[str, str], ...], JobNode]] = {
            rule: {} for rule in OUTPUTS
        }
        self.makers: dict[str, JobNode] = {}
        self._budget: dict[str, int | str] = {
            "budget_mib": max(1, round(1024 * study.params.cache.budget_gib))
        }
        self._caching = self._budget | {"keep": study.params.cache.outputs}
        self.own_inputs = inputs_by_entry(study)
        teachers = self._add_students()
        for dataset in sorted(study.used_datasets):
            self._add_prepare(dataset)
        for dataset, teacher in sorted(teachers):
            self._add_teacher(dataset, teacher)
        for name in study.pairs:
            self._add_latency(name)
            if study.pairs[name].teachers is not None and teachers:
                self._add_audit(name)
        for pair, run in study.exported:
            self._add_export(pair, run)
        if study.params.probe is not None:
            self._add_probes(study.params.probe, teachers)
        self._add_report()

    def _add(
        self,
        rule: str,
        names: Names,
        inputs: dict[str, Any],
        settings: JobSettings,
        hints: dict[str, int | str] | None = None,
        text: str | None = None,
    ) -> None:
        node = JobNode(rule, names, inputs, settings, text or settings.as_text(), hints or {})
        self.nodes[rule][tuple(sorted(names.items()))] = node
        self.makers |= dict.fromkeys(outputs(rule, names).values(), node)

    def _add_prepare(self, dataset: str) -> None:
        entry = self.study.datasets[dataset]
        names = {"dataset": dataset}
        settings = PrepareSettings.model_construct(
            kind=entry.kind,
            options=entry.options,
            labels=entry.labels,
            classes=entry.classes,
            prepare=self.study.params.prepare,
            source=self.own_inputs[f"datasets.{dataset}"].digest or "",
        )
        self._add("prepare", names, {}, settings)

    def _add_teacher(self, dataset: str, teacher: str) -> None:
        study, names = self.study, {"dataset": dataset, "teacher": teacher}
        training, evaluate = study.trainings[teacher], _evaluate(study)
        model = study.models[teacher]
        needed = [name for name, entry in study.methods.items() if entry.needs_classifier]
        checkpoint = self.own_inputs[f"models.{teacher}"].digest
        weights = weights_digest(checkpoint, outputs("train", names))
        settings = TrainSettings.model_construct(model=model, train=training, weights=weights)
        self._add("train", names, _data(dataset), settings, _saving(training))
        check = CheckSettings.model_construct(
            on_failure=training.teacher_check,
            expected_accuracy=study.params.models[teacher].expected_accuracy,
            batch_size=study.params.evaluate.batch_size,
            features_only=not training.epochs and not needed,
        )
        self._add("train_check", names, _data(dataset) | _teacher(names), check)
        if study.datasets[dataset].labels is None:
            self._add("evaluate_teacher", names, _data(dataset) | _teacher(names), evaluate)

    def _add_audit(self, name: str) -> None:
        """Add the comparison of the teachers of a pair that has several."""
        study, pair = self.study, self.study.pairs[name]
        settings = AuditSettings.model_construct(
            teachers=pair.teacher_names,
            tolerated=tuple(
                teacher
                for teacher in pair.teacher_names
                if study.trainings[teacher].teacher_check == "warn"
            ),
            space=pair.space,
            batch_size=study.params.evaluate.batch_size,
        )
        read = _data(pair.dataset) | _teachers(pair)
        self._add("train_audit", {"pair": name}, read, settings)

    def _add_scores(self, dataset: str, teacher: str) -> None:
        params, names = self.study.params, {"dataset": dataset, "teacher": teacher}
        cached = FeatureSettings.model_construct(cache=FeatureSample.taken_from(params.cache))
        read = _data(dataset) | _teacher(names) | outputs("train_check", names)
        self._add("cache", names, read, cached, self._budget)
        features = outputs("cache", names)
        read = {"features": features["features"], "features_digest": features["digest"]}
        summary = outputs("prepare", {"dataset": dataset})["summary"]
        settings = ScoreSettings.model_construct(score=params.score)
        self._add("score", names, read | {"summary": summary}, settings)

    def _add_students(self) -> set[tuple[str, str]]:
        """Add every job of a pair; return the data sets and teachers that these need."""
        study = self.study
        teachers: set[tuple[str, str]] = set()
        scored: set[tuple[str, str]] = set()
        caches: dict[tuple[str, str, str], tuple[ViewSettings, int]] = {}
        for name, pair in study.pairs.items():
            taught_by = [(pair.dataset, teacher) for teacher in pair.teacher_names]
            for method, entry in study.methods.items():
                if entry.wants != "nothing":
                    teachers.update(taught_by)
                if entry.plan is not None and self._add_plan(name, method):
                    scored.update(taught_by)
                views = study.views(name, method) if entry.wants in ("logits", "blocks") else None
                if views is not None:
                    epochs = study.num_trainings(method) * study.distil(name, method).epochs
                    for teacher in taught_by:
                        key = (*teacher, name_of(views))
                        caches[key] = views, caches.get(key, (views, 0))[1] + epochs
                self._add_runs(name, method, views)
        for (dataset, teacher_name, views_name), (views, passes) in sorted(
            caches.items(), key=lambda item: item[0]
        ):
            names = {"dataset": dataset, "teacher": teacher_name, "views": views_name}
            found = _data(dataset) | _teacher(names) | outputs("train_check", names)
            settings = LogitSettings.model_construct(views=views)
            self._add("cache_outputs", names, found, settings, self._caching | {"passes": passes})
        for dataset, teacher_name in sorted(scored):
            self._add_scores(dataset, teacher_name)
        return teachers

    def _add_plan(self, name: str, method: str) -> bool:
        """Add the job that plans one pair and method; return whether it needs scores."""
        study, pair, plan = self.study, self.study.pairs[name], self.study.methods[method].plan
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
        self._add("build", {"pair": name, "method": method}, read, settings)
        return by_scores

    def _add_runs(self, name: str, method: str, views: ViewSettings | None) -> None:
        """Add the training and the evaluation of one pair and method for every seed."""
        study, pair, entry = self.study, self.study.pairs[name], self.study.methods[method]
        recipe = study.distil(name, method)
        data = _data(pair.dataset)
        read: dict[str, Any] = dict(data)
        compared: dict[str, str] = {}
        several = entry.wants != "nothing" and pair.teachers is not None
        if several:
            read |= _teachers(pair, views) | outputs("train_audit", {"pair": name})
        elif entry.wants != "nothing":
            teacher = {"dataset": pair.dataset, "teacher": pair.only_teacher}
            read |= _as_teacher(outputs("train", teacher)["model"], outputs("train", teacher))
            read |= outputs("train_check", teacher)
            judged = outputs("evaluate_teacher", teacher)
            compared = _as_teacher(judged["predictions"], judged)
        if entry.plan is not None:
            read |= outputs("build", {"pair": name, "method": method})
        if views is not None and not several:
            read |= outputs("cache_outputs", teacher | {"views": name_of(views)})
        evaluate = _evaluate(study)
        evaluate_text = evaluate.as_text()
        hints = self._caching | _saving(recipe)
        student = study.models[pair.student]
        checkpoint = self.own_inputs[f"models.{pair.student}"].digest
        fixed = _fixed_draws(study, name, method)

        def settings_of(rule: str, names: Names) -> DistilSettings:
            return DistilSettings.model_construct(
                student=student,
                method=entry.method,
                options=entry.options,
                distil=recipe,
                seed=int(names["seed"]),
                weights=weights_digest(checkpoint, outputs(rule, names)),
                combination=pair.combination if several else None,
                tuned=tuple(entry.trials[0]) if entry.trials else (),
                cache=fixed,
            )

        if entry.trials:
            choice = self._add_trials(name, method, read, hints, settings_of)
            read = read | {"choice": choice}
        for seed in study.seeds:
            names = {"pair": name, "method": method, "seed": str(seed)}
            self._add("distil", names, read, settings_of("distil", names), hints)
            if not study.has_labels(name):
                continue  # there is nothing to compare predictions with
            trained = outputs("distil", names)
            judged = data | {"model": trained["model"], "model_digest": trained["digest"]}
            self._add("evaluate", names, judged | compared, evaluate, text=evaluate_text)

    def _add_trials(
        self,
        name: str,
        method: str,
        read: dict[str, Any],
        hints: dict[str, int | str],
        settings_of: Callable[[str, Names], DistilSettings],
    ) -> str:
        """Add the trials of one pair and method for every seed; return the file of the choice."""
        tune, trials = self.study.params.tune, self.study.methods[method].trials
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
                self._add("tune", names, found, settings, hints)
                made.append(outputs("tune", names)["trial"])
        names = {"pair": name, "method": method}
        chosen = ChooseSettings.model_construct(trials=trials, seeds=tune.seeds)
        self._add("tune_choose", names, {"results": made}, chosen)
        return outputs("tune_choose", names)["choice"]

    def _add_latency(self, name: str) -> None:
        """Add the timing of a pair: one student of each method, and the teacher if there is one.

        Several teachers are not timed: none of them is what the students are compared with.

        Seeds share an architecture, so the first one represents them all.
        """
        study, pair = self.study, self.study.pairs[name]
        first, methods = str(study.seeds[0]), sorted(study.methods)
        students = [
            outputs("distil", {"pair": name, "method": method, "seed": first}) for method in methods
        ]
        read: dict[str, Any] = {
            "students": [files["model"] for files in students],
            "students_digest": [files["digest"] for files in students],
        }
        with_teacher = any(entry.wants != "nothing" for entry in study.methods.values())
        if with_teacher and pair.teachers is None:
            trained = outputs("train", {"dataset": pair.dataset, "teacher": pair.only_teacher})
            read |= _as_teacher(trained["model"], trained)
        settings = LatencySettings.model_construct(
            evaluate=TimingSettings.taken_from(study.params.evaluate), methods=tuple(methods)
        )
        self._add("evaluate_latency", {"pair": name}, read, settings)

    def _add_export(self, name: str, run: str) -> None:
        """Add the export of one student, or of the one that is best on the validation images."""
        settings = export_settings(self.study, name, run)
        teachers = self.study.pairs[name].teacher_names
        read = _data(settings.dataset) | export_inputs(settings, teachers)
        self._add("export", {"pair": name, "student": run}, read, settings)

    def _add_probes(self, probe: Probe, teachers: set[tuple[str, str]]) -> None:
        """Add the measurements of frozen features: of teachers, and of students at both ends."""
        study, data = self.study, _data(probe.dataset)
        section = ProbeSettings.taken_from(probe)
        settings = NetworkProbeSettings.model_construct(probe=section)
        for dataset, teacher in sorted(teachers):
            names = {"dataset": dataset, "teacher": teacher}
            self._add("evaluate_probe_teacher", names, data | _teacher(names), settings)
        for distilled in list(self.nodes["distil"].values()):
            files = outputs("distil", distilled.names)
            read = data | {"model": files["model"], "model_digest": files["digest"]}
            self._add("evaluate_probe", distilled.names, read, settings)
        for name, pair in study.pairs.items():
            own = _data(pair.dataset)["summary"]
            checkpoint = self.own_inputs[f"models.{pair.student}"].digest
            for seed in study.seeds:
                names = {"pair": name, "seed": str(seed)}
                untrained = UntrainedProbeSettings.model_construct(
                    probe=section,
                    student=study.models[pair.student],
                    seed=seed,
                    weights=weights_digest(checkpoint, outputs("evaluate_probe_untrained", names)),
                )
                read = data | {"training": own}
                self._add("evaluate_probe_untrained", names, read, untrained)

    def _add_report(self) -> None:
        reported = _REPORTED if self.study.params.probe is None else _REPORTED | _PROBES
        if self.nodes["train_audit"]:
            reported = reported | {"audits": ("train_audit", "audit")}
        read = {
            name: [outputs(rule, node.names)[file] for node in self.nodes[rule].values()]
            for name, (rule, file) in reported.items()
        }
        read["accepted"] = [str(ACCEPTED)] if ACCEPTED.is_file() else []
        self._add("report", {}, read, ReportSettings.model_construct(study=self.study.described))


def _evaluate(study: Study) -> EvaluateSettings:
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


def _data(dataset: str) -> dict[str, str]:
    """The prepared images as a job reads them."""
    files = outputs("prepare", {"dataset": dataset})
    return {name: files[name] for name in ("images", "index", "summary")} | {
        "images_digest": files["digest"]
    }


def _teacher(names: Names) -> dict[str, str]:
    """A trained teacher as a job reads it."""
    files = outputs("train", names)
    return {"model": files["model"], "model_digest": files["digest"]}


def _teachers(pair: Pair, views: ViewSettings | None = None) -> dict[str, list[str]]:
    """Several trained teachers as a job reads them, with their cached logits if it uses them."""
    names = [{"dataset": pair.dataset, "teacher": teacher} for teacher in pair.teacher_names]
    files = [outputs("train", each) for each in names]
    found = {
        "teachers": [each["model"] for each in files],
        "teachers_digest": [each["digest"] for each in files],
        "checks": [outputs("train_check", each)["check"] for each in names],
    }
    if views is not None:
        shown = {"views": name_of(views)}
        found["tickets"] = [outputs("cache_outputs", each | shown)["ticket"] for each in names]
    return found


def _as_teacher(path: str, files: Names) -> dict[str, str]:
    """A file of the one teacher of a student, as a job reads it."""
    return {"teacher": path, "teacher_digest": files["digest"]}


def _saving(section: Training) -> dict[str, int | str]:
    return {"checkpoint_seconds": max(1, round(60 * section.checkpoint_minutes))}
