"""Checks of what a study does with images without labels, and of the labeled images of `probe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry

if TYPE_CHECKING:
    from kdsteps.study.study import Study


def check_labels(study: Study, where: str) -> None:
    """Check that nothing needs labels where there are none.

    Raises:
        KdstepsError: A method, a teacher or a plan needs labels that a data set does not have, or
            `probe` names no labeled data set.
    """
    for name in study.pairs:
        if not study.has_labels(name):
            _check_pair(study, name, where)
    probe = study.params.probe
    if probe is None:
        return
    labeled = [name for name, dataset in study.datasets.items() if dataset.labels is None]
    if probe.dataset not in study.datasets:
        raise KdstepsError(
            f"{where}: probe.dataset is {probe.dataset!r}, which is not under datasets"
            f"{nearest(probe.dataset, labeled)}"
        )
    if probe.dataset not in labeled:
        others = f"; it can be {', '.join(labeled)}" if labeled else "; add one that has labels"
        raise KdstepsError(
            f"{where}: probe.dataset is {probe.dataset!r}, which has no labels{others}"
        )


def _check_pair(study: Study, name: str, where: str) -> None:
    pair = study.pairs[name]
    without = f"datasets.{pair.dataset} (pairs.{name}) has none"
    for method, entry in study.methods.items():
        if entry.needs_labels or entry.needs_classifier:
            needed = "labels" if entry.needs_labels else "the teacher's classifier"
            raise KdstepsError(
                f"{where}: methods.{method}: needs {needed}, and {without}; without labels there "
                f"are {_label_free()}"
            )
        select = study.build(name, method).select
        if entry.plan == "pairs" and isinstance(select, str):
            raise KdstepsError(
                f"{where}: build.select is {select!r} for {method}, and layers are scored with "
                f"labels, but {without}; leave it out for the ends of the teacher's stages, or "
                "list layers"
            )
    if study.trainings[pair.teacher].epochs:
        raise KdstepsError(
            f"{where}: models.{pair.teacher}: is trained with labels, and {without}; set `train: "
            "{epochs: 0}`, and a checkpoint or published weights"
        )
    for model in (pair.teacher, pair.student):
        if study.models[model].classes is not None:
            raise KdstepsError(
                f"{where}: models.{model}.classes: names classes, and {without}; leave it out"
            )


def _label_free() -> str:
    """The methods that need neither labels nor a classifier, with the options for that."""
    plain, with_options = [], []
    for name in registry.names("methods"):
        part = registry.find("methods", name, name)
        claim = part.described.needs_labels
        if claim is True or part.wants in ("logits", "blocks"):
            continue
        options = part.parse({}, name)
        wanted = {} if isinstance(claim, bool) else dict(claim)
        if part.needs_classifier(options | wanted):
            wanted["kd_weight"] = 0
        changed = [f"{key}: {v}" for key, v in wanted.items() if options[key] != v]
        if changed:
            with_options.append(f"{name} ({', '.join(changed)})")
        else:
            plain.append(name)
    return ", ".join(plain + with_options)
