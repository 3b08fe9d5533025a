"""Train one teacher on one data set by cross-entropy; with 0 epochs, use its weights as they are.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare
writes  model      teacher.safetensors: the weights of the last epoch, named as in the plain network
        history    history.parquet: loss terms and validation metrics of every epoch; with 0
                   epochs, only the validation metrics, as epoch 0
        digest     digest.json: digests of the other files
or, to check a trained teacher,
reads   images, index, summary
                   as above
        model      teacher.safetensors
writes  check      check.json: validation accuracy against chance and `expected_accuracy`, class
                   order, calibration, problems, warnings. If there is a problem, the study stops
                   before any student learns from the teacher, unless `teacher_check` is `warn`.
                   It also stops if a method needs a classifier that was not trained.
or, with --pair, to compare the teachers of a pair with several,
reads   images, index, summary
                   as above
        teachers   teacher.safetensors of each
        checks     check.json of each; its content is not used
writes  audit      audit.json: for each teacher, accuracy on training images, agreement with the
                   others, and how much its probabilities and logits differ from theirs. The study
                   stops at an outlier as it does at a teacher that fails its check.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsteps.data.images import ImageSplit, Views
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.predictions import AGAIN, VARYING, ece, predict, varies
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import CheckSettings, TrainSettings
from kdsteps.methods.base import Task
from kdsteps.methods.labels import Labels
from kdsteps.models import Chain
from kdsteps.models.memory_format import batch_format
from kdsteps.stages._audit import audit
from kdsteps.stages._headers import entry_of
from kdsteps.stages._shared import (
    as_built,
    check_recipe,
    fresh_model,
    prepared,
    resume_file,
    save_model,
    share_cores,
    trained_model,
    validator,
    write_history,
)
from kdsteps.study import registry
from kdsteps.teachers.checks import (
    TeacherCheck,
    as_yaml,
    check_teacher,
    no_classifier,
    with_classifier,
)
from kdsteps.teachers.variants import Predicted, input_forms
from kdsteps.training.device import choose_device
from kdsteps.training.loop import Fit
from kdsteps.training.processes import Processes, in_processes
from kdsteps.training.random_states import seed_all

log = logging.getLogger("kdsteps")


def run(job: Job[Any]) -> None:
    """Train a teacher, check a trained one, or compare the teachers of a pair."""
    if "check" in job.outputs:
        _check(job)
    elif "audit" in job.outputs:
        audit(job)
    else:
        in_processes(_train, job, job.settings.train)


def _train(job: Job[TrainSettings], processes: Processes) -> None:
    """Train a network by cross-entropy and save its last epoch.

    Raises:
        KdstepsError: The training diverged: no student can learn from this teacher.
    """
    entry, recipe = job.settings.model, job.settings.train
    device = choose_device(job.gpus, job.threads, job.jobs_per_gpu, recipe.precision)
    data = prepared(job, device)
    seed_all(recipe.seed)
    network = fresh_model(entry, data).to(device)
    data = replace(data, memory_format=batch_format(network))
    share_cores(network, data, recipe.batch_size)
    split = data.part("train", stream=recipe.per_image)
    check_recipe(recipe, split, "train")
    task = Task(data.image_shape, len(data.class_names), split.labels)
    fit = Fit(
        Labels(None, network, task),
        split,
        recipe,
        seed=recipe.seed,
        validate=validator(network, data.part("validation")),
        resume=resume_file(job, f"{__name__}:run", registry.target("models", entry.family)),
        processes=processes,
    )
    fit.run()
    if fit.diverged is not None:
        raise KdstepsError(
            f"the teacher diverged: {fit.diverged}; a lower learning_rate or clip_grad_norm in "
            "its section `train` may help"
        )
    if not processes.first:
        return
    if not recipe.epochs:
        fit.history.add(0, fit.validate())
    save_model(
        job.outputs["model"],
        network.plain(),
        as_built(entry, network, data),
        data,
        job.settings,
        untrained=() if recipe.epochs else network.new_weights,
    )
    write_history(job.outputs["history"], fit, job.settings, device)
    fit.forget()


def _check(job: Job[CheckSettings]) -> None:
    """Judge a teacher by its predictions for the validation images.

    Raises:
        KdstepsError: It has a problem and `teacher_check` is not `warn`, or methods need its
            classifier, which was never trained.
    """
    path = job.inputs["model"]
    data = prepared(job, choose_device(job.gpus, job.threads, job.jobs_per_gpu))
    network, entry = trained_model(path, data).to(data.device), entry_of(path)
    if missing := no_classifier(read_checkpoint_header(path), data.num_classes):
        found, calibration = _for_features(path, missing, data, job.settings), None
    elif not data.labeled:
        found, calibration = _unlabeled(network, data, job.settings), None
    else:
        found, calibration = _judged(network, entry, data, job.settings)
    warnings, notes = list(found.warnings), []
    if _is_from_elsewhere(entry):
        drawn = read_json(job.inputs["summary"]).get("drawn", ()) if data.labeled else ()
        warnings += _seen_before(drawn)
        notes.append(_normalization(entry))
    for line in notes:
        log.info("the teacher %s: %s", path, line)
    if found.classes is not None:
        log.info("the teacher %s: its outputs are `classes: %s`", path, as_yaml(found.classes))
    for line in warnings:
        log.warning("the teacher %s: %s", path, line)
    if found.problems and job.settings.on_failure == "stop":
        raise KdstepsError(
            f"{path}: {found.problems[0]}; set `train: {{teacher_check: warn}}` to continue anyway"
        )
    for line in found.problems:
        log.warning("the teacher %s: %s", path, line)
    content = asdict(found) | {"warnings": warnings, "notes": notes, "ece": calibration}
    expected = {"expected_accuracy": job.settings.expected_accuracy}
    write_json(job.outputs["check"], content | expected | {"settings": job.settings.as_json()})


def _for_features(
    path: Path, missing: str, data: Prepared, settings: CheckSettings
) -> TeacherCheck:
    """The check of a network whose classifier was never trained: its features may still be good."""
    if not settings.features_only:
        raise KdstepsError(f"{path}: {missing}; {with_classifier(data.num_classes)}")
    return TeacherCheck(warnings=(f"{missing}; its accuracy means nothing and was not checked",))


@torch.inference_mode()
def _unlabeled(network: Chain, data: Prepared, settings: CheckSettings) -> TeacherCheck:
    """The check of a network on images without labels: whether its features can be used at all."""
    images = data.part("validation" if len(data.rows("validation")) else "train")
    shown = next(images.in_order(settings.batch_size)).images
    features = network(shown)
    if not bool(features.isfinite().all()):
        problem = "its features contain NaN or infinity; check its weights and its normalization"
        return TeacherCheck(problems=(problem,))
    if bool((features == features[0]).all()) and len(features) > 1:
        problem = "its features are the same for all images; check its weights and normalization"
        return TeacherCheck(problems=(problem,))
    if varies(network, features, shown):
        return TeacherCheck(problems=(f"its features {VARYING}",))
    return TeacherCheck(
        warnings=("the images have no labels, so only its features were checked, not its accuracy",)
    )


def _judged(
    network: Chain, entry: Mapping[str, Any], data: Prepared, settings: CheckSettings
) -> tuple[TeacherCheck, float | None]:
    """The check of a network by its predictions, and its expected calibration error."""
    images = data.part("validation")
    if not len(images):
        unchecked = "it was not checked, since there are no validation images"
        return TeacherCheck(warnings=(unchecked,)), None
    logits, labels = predict(network, images.in_order(settings.batch_size))
    forms = {}
    if _is_from_elsewhere(entry):
        forms = _forms(network, data, images, settings.batch_size)
    found = check_teacher(
        logits,
        labels,
        data.class_names,
        outputs=entry.get("classes"),
        expected_accuracy=settings.expected_accuracy,
        forms=forms,
    )
    if found.accuracy is None:
        return found, None
    log.info("validation accuracy %s, chance %.1f%%", found.accuracy, 100 * (found.chance or 0))
    if varies(network, logits, next(images.in_order(AGAIN)).images):
        found = replace(found, problems=(f"its logits {VARYING}", *found.problems))
    return found, ece(logits, labels)


def _is_from_elsewhere(entry: Mapping[str, Any]) -> bool:
    """Whether a network started from weights that were not trained in this study."""
    return bool(entry["options"].get("checkpoint") or entry["options"].get("pretrained"))


def _forms(
    network: Chain, data: Prepared, images: ImageSplit, batch_size: int
) -> dict[str, Predicted]:
    """What the network predicts for images in other forms: (n,) from their numbers (n,)."""

    def predicted(form: Callable[[Tensor], Tensor], numbers: Tensor) -> Tensor:
        found = []
        for some in numbers.split(batch_size):
            batch = images.take(some, Views(), torch.zeros_like(some))
            found.append(form(batch.images).argmax(dim=1))
        return torch.cat(found).cpu()

    height, width = data.image_shape[1:]
    with torch.inference_mode():
        forms = input_forms(network, data.mean.tolist(), data.std.tolist(), (height, width))
    return {what: torch.inference_mode()(partial(predicted, form)) for what, form in forms.items()}


def _normalization(entry: Mapping[str, Any]) -> str:
    """How the images of a network from elsewhere are normalized."""
    if (given := entry.get("normalize")) is None:
        return "images are normalized with the data set's mean and std: `normalize` is not set"
    mean, std = ([round(value, 4) for value in given[name]] for name in ("mean", "std"))
    return f"images are normalized with mean {mean} and std {std}"


def _seen_before(drawn: Collection[str]) -> list[str]:
    """A warning about a network from elsewhere whose training images are not known.

    Args:
        drawn: Splits that are not the data set's own.
    """
    if "test" in drawn:
        return [
            "its weights are from elsewhere and the test images were drawn at random, so it may "
            "have been trained on some of them, and test accuracies may be too high; name test "
            "images that it was not trained on (docs/own-images.md)"
        ]
    if "validation" in drawn:
        return [
            "its weights are from elsewhere and the validation images were drawn from the training "
            "images, so it may have been trained on some of them, and its validation accuracy may "
            "be too high; name validation images (docs/own-images.md)"
        ]
    return []
