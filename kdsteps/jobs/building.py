"""How the job graph of a study is built: every job with its inputs, settings and hints."""

from __future__ import annotations

from typing import Any

from kdsteps.jobs.accepted import ACCEPTED
from kdsteps.jobs.exports import export_inputs, export_settings
from kdsteps.jobs.hints import saving
from kdsteps.jobs.inputs import weights_digest
from kdsteps.jobs.nodes import Graph
from kdsteps.jobs.outputs import outputs
from kdsteps.jobs.reads import (
    PROBES,
    REPORTED,
    as_teacher,
    prepared_images,
    trained_teacher,
    trained_teachers,
)
from kdsteps.jobs.settings import (
    AuditSettings,
    CheckSettings,
    LatencySettings,
    NetworkProbeSettings,
    PrepareSettings,
    ReportSettings,
    TrainSettings,
    UntrainedProbeSettings,
)
from kdsteps.jobs.student_jobs import add_students, evaluate_settings
from kdsteps.study.probe_settings import Probe, ProbeSettings
from kdsteps.study.settings import TimingSettings
from kdsteps.study.study import Study


def build(study: Study) -> Graph:
    """All jobs of a study."""
    graph = Graph(study)
    teachers = add_students(graph)
    for dataset in sorted(study.used_datasets):
        _add_prepare(graph, dataset)
    for dataset, teacher in sorted(teachers):
        _add_teacher(graph, dataset, teacher)
    for name in study.pairs:
        _add_latency(graph, name)
        if study.pairs[name].teachers is not None and teachers:
            _add_audit(graph, name)
    for pair, run in study.exported:
        _add_export(graph, pair, run)
    if study.params.probe is not None:
        _add_probes(graph, study.params.probe, teachers)
    _add_report(graph)
    return graph


def _add_prepare(graph: Graph, dataset: str) -> None:
    entry = graph.study.datasets[dataset]
    names = {"dataset": dataset}
    settings = PrepareSettings.model_construct(
        kind=entry.kind,
        options=entry.options,
        labels=entry.labels,
        classes=entry.classes,
        prepare=graph.study.params.prepare,
        source=graph.own_inputs[f"datasets.{dataset}"].digest or "",
    )
    graph.add("prepare", names, {}, settings)


def _add_teacher(graph: Graph, dataset: str, teacher: str) -> None:
    study, names = graph.study, {"dataset": dataset, "teacher": teacher}
    training, evaluate = study.trainings[teacher], evaluate_settings(study)
    model = study.models[teacher]
    needed = [name for name, entry in study.methods.items() if entry.needs_classifier]
    checkpoint = graph.own_inputs[f"models.{teacher}"].digest
    weights = weights_digest(checkpoint, outputs("train", names))
    settings = TrainSettings.model_construct(model=model, train=training, weights=weights)
    graph.add("train", names, prepared_images(dataset), settings, saving(training))
    check = CheckSettings.model_construct(
        on_failure=training.teacher_check,
        expected_accuracy=study.params.models[teacher].expected_accuracy,
        batch_size=study.params.evaluate.batch_size,
        features_only=not training.epochs and not needed,
    )
    graph.add("train_check", names, prepared_images(dataset) | trained_teacher(names), check)
    if study.datasets[dataset].labels is None:
        graph.add(
            "evaluate_teacher", names, prepared_images(dataset) | trained_teacher(names), evaluate
        )


def _add_audit(graph: Graph, name: str) -> None:
    """Add the comparison of the teachers of a pair that has several."""
    study, pair = graph.study, graph.study.pairs[name]
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
    read = prepared_images(pair.dataset) | trained_teachers(pair)
    graph.add("train_audit", {"pair": name}, read, settings)


def _add_latency(graph: Graph, name: str) -> None:
    """Add the timing of a pair: one student of each method, and the teacher if there is one.

    Several teachers are not timed: none of them is what the students are compared with.

    Seeds share an architecture, so the smallest one represents them all.
    """
    study, pair = graph.study, graph.study.pairs[name]
    seed, methods = str(min(study.seeds)), sorted(study.methods)
    students = [
        outputs("distil", {"pair": name, "method": method, "seed": seed}) for method in methods
    ]
    read: dict[str, Any] = {
        "students": [files["model"] for files in students],
        "students_digest": [files["digest"] for files in students],
    }
    with_teacher = any(entry.wants != "nothing" for entry in study.methods.values())
    if with_teacher and pair.teachers is None:
        trained = outputs("train", {"dataset": pair.dataset, "teacher": pair.only_teacher})
        read |= as_teacher(trained["model"], trained)
    timing = TimingSettings.taken_from(study.params.evaluate)
    settings = LatencySettings.model_construct(
        evaluate=timing.model_copy(update={"metrics": study.speed_metrics}),
        methods=tuple(methods),
    )
    graph.add("evaluate_latency", {"pair": name}, read, settings)


def _add_export(graph: Graph, name: str, run: str) -> None:
    """Add the export of one student, or of the one that is best on the validation images."""
    settings = export_settings(graph.study, name, run)
    teachers = graph.study.pairs[name].teacher_names
    read = prepared_images(settings.dataset) | export_inputs(settings, teachers)
    graph.add("export", {"pair": name, "student": run}, read, settings)


def _add_probes(graph: Graph, probe: Probe, teachers: set[tuple[str, str]]) -> None:
    """Add the measurements of frozen features: of teachers, and of students at both ends."""
    study, data = graph.study, prepared_images(probe.dataset)
    section = ProbeSettings.taken_from(probe)
    settings = NetworkProbeSettings.model_construct(probe=section)
    for dataset, teacher in sorted(teachers):
        names = {"dataset": dataset, "teacher": teacher}
        graph.add("evaluate_probe_teacher", names, data | trained_teacher(names), settings)
    for distilled in list(graph.nodes["distil"].values()):
        files = outputs("distil", distilled.names)
        read = data | {"model": files["model"], "model_digest": files["digest"]}
        graph.add("evaluate_probe", distilled.names, read, settings)
    for name, pair in study.pairs.items():
        own = prepared_images(pair.dataset)["summary"]
        checkpoint = graph.own_inputs[f"models.{pair.student}"].digest
        for seed in study.seeds:
            names = {"pair": name, "seed": str(seed)}
            untrained = UntrainedProbeSettings.model_construct(
                probe=section,
                student=study.models[pair.student],
                seed=seed,
                weights=weights_digest(checkpoint, outputs("evaluate_probe_untrained", names)),
            )
            read = data | {"training": own}
            graph.add("evaluate_probe_untrained", names, read, untrained)


def _add_report(graph: Graph) -> None:
    reported = REPORTED if graph.study.params.probe is None else REPORTED | PROBES
    if graph.nodes["train_audit"]:
        reported = reported | {"audits": ("train_audit", "audit")}
    read = {
        name: [outputs(rule, node.names)[file] for node in graph.nodes[rule].values()]
        for name, (rule, file) in reported.items()
    }
    read["accepted"] = [str(ACCEPTED)] if ACCEPTED.is_file() else []
    graph.add("report", {}, read, ReportSettings.model_construct(study=graph.study.described))
