"""Run one job here: from the job cache, or by its stage."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kdsteps.cli.calls import Call
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import all_or_none, check_places
from kdsteps.files.damaged import forget_aside
from kdsteps.files.digests import write_digests
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.cache_folder import check_cache_folder
from kdsteps.jobs.gpu_slots import given_gpus
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.job import Files, Job
from kdsteps.jobs.live import logged_live
from kdsteps.jobs.outputs import optional_outputs
from kdsteps.jobs.own_files import check_own_files
from kdsteps.jobs.planned_code import PlannedCode
from kdsteps.jobs.progress import reported
from kdsteps.jobs.provenance import check_input, input_digests, provenance_of_job
from kdsteps.jobs.resources import cores_there
from kdsteps.jobs.run_lock import during_job
from kdsteps.jobs.settings import DistilSettings, JobSettings
from kdsteps.jobs.storage import files_below

ON_GPU = ("train", "cache", "tune", "distil", "evaluate")  # stages that use a GPU if there is one


def run_call(
    call: Call, threads: int = 0, gpus: int | None = None, jobs_per_gpu: int = 1, **hints: Any
) -> None:
    """Run one job here: from the job cache, or by its stage.

    Args:
        threads: Cores it may use; 0: all.
        gpus: GPUs it may use; None: as many as its settings say, if there are any and the stage can
            use them.
        jobs_per_gpu: Jobs that may share each of these GPUs, this one included.
        hints: Options that change no result, over those of the call.

    Raises:
        KdstepsError: The user can fix what stops it.
    """
    _check_inputs(call)
    optional = optional_outputs(call.rule, call.outputs)
    final = Files(call.outputs | optional, "--outputs")
    check_places(final.values())
    check_cache_folder()
    target = next(iter(final.values()), Path())
    with (
        ExitStack() as at_the_end,
        during_job(target) as check_run,
        reported(target),
        files_below(call.root),
    ):
        started, clock = time.time(), time.monotonic()  # the first may be set back meanwhile
        read = input_digests(call.rule, call.read, call.root)
        _check_provenance(call)

        def check() -> None:
            check_run()
            _check_unchanged(call, read)

        settings = call.settings.as_json()
        with remembered(call.rule, settings, call.code, call.read, final, optional) as known:
            if not known:
                code = PlannedCode(call.expected, call.code)
                code.check_before()
                check_own_files(call.settings)
                job = Job(
                    settings=_settings(call),
                    inputs=Files(call.inputs, "--inputs"),
                    outputs=final,
                    final=final,
                    code=code,
                    lists=call.lists,
                    threads=max(1, min(threads or cores_there(), cores_there())),
                    gpus=_gpus_by_default(call) if gpus is None else gpus,
                    jobs_per_gpu=jobs_per_gpu,
                    **call.hints | hints,
                )
                loggers = logged_live(target, call.loggers)
                at_the_end.enter_context(loggers)
                _run(call.rule, job, final, optional, check)
        written = {name: path for name, path in final.items() if path.exists()}
        digests = read_json(final["digest"]) if "digest" in final else {}
        made = provenance_of_job(
            *(call.rule, call.settings.as_text(), call.code or "", read, written),
            *(started, started + time.monotonic() - clock, digests),
        )
        made.write(call.outputs)
        _date_before([path for paths in call.read.values() for path in paths], written.values())
        forget_aside(final.values())
        for name in optional.keys() & call.outputs.keys():  # declared, since they are in storage
            call.outputs[name].touch()


def _date_before(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Let no input have a later time than an output, as after a clock was ahead.

    Snakemake takes such outputs for corrupted, and deletes them. It looks at their times only after
    it has set them to its own, so those of the inputs have to change.
    """
    oldest = min(path.stat().st_mtime_ns for path in outputs)
    for path in inputs:
        if path.stat().st_mtime_ns > oldest:
            with suppress(OSError):  # a file of another user
                os.utime(path, ns=(oldest, oldest))


def _check_inputs(call: Call) -> None:
    for name, paths in call.read.items():
        for path in paths:
            if not path.is_file():
                raise KdstepsError(
                    f"{path}: not found (input {name!r}); run the stage that writes it, or the "
                    "whole study with snakemake"
                )


def _check_provenance(call: Call) -> None:
    """Refuse inputs that are damaged, or not what the study's jobs make."""
    for name, given in call.read.items():
        expected = call.expected.get(name) or [""] * len(given)
        for path, identity in zip(given, expected, strict=True):
            check_input(path, identity or None)


def _check_unchanged(call: Call, read: Mapping[str, str]) -> None:
    """Refuse a result if other files than it is recorded to be made from may have been read."""
    now = input_digests(call.rule, call.read, call.root)
    if other := [path for path in read if now[path] != read[path]]:
        raise KdstepsError(
            f"{other[0]}: was changed while a job read it; run snakemake again, which uses what "
            "is there now"
        )


def _settings(call: Call) -> JobSettings:
    """The settings of a job; of a student, with the values that the stage `tune` chose."""
    if not isinstance(call.settings, DistilSettings) or not call.settings.tuned:
        return call.settings
    choice = Files(call.inputs, "--inputs")["choice"]
    return call.settings.with_values(read_json(choice)["values"])


def _gpus_by_default(call: Call) -> int:
    on_gpu = graph.stage_of(call.rule) in ON_GPU and gpus_there()
    return call.settings.gpus if on_gpu else 0


def _run(
    rule: str,
    job: Job[Any],
    final: Files,
    optional: Collection[str],
    check: Callable[[], None],
) -> None:
    """Run a job's stage; its files are put in place only if `check` raises no error.

    Torch is first imported here, when only the job's own GPUs are visible.
    """
    with given_gpus(job.gpus, job.jobs_per_gpu), all_or_none(final, optional) as drafts:
        with _uncollected():
            run = import_module(f"kdsteps.stages.{graph.stage_of(rule)}").run
        try:
            run(replace(job, outputs=Files(drafts, "--outputs")))
        except RuntimeError as error:
            explain = import_module("kdsteps.training.out_of_memory").out_of_memory
            if sentence := explain(error, job):
                raise KdstepsError(sentence) from error
            raise
        job.code.check()
        check_own_files(job.settings)  # as they were at its end
        if "digest" in drafts:
            write_digests(drafts, final)
        check()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage while torch is imported: it makes many objects, and all of them stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
