"""Export one student as files for use elsewhere, and evaluate each file on the test images.

With `--student best`, it is the run of the pair with the highest accuracy on the validation images
after the last epoch; ties are broken by the lower loss. Test images are not used for this choice.

reads   images, index, summary
                      images.npy, index.parquet, summary.json of the stage prepare
        students      student.safetensors of every run that may be exported
        histories     history.parquet of these runs, to choose among them
        predictions   predictions.parquet of these runs
        measures      measures.json of every seed of their methods
        teacher       measures.json of the teacher, for methods with one
        teacher_check check.json of the teacher, whose problems and warnings are copied to the model
                      card
        teacher_checks, audit
                      instead, check.json of each of several teachers, and audit.json
writes  record        export.json: the run, its metrics, and each file with its checks, or why it
                      was not written
and, if params.yaml requests them and the student supports them,
        onnx, int8    model.onnx, model.int8.onnx: uint8 images (N, H, W, C) to logits (N, K), with
                      the normalization inside and a description in the metadata (key `kdsteps`)
        safetensors   model.safetensors: weights, named as in the plain network
        timm          config.json, with which timm loads the folder
        card          model_card.md
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdsteps.data.form import Form, make_form
from kdsteps.data.prepared import Prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.statistics import sample
from kdsteps.export.card import model_card
from kdsteps.export.checking import Checks, logits_of_test, pixels
from kdsteps.export.choosing import best_first, interval_of, last_validation
from kdsteps.export.description import Description
from kdsteps.export.int8 import calibration_rows
from kdsteps.export.record import FILES, Candidate, ExportedFile, Record
from kdsteps.export.runners import TorchRunner
from kdsteps.export.writing import Student, write_formats
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import HISTORY, PREDICTIONS
from kdsteps.files.digests import file_digest
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json, write_text
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import ExportSettings
from kdsteps.models import architecture
from kdsteps.places import installed_version
from kdsteps.stages._headers import model_in, read_network
from kdsteps.stages._shared import fresh_model, prepared, provenance, share_cores, trained_model
from kdsteps.study.exports import BEST
from kdsteps.study.part_imports import shipped
from kdsteps.study.settings import Normalization
from kdsteps.training.device import choose_device

log = logging.getLogger("kdsteps")

_NO_METRICS = frozenset(
    {"num_images", "diverged", "divergence", "accuracy_per_class", "settings", "provenance"}
)
"""Entries of measures.json that are not metrics."""


def run(job: Job[ExportSettings]) -> None:
    """Export one student and write what is known of it and of its files."""
    settings, started = job.settings, time.monotonic()
    measures = dict(zip(settings.measured_runs, map(_measures, job.lists["measures"]), strict=True))
    candidates = _candidates(job, measures)
    exported = candidates[0].run.partition("/")[2] if candidates else settings.run
    place = settings.candidate_runs.index(exported)
    device = choose_device(0, job.threads)
    data = prepared(job, device)
    summary = read_json(job.inputs["summary"])
    student = _student(job.lists["students"][place], exported, data, summary, settings)
    files = _files(job, student, data, place, diverged=measures[exported]["diverged"])
    made = provenance(device, time.monotonic() - started)
    record = Record(
        **_run_numbers(settings, exported, measures),
        options=read_checkpoint_header(job.lists["students"][place])["settings"]["options"],
        **_study_numbers(job, candidates, summary),
        family=student.family,
        network_options=_without_weights(student.options),
        network_size=student.resize.size if student.resize else None,
        interpolation=student.resize.interpolation if student.resize else None,
        outputs=student.outputs,
        image_shape=data.image_shape,
        class_names=data.class_names,
        description=vars(student.description),
        files=files,
        provenance=_versions(made, settings.formats),
    )
    write_text(job.outputs["card"], model_card(record, _warnings(job, record.teacher)))
    write_json(job.outputs["record"], record.as_dict())
    for file in files:
        said = f"accuracy {file.accuracy:.4f}" if file.name else f"not written: {file.reason}"
        log.info("%s of %s: %s", file.format, record.run, said)


# which student


def _measures(path: Path) -> dict[str, Any]:
    found = read_json(path)
    missing = [name for name in ("accuracy", "diverged", "num_images") if name not in found]
    if missing:
        raise KdstepsError(f"{path}: has no {missing[0]!r}; evaluate the network again")
    return found


def _candidates(
    job: Job[ExportSettings], measures: Mapping[str, Mapping[str, Any]]
) -> list[Candidate]:
    """The runs among which the best is chosen, the best first; none if params.yaml names it.

    Raises:
        KdstepsError: There are several and no validation images to choose by.
    """
    settings = job.settings
    if settings.run != BEST:
        return []
    found = []
    for name, path in zip(settings.candidate_runs, job.lists["histories"], strict=True):
        table = read_table(path, HISTORY).to_pydict()
        accuracy, loss = (None, None) if measures[name]["diverged"] else last_validation(table)
        found.append(Candidate(f"{settings.pair}/{name}", accuracy, loss))
    finished = any(not measures[name]["diverged"] for name in settings.candidate_runs)
    unknown = all(each.validation_accuracy is None for each in found)
    if len(found) > 1 and finished and unknown:
        raise KdstepsError(
            f"export.runs is best, and {settings.dataset} has no validation images to choose by; "
            f"set prepare.validation above 0, or name the run, such as {found[0].run}"
        )
    return best_first(found)


def _student(
    path: Path,
    exported: str,
    data: Prepared,
    summary: Mapping[str, Any],
    settings: ExportSettings,
) -> Student:
    """The exported student, from its checkpoint."""
    chain = trained_model(path, data, even_diverged=True)
    _, header = read_network(path)
    entry = model_in(header)
    entry = entry.model_copy(update={"options": architecture(entry.options)})
    own = entry.normalize if isinstance(entry.normalize, Normalization) else None
    form = _form(summary, data)
    description = Description(
        run=f"{settings.pair}/{exported}",
        network=settings.student,
        classes=list(data.class_names),
        channels=form.channels,
        image_size=(data.image_shape[1], data.image_shape[2]),
        resize=form.resize,
        store=form.store,
        crop=form.crop,
        mean=list(own.mean if own else data.mean.tolist()),
        std=list(own.std if own else data.std.tolist()),
        provenance={"kdsteps": installed_version(), "weights": file_digest(path)},
    )
    rows = calibration_rows(data.rows("train"))
    return Student(
        chain=chain,
        rebuild=lambda: fresh_model(entry, data),
        family=entry.family,
        options=entry.options,
        mean=data.mean,
        std=data.std,
        description=description,
        samples=pixels(data, rows),
    )


def _form(summary: Mapping[str, Any], data: Prepared) -> Form:
    """How image files were decoded, as far as the options of the data set say it."""
    made = summary.get("settings", {})
    options = made.get("options", {}) if made.get("kind") in shipped("data") else {}
    known = {name: options.get(name) for name in ("resize", "crop", "store", "image_size")}
    channels: Any = data.image_shape[0]
    return replace(make_form(**known), channels=channels)


# its files


def _files(
    job: Job[ExportSettings], student: Student, data: Prepared, place: int, *, diverged: bool
) -> list[ExportedFile]:
    """Write the files; a student that diverged has none."""
    settings = job.settings
    if diverged:
        wanted: list[Any] = [*settings.formats, *(["int8"] if settings.int8 else [])]
        reason = "the training of the student diverged"
        return [ExportedFile(name, None, reason) for name in sorted(wanted, key=[*FILES].index)]
    share_cores(student.chain, data, settings.throughput_batch)
    threads = torch.get_num_threads()
    rows = data.rows("test")
    runner = TorchRunner(student.from_pixels())
    checks = Checks(
        data=data,
        labels=data.labels[rows],
        predicted=_predicted(job.lists["predictions"][place], rows),
        expected=logits_of_test(runner.on(threads), data, settings.throughput_batch),
        runs=settings.latency_runs,
        batch_size=settings.throughput_batch,
        threads=threads,
    )
    places = {name: job.outputs[name] for name in FILES}
    return write_formats(student, settings.formats, places, checks, int8=settings.int8)


def _predicted(path: Path, rows: np.ndarray) -> np.ndarray:
    """(N,) classes that the stage evaluate predicted for the test images."""
    table = read_table(path, PREDICTIONS)
    if table["image"].to_pylist() != rows.tolist():
        raise KdstepsError(f"{path}: is of other images than the test images; evaluate again")
    predicted: np.ndarray = table["predicted"].to_numpy()
    return predicted


# its numbers


def _run_numbers(
    settings: ExportSettings, exported: str, measures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Entries of the record about the exported run and the other seeds of its method."""
    method, _, seed = exported.rpartition("/")
    mine, entry = measures[exported], settings.methods[method]
    level = settings.confidence
    of_seeds = {str(seed): measures[f"{method}/{seed}"]["accuracy"] for seed in settings.seeds}
    known = [value for value in of_seeds.values() if value is not None]
    found = sample(known, level) if known else None
    accuracy = mine["accuracy"]
    return {
        "pair": settings.pair,
        "method": method,
        "seed": int(seed),
        "algorithm": entry.method,
        "teacher": settings.teacher if entry.teacher else None,
        "diverged": mine["diverged"],
        "metrics": {name: value for name, value in mine.items() if name not in _NO_METRICS},
        "accuracy_per_class": mine.get("accuracy_per_class"),
        "accuracy_interval": interval_of(accuracy, mine["num_images"], level),
        "seeds": of_seeds,
        "seeds_mean": None if found is None else found.mean,
        "seeds_interval": None if found is None or found.low is None else (found.low, found.high),
        "confidence": level,
    }


def _study_numbers(
    job: Job[ExportSettings], candidates: list[Candidate], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Entries of the record about the study."""
    settings = job.settings
    taught = read_json(job.inputs["teacher"]) if "teacher" in job.inputs else {}
    chosen = ""
    if len(candidates) > 1:
        chosen = (
            f"It has the highest accuracy on the validation images after the last epoch, of "
            f"{len(candidates)} runs; test images played no part in the choice."
        )
        if candidates[0].validation_accuracy is None:
            chosen = f"It is the first of {len(candidates)} runs, which all diverged."
    elif candidates:
        chosen = "It is the only run of its pair."
    images = summary["images_of_class"]["test"]
    return {
        "chosen": chosen,
        "candidates": candidates,
        "dataset": settings.dataset,
        "kind": summary.get("settings", {}).get("kind", ""),
        "num_images": summary["images"],
        "chance": max(images) / sum(images),
        "student": settings.student,
        "teacher_accuracy": taught.get("accuracy"),
        "settings": settings.as_json(),
    }


def _warnings(job: Job[ExportSettings], teacher: str | None) -> list[str]:
    """What the checks of its teachers and their audit found, if the student has teachers."""
    if teacher is None:
        return []
    if job.settings.several:
        audited = read_json(job.inputs["audit"])["teachers"]
        checks = [read_json(path) for path in job.lists["teacher_checks"]]
        named = zip(audited, checks, strict=True)
        found = [*({"teacher": each["teacher"]} | check for each, check in named), *audited]
    else:
        found = [{"teacher": teacher} | read_json(job.inputs["teacher_check"])]
    return [
        f"The teacher {each['teacher']}: {line}."
        for each in found
        for line in (*each["problems"], *each["warnings"])
    ]


def _without_weights(options: Any) -> Any:
    """Options of a network without the paths of weights, also in those of networks inside it."""
    if not isinstance(options, Mapping):
        return options
    return {name: _without_weights(value) for name, value in architecture(options).items()}


def _versions(found: dict[str, Any], formats: Sequence[str]) -> dict[str, Any]:
    """Provenance with the versions of the libraries that write and run the files."""
    names = ["onnx", "onnxscript", "onnxruntime"] if "onnx" in formats else []
    more = {name: version(name) for name in [*names, "safetensors"]}
    return found | {"versions": found["versions"] | more}
