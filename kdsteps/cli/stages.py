"""The command of every stage: one job, by its names in params.yaml or by its files."""

from __future__ import annotations

import argparse
import ast
import gc
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdsteps.cli.section_help import section_help
from kdsteps.cli.whole_numbers import count
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import all_or_none, check_places
from kdsteps.files.damaged import forget_aside
from kdsteps.files.digests import write_digests
from kdsteps.files.text import read_json
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.cache import remembered
from kdsteps.jobs.gpu_slots import MAX_JOBS_PER_GPU, given_gpus
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.job import Files, Job
from kdsteps.jobs.live import RULES as LOGGED
from kdsteps.jobs.live import logged_live
from kdsteps.jobs.outputs import flat, optional_outputs
from kdsteps.jobs.progress import reported
from kdsteps.jobs.provenance import check_input, provenance_of_job
from kdsteps.jobs.resources import cores_there
from kdsteps.jobs.run_lock import during_job
from kdsteps.jobs.settings import SETTINGS, DistilSettings, JobSettings, ReportSettings
from kdsteps.jobs.storage import files_below, with_stored_files
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.loggers import LoggerSettings
from kdsteps.study.loggers import from_text as loggers_from
from kdsteps.study.resolving import parse
from kdsteps.study.study import Study

NAMES = {
    "dataset": "a name under `datasets`",
    "teacher": "a name under `models`",
    "views": "for the teacher's logits: how images are augmented, such as crop4_flip_batch64",
    "pair": "a name under `pairs`",
    "method": "a name under `methods`",
    "trial": "the number of a trial, from 1",
    "seed": "one of `seeds`; of a trial, one of `tune.seeds`",
    "student": "`best`, or METHOD/SEED",
}
ON_GPU = ("train", "cache", "tune", "distil", "evaluate")  # stages that use a GPU if there is one
PROBES = {"evaluate": "evaluate_probe", "evaluate_teacher": "evaluate_probe_teacher"}
"""What is measured of a network instead of its predictions, if there are no labels."""
HINTS = ("keep", "passes", "budget_mib", "checkpoint_seconds")  # options that change no result


def add_stage(commands: Any, stage: str) -> None:
    """Add a stage's command; its help is the docstring of its module, read without importing it."""
    text = _docstring(f"kdsteps.stages.{stage}")
    summary = text.splitlines()[0].rstrip(".")
    parser = commands.add_parser(
        stage,
        help=summary[0].lower() + summary[1:],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_name = parser.add_argument_group("by name, with settings and files from params.yaml")
    by_name.add_argument("--params", default="params.yaml", help="the study (%(default)s)")
    for name in NAMES:
        shown = NAMES[name] if name in _names(stage) else argparse.SUPPRESS
        by_name.add_argument(f"--{name}", help=shown)
    by_file = parser.add_argument_group("by file, as Snakemake calls it")
    by_file.add_argument("--settings", metavar="JSON", help="the settings that the job depends on")
    by_file.add_argument(
        "--inputs", nargs="*", metavar="NAME=PATH", default=[], help="files to read"
    )
    by_file.add_argument(
        "--outputs", nargs="*", metavar="NAME=PATH", default=[], help="files to write"
    )
    by_file.add_argument(
        "--expect",
        nargs="*",
        metavar="NAME=DIGEST",
        default=[],
        help="digest of the settings and the code of the job that wrote an input",
    )
    by_file.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the folder of the files, which have the same paths in it as in the study's folder; "
        "images and checkpoints are read from there too (the current folder)",
    )
    by_file.add_argument(
        "--code", metavar="DIGEST", help="digest of the job's code; without it, no job cache"
    )
    parser.add_argument(
        "--threads", type=count, default=cores_there(), metavar="N", help="CPU cores (all)"
    )
    parser.add_argument(
        "--gpus",
        type=count,
        metavar="N",
        help="number of GPUs, 0 for the CPU (if there is a GPU, `gpus` of params.yaml, else 0)",
    )
    parser.add_argument(
        "--jobs-per-gpu",
        type=jobs_per_gpu,
        default=1,
        metavar="N",
        help="jobs that may share a GPU with each other, this one included (%(default)s)",
    )
    if stage in ("cache", "tune", "distil"):
        _add_caching(parser)
    if stage in ("train", "tune", "distil"):
        parser.add_argument(
            "--checkpoint-seconds",
            type=count,
            metavar="S",
            help="seconds between two saves of the training state (params.yaml)",
        )
        by_file.add_argument(
            "--loggers",
            metavar="JSON",
            help="where metrics are logged while the job runs; results do not change",
        )
    parser.more_help = partial(section_help, stage)
    parser.set_defaults(run=_run_given)


def _add_caching(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is cached of a teacher; they do not change results."""
    parser.add_argument(
        "--keep",
        choices=("auto", "always", "never"),
        help="whether to cache the teacher's logits for training; auto: if it saves time",
    )
    parser.add_argument(
        "--passes",
        type=count,
        metavar="N",
        help="passes over the training images that would use the cache, in all runs together",
    )
    parser.add_argument(
        "--budget-mib",
        type=count,
        metavar="MIB",
        help="largest size of a cache file (params.yaml)",
    )


def jobs_per_gpu(text: str) -> int:
    if not 1 <= (given := count(text)) <= MAX_JOBS_PER_GPU:
        raise argparse.ArgumentTypeError(f"is {given}; it should be from 1 to {MAX_JOBS_PER_GPU}")
    return given


def _names(stage: str) -> set[str]:
    """The names that distinguish a stage's jobs."""
    return {name for rule in graph.rules_of(stage) for name in graph.names_of(rule)}


def _run_given(given: argparse.Namespace) -> None:
    call = _by_file(given) if given.settings else _by_name(given)
    run_call(call, given.threads, given.gpus, given.jobs_per_gpu, **_given_hints(given))


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
    target = next(iter(final.values()), Path())
    with (
        ExitStack() as at_the_end,
        during_job(target) as check_run,
        reported(target),
        files_below(call.root),
    ):
        started = time.time()
        _check_provenance(call)
        settings = call.settings.as_json()
        with remembered(call.rule, settings, call.code, call.read, final, optional) as known:
            if not known:
                job = Job(
                    settings=_settings(call),
                    inputs=Files(call.inputs, "--inputs"),
                    outputs=final,
                    final=final,
                    lists=call.lists,
                    threads=max(1, min(threads or cores_there(), cores_there())),
                    gpus=_gpus_by_default(call) if gpus is None else gpus,
                    jobs_per_gpu=jobs_per_gpu,
                    **call.hints | hints,
                )
                loggers = logged_live(target, call.loggers)
                at_the_end.enter_context(loggers)
                _run(call.rule, job, final, optional, check_run)
        written = {name: path for name, path in final.items() if path.exists()}
        digests = read_json(final["digest"]) if "digest" in final else {}
        made = provenance_of_job(
            *(call.rule, call.settings.as_text(), call.code or "", call.read, written),
            *(started, time.time(), digests, call.root),
        )
        made.write(call.outputs)
        forget_aside(final.values())
        for name in optional.keys() & call.outputs.keys():  # declared, since they are in storage
            call.outputs[name].touch()


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
    check_run: Callable[[], None],
) -> None:
    """Run a job's stage; its files are put in place only if its run has not ended.

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
        if "digest" in drafts:
            write_digests(drafts, final)
        check_run()


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


@dataclass(frozen=True)
class Call:
    """A job as the command line describes it.

    Attributes:
        read: The files it reads, by name of an input.
        hints: Options that change no result.
        expected: By name of an input, what `provenance.identity` is in the study for the job that
            wrote it; "" where that is not known.
        root: The folder in which its files have the paths that they have in the study's folder;
            None: they are in that folder.
        loggers: Where metrics go while the job runs.
    """

    rule: str
    settings: JobSettings
    read: dict[str, list[Path]]
    outputs: dict[str, Path]
    code: str | None
    hints: dict[str, Any]
    expected: dict[str, list[str]]
    root: Path | None = None
    loggers: tuple[LoggerSettings, ...] = ()

    @property
    def inputs(self) -> dict[str, Path]:
        """The inputs that are one file each."""
        return {name: paths[0] for name, paths in self.read.items() if name not in graph.LISTS}

    @property
    def lists(self) -> dict[str, list[Path]]:
        """The inputs that are lists of files."""
        return {name: paths for name, paths in self.read.items() if name in graph.LISTS}


def _by_file(given: argparse.Namespace) -> Call:
    inputs = _paths(given.inputs, "--inputs")
    outputs = {name: paths[0] for name, paths in _paths(given.outputs, "--outputs").items()}
    rules = graph.rules_of(given.command)
    rule = next((r for r in rules if outputs.keys() <= graph.OUTPUTS[r].keys()), given.command)
    try:
        settings = parse(SETTINGS[rule], json.loads(given.settings), "--settings")
    except json.JSONDecodeError as error:
        raise KdstepsError(f"--settings: is not JSON ({error}); quote it for the shell") from error
    expected = _named(given.expect, "--expect")
    if isinstance(settings, ReportSettings) and not inputs:
        study = _reported(settings)
        node = graph.node(study, "report", {})
        node = node if given.root is None else with_stored_files(node)
        inputs, expected = _inputs(node, given.root), code_identity.identities(study, node)
    loggers = _loggers(getattr(given, "loggers", None))
    return Call(rule, settings, inputs, outputs, given.code, {}, expected, given.root, loggers)


def _reported(settings: ReportSettings) -> Study:
    """The study of a report. Its keys are sorted, as in `--settings`: their order decides ties."""
    return parse_study(json.loads(json.dumps(settings.study, sort_keys=True)))


def _loggers(text: str | None) -> tuple[LoggerSettings, ...]:
    try:
        return loggers_from(text) if text else ()
    except ValueError as error:
        raise KdstepsError("--loggers: is not the JSON that snakemake passes to a job") from error


def _inputs(node: graph.JobNode, root: Path | None = None) -> dict[str, list[Path]]:
    """The files a job reads below a folder, each name with a list."""
    return {
        name: [Path(root or "", path) for path in flat(given)]
        for name, given in node.inputs.items()
    }


def _given_hints(given: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(given, name, None) for name in HINTS}
    return {name: value for name, value in found.items() if value is not None}


def _by_name(given: argparse.Namespace) -> Call:
    study = load_study(given.params)
    rule = given.command
    names = {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    if rule == "evaluate" and "pair" not in names:
        rule = "evaluate_teacher"
    if rule == "evaluate" and set(names) == {"pair"}:
        rule = "evaluate_latency"
    if rule == "train" and set(names) == {"pair"}:
        rule = "train_audit"
    if rule == "cache" and "views" in names:
        rule = "cache_outputs"
    if rule == "tune" and set(names) == {"pair", "method"}:
        rule = "tune_choose"
    if not graph.jobs(study, rule):  # its images have no labels
        rule = PROBES.get(rule, rule)
    wanted = graph.names_of(rule)
    missing = [f"--{name}" for name in wanted if name not in names]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise KdstepsError(f"{' and '.join(missing)} {verb} missing; say which job to run")
    for name in names:
        if name not in wanted:
            right = " and ".join(f"--{name}" for name in wanted) or "none"
            raise KdstepsError(f"--{name}: not an option of this job; it takes {right}")
    graph.check_names(study, rule, names)
    call = call_of(study, rule, names)
    only_there = {"check", "checks", "audit"} & graph.node(study, rule, names).covered
    for name in ({"ticket", "tickets"} | only_there) & call.read.keys():
        if not all(path.is_file() for path in call.read[name]):
            del call.read[name]  # a job started by hand works without cached logits and checks
    return call


def call_of(study: Study, rule: str, names: graph.Names) -> Call:
    """A job of a study, as Snakemake calls it."""
    node = graph.node(study, rule, names)
    if isinstance(node.settings, ReportSettings):
        study = _reported(node.settings)
        node = graph.node(study, rule, names)
    return Call(
        rule=rule,
        settings=node.settings,
        read=_inputs(node),
        outputs={name: Path(path) for name, path in graph.outputs(rule, names).items()},
        code=code_identity.code(study, rule, names),
        hints=node.hints,
        expected=code_identity.identities(study, node),
        loggers=study.loggers if rule in LOGGED else (),
    )


def _paths(given: Sequence[str], option: str) -> dict[str, list[Path]]:
    """The paths of NAME=PATH arguments, by name."""
    return {name: [Path(each) for each in found] for name, found in _named(given, option).items()}


def _named(given: Sequence[str], option: str) -> dict[str, list[str]]:
    """The values of NAME=VALUE arguments, by name."""
    found: dict[str, list[str]] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not equals:
            raise KdstepsError(f"{option}: {argument!r} should read NAME=PATH")
        found.setdefault(name, []).append(value)
    return found


def _check_provenance(call: Call) -> None:
    """Refuse inputs that are damaged, or not what the study's jobs make."""
    for name, given in call.read.items():
        expected = call.expected.get(name) or [""] * len(given)
        for path, identity in zip(given, expected, strict=True):
            check_input(path, identity or None)


def _check_inputs(call: Call) -> None:
    for name, paths in call.read.items():
        for path in paths:
            if not path.is_file():
                raise KdstepsError(
                    f"{path}: not found (input {name!r}); run the stage that writes it, or the "
                    "whole study with snakemake"
                )


def _docstring(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
