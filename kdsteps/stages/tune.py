"""Try values for a method on the validation images, and choose among them.

reads   images, index, summary
                   images.npy, index.parquet, summary.json of the stage prepare; no test image
        teacher, plan, check, ticket, or teachers, checks, tickets, audit
                   as the stage distil
        earlier    trial.json of every trial with the previous seeds, if only the best continue
writes  trial      trial.json: the values, and accuracy and loss on the validation images after
                   every epoch; whether and where the training diverged; or that it was skipped
or, without --trial,
reads   results    trial.json of every trial and seed
writes  choice     choice.json: the values of the best trial, with which the students are trained
        trials     trials.json: every trial with its means over the seeds, which one is best, and
                   which of its values are the lowest or highest tried

A trial is trained as the stage distil trains a student, with other seeds. The best trial, of those
trained with the most seeds, has the highest mean validation accuracy after the last epoch; ties are
broken by the lower mean loss, then by the order of trials. A trial that diverged is never chosen.
Repeating a job produces the same files; how long it took is in trial.provenance.json.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.evaluation.trials import Trial, edges, ranked, trials_of
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import HISTORY, INDEX
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import ChooseSettings, TuneSettings
from kdsteps.stages import _several, _student

log = logging.getLogger("kdsteps")

Trainer = Callable[[Job[Any]], None]
SCRATCH = Path(".kdsteps")  # the student of a trial is needed only until it has been judged


def run(job: Job[Any]) -> None:
    """Train and judge one trial, or choose among all trials of a method."""
    if "choice" in job.outputs:
        _choose(job)
    elif "teachers" in job.lists:
        _try(job, _several.run)
    else:
        _try(job, _student.run)


def _try(job: Job[TuneSettings], train: Trainer) -> None:
    """Train a student with the values of a trial, and write its validation metrics.

    Args:
        train: Trains it, by one teacher or several.

    Raises:
        KdstepsError: There are no validation images.
    """
    settings = job.settings
    splits = read_table(job.inputs["index"], INDEX)["split"].to_pylist()
    if not (num_images := splits.count("validation")):
        raise KdstepsError(
            "tune: there are no validation images to judge a trial by; set prepare.validation "
            "above 0, or leave out `tune` of all methods"
        )
    found: dict[str, Any] = {"values": settings.values, "seed": settings.seed}
    if trained := _goes_on(job):
        found |= {"num_images": num_images, **_result_of_training(job, train)}
    else:
        log.info("left out: not among the best %d with the seeds before", settings.survivors)
    content = {"trained": trained, **found, "settings": settings.as_json()}
    write_json(job.outputs["trial"], content)


def _goes_on(job: Job[TuneSettings]) -> bool:
    """Whether a trial is trained with its seed: all are with the first, later only the best."""
    settings = job.settings
    if settings.survivors is None:
        return True
    before = ranked(trials_of([read_json(path) for path in job.lists["earlier"]]))
    return settings.values in [trial.values for trial in before[: settings.survivors]]


def _result_of_training(job: Job[TuneSettings], train: Trainer) -> dict[str, Any]:
    """Train as the stage distil does: where the training diverged, and metrics of every epoch."""
    SCRATCH.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="trial-", dir=SCRATCH) as folder:
        files = {
            "model": Path(folder, "student.safetensors"),
            "history": Path(folder, "history.parquet"),
        }
        train(replace(job, outputs=files))
        diverged = read_checkpoint_header(files["model"]).get("diverged")
        rows = read_table(files["history"], HISTORY).to_pylist()
    found: dict[str, Any] = {"diverged": diverged}
    for name in ("validation_accuracy", "validation_loss"):
        values = [row["value"] for row in rows if row["name"] == name]
        found[name] = [value if math.isfinite(value) else None for value in values]
    return found


def _choose(job: Job[ChooseSettings]) -> None:
    """Choose the best trial.

    Raises:
        KdstepsError: All trials diverged.
    """
    results = [read_json(path) for path in job.lists["results"]]
    tried = trials_of(results)
    best = ranked(tried)[0]
    if best.diverged:
        raise KdstepsError(
            f"tune: the training diverged in all {len(tried)} trials, so none can be chosen; try "
            "lower values of distil.learning_rate or of weights, or set clip_grad_norm"
        )
    content = {
        "num_images": results[0]["num_images"],
        "best": tried.index(best),
        "edges": edges(best, tried),
        "trials": [_row(trial) for trial in tried],
        "settings": job.settings.as_json(),
    }
    write_json(job.outputs["choice"], {"values": best.values})
    write_json(job.outputs["trials"], content)
    log.info("chosen: %s, validation accuracy %.4f", best.values, best.accuracy)


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "values": trial.values,
        "seeds": list(trial.seeds),
        "validation_accuracy": trial.accuracy,
        "validation_loss": trial.loss,
        "accuracy_of_seed": list(trial.accuracies),
        "diverged": trial.diverged,
    }
