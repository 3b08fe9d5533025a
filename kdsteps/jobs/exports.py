"""What the job that exports a student reads: its settings and its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdsteps.jobs.outputs import Names, outputs
from kdsteps.jobs.settings import ExportedMethod, ExportSettings
from kdsteps.study.exports import BEST
from kdsteps.study.study import Study


def export_settings(study: Study, name: str, run: str) -> ExportSettings:
    """The settings of one export: of the pair `name`, and of a run or the best one."""
    pair, params = study.pairs[name], study.params
    assert params.export is not None, "there are exports"
    chosen = list(study.methods) if run == BEST else [run.rpartition("/")[0]]
    methods = {
        method: ExportedMethod.model_construct(
            method=entry.method, options=entry.options, teacher=entry.wants != "nothing"
        )
        for method, entry in study.methods.items()
        if method in chosen
    }
    return ExportSettings.model_construct(
        dataset=pair.dataset,
        pair=name,
        student=pair.student,
        teacher=pair.taught_by if any(entry.teacher for entry in methods.values()) else None,
        several=pair.teachers is not None,
        run=run,
        methods=methods,
        seeds=tuple(sorted(study.seeds)),
        formats=params.export.formats,
        int8=params.export.int8,
        latency_runs=params.evaluate.latency_runs,
        throughput_batch=params.evaluate.throughput_batch,
        confidence=params.report.confidence,
    )


def export_inputs(settings: ExportSettings, teachers: Sequence[str]) -> dict[str, Any]:
    """The files of students and teachers that an export reads.

    Which student is the best will be known when all are trained, so the job reads all of them.

    Args:
        teachers: The names of the pair's teachers.
    """
    names = [run_names(settings.pair, run) for run in settings.candidate_runs]
    students = [outputs("distil", each) for each in names]
    measured = [
        outputs("evaluate", run_names(settings.pair, run)) for run in settings.measured_runs
    ]
    read: dict[str, Any] = {
        "students": [files["model"] for files in students],
        "students_digest": [files["digest"] for files in students],
        "measures": [files["measures"] for files in measured],
        "predictions": [outputs("evaluate", each)["predictions"] for each in names],
    }
    if settings.run == BEST:
        read["histories"] = [files["history"] for files in students]
    if settings.several and settings.teacher is not None:
        read["audit"] = outputs("train_audit", {"pair": settings.pair})["audit"]
        each = [{"dataset": settings.dataset, "teacher": name} for name in teachers]
        read["teacher_checks"] = [outputs("train_check", names)["check"] for names in each]
    elif settings.teacher is not None:
        teacher = {"dataset": settings.dataset, "teacher": settings.teacher}
        read["teacher"] = outputs("evaluate_teacher", teacher)["measures"]
        read["teacher_check"] = outputs("train_check", teacher)["check"]
    return read


def run_names(pair: str, run: str) -> Names:
    """The names of the jobs of a run, which is `method/seed`."""
    method, _, seed = run.rpartition("/")
    return {"pair": pair, "method": method, "seed": seed}
