"""The files that jobs read, by the names of their inputs."""

from __future__ import annotations

from kdsteps.jobs.outputs import Names, outputs
from kdsteps.study.entries import Pair
from kdsteps.study.training_settings import ViewSettings, name_of

REPORTED = {
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
PROBES = {
    "probes": ("evaluate_probe", "probe"),
    "teacher_probes": ("evaluate_probe_teacher", "teacher_probe"),
    "untrained_probes": ("evaluate_probe_untrained", "untrained_probe"),
}
"""What it also reads of a study with `probe`."""

LISTS = frozenset(
    {*REPORTED, *PROBES, "accepted", "students", "students_digest", "earlier", "results"}
    | {"teachers", "teachers_digest", "checks", "tickets", "audits"}
)
"""Names of inputs that are lists of files."""


def prepared_images(dataset: str) -> dict[str, str]:
    """The prepared images as a job reads them."""
    files = outputs("prepare", {"dataset": dataset})
    return {name: files[name] for name in ("images", "index", "summary")} | {
        "images_digest": files["digest"]
    }


def trained_teacher(names: Names) -> dict[str, str]:
    """A trained teacher as a job reads it."""
    files = outputs("train", names)
    return {"model": files["model"], "model_digest": files["digest"]}


def trained_teachers(pair: Pair, views: ViewSettings | None = None) -> dict[str, list[str]]:
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


def as_teacher(path: str, files: Names) -> dict[str, str]:
    """A file of the one teacher of a student, as a job reads it."""
    return {"teacher": path, "teacher_digest": files["digest"]}
