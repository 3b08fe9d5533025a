"""Checks of what a study does with images without labels, and of the labeled images of `probe`."""

from __future__ import annotations

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study import registry
from kdsteps.study.study import Study


def check_labels(study: Study, where: str) -> None:
    """Check that nothing needs labels where there are none.

    Raises:
        KdstepsError: A method, a teacher or a plan needs labels that a data set does not have, or
            `probe` names no labeled data set.
    """
    for name, dataset in study.datasets.items():
        if dataset.classes is not None and dataset.labels is None:
            raise KdstepsError(
                f"{where}: datasets.{name}.classes: the classes follow from its labels; leave it "
                "out, or set `labels: none`"
            )
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
    named = study.datasets[pair.dataset].classes is not None
    without = f"datasets.{pair.dataset} (pairs.{name}) has none"
    for method, entry in study.methods.items():
        if entry.needs_labels:
            raise KdstepsError(
                f"{where}: methods.{method}: needs labels{_unless(entry.method)}, and {without}; "
                f"without labels there are {_label_free(named)}"
            )
        if entry.needs_classifier and not named:
            raise KdstepsError(
                f"{where}: methods.{method}: needs the teacher's classifier, and "
                f"datasets.{pair.dataset} has no classes; list them in its `classes`, in the order "
                f"of the teacher's outputs, or use {_label_free(named)}"
            )
        if study.params.methods[method].tune is not None:
            raise KdstepsError(
                f"{where}: methods.{method}.tune: is judged by the accuracy on validation images, "
                f"and needs labels, but {without}; leave it out"
            )
        select = study.build(name, method).select
        if entry.plan == "pairs" and isinstance(select, str):
            raise KdstepsError(
                f"{where}: build.select is {select!r} for {method}, and layers are scored with "
                f"labels, but {without}; leave it out for the ends of the teacher's stages, or "
                "list layers"
            )
    if name in {exported for exported, _ in study.exported}:
        raise KdstepsError(
            f"{where}: export: every file is evaluated on labeled test images, but {without}; "
            "leave the section out, or list runs of other pairs"
        )
    for teacher in pair.teacher_names:
        if study.trainings[teacher].epochs:
            raise KdstepsError(
                f"{where}: models.{teacher}: is trained with labels, and {without}; set `train: "
                "{epochs: 0}`, and a checkpoint or published weights"
            )
    for model in (*pair.teacher_names, pair.student):
        if study.models[model].classes is not None and not named:
            raise KdstepsError(
                f"{where}: models.{model}.classes: names classes, and {without}; leave it out"
            )


def _unless(method: str) -> str:
    """The options with which a method needs no labels, if there are any."""
    claim = registry.find("methods", method, method).described.needs_labels
    if isinstance(claim, bool):
        return ""
    return f" unless {', '.join(f'`{name}: {value}`' for name, value in claim.items())}"


def _label_free(with_classifier: bool) -> str:
    """The methods that need no labels, with the options for that.

    Args:
        with_classifier: Whether they may need a classifier.
    """
    plain, with_options = [], []
    for name in registry.names("methods"):
        part = registry.find("methods", name, name)
        claim = part.described.needs_labels
        if claim is True or (part.wants in ("logits", "blocks") and not with_classifier):
            continue
        options = part.parse({}, name)
        wanted = {} if isinstance(claim, bool) else dict(claim)
        if part.wants == "layers" and part.needs_classifier(options | wanted):
            wanted["kd_weight"] = 0
        changed = [f"{key}: {v}" for key, v in wanted.items() if options[key] != v]
        if changed:
            with_options.append(f"{name} ({', '.join(changed)})")
        else:
            plain.append(name)
    return ", ".join(plain + with_options)
