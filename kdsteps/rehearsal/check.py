"""Everything that could stop a later job of a study, and what the study will cost."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from kdsteps.data.checks import doubt_of_bits
from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import check_places
from kdsteps.jobs import graph, run_lock
from kdsteps.jobs.cache_folder import check_cache_folder
from kdsteps.jobs.early_checks import recipe_problems, study_problems
from kdsteps.jobs.findings import Finding, Status
from kdsteps.jobs.gpu_diagnosis import doubt
from kdsteps.jobs.gpus import gpus_there
from kdsteps.jobs.remaining import Remaining, remaining
from kdsteps.jobs.resources import Sharing, cores_there
from kdsteps.jobs.schedule import wall_seconds
from kdsteps.jobs.version_lock import LOCK, locked_version
from kdsteps.jobs.words import duration, in_bytes, plural
from kdsteps.places import installed_version
from kdsteps.rehearsal.costs import Costs
from kdsteps.rehearsal.images import Images, look_at_prepared, look_at_source
from kdsteps.rehearsal.machine import free_memory, gpu_room
from kdsteps.rehearsal.order import rehearse, start_of_jobs
from kdsteps.rehearsal.rehearsal import Rehearsal
from kdsteps.rehearsal.trial import failure
from kdsteps.rehearsal.weight_decay import erasing
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

_BUSY = 0.6  # of the cores, by other processes, which makes the forecast doubtful
_NOT_COUNTED = "Snakemake itself, and drawing the report"


@dataclass
class Forecast:
    """How long the jobs that are left take.

    Attributes:
        seconds: From the first to the last, side by side as resources allow.
        jobs, runs: How many jobs are left, and how many of them distill a student.
        stages: Seconds of the jobs of each stage together, one after the other.
        not_counted: What is missing in these numbers.
    """

    seconds: float
    jobs: int
    runs: int
    stages: dict[str, float]
    not_counted: list[str]


@dataclass
class Checked:
    """All findings; the forecast is None where a problem made it impossible."""

    findings: list[Finding] = field(default_factory=list)
    forecast: Forecast | None = None


def check_all(
    params: str,
    *,
    cores: int,
    gpus: int | None,
    jobs_per_gpu: int,
    seconds: float,
    show: Callable[[Finding], None],
) -> Checked:
    """Check a study in the current folder.

    Args:
        cores, gpus, jobs_per_gpu: Of the run, as Snakemake is given them; gpus None: one if there
            is one.
        seconds: Time for trials.
        show: Called with each finding.
    """
    return _Check(Checked(), show).run(params, cores, gpus, jobs_per_gpu, seconds)


@dataclass
class _Check:
    found: Checked
    show: Callable[[Finding], None]

    def say(self, status: Status, what: str, text: str) -> None:
        finding = Finding(status, what, text)
        if finding not in self.found.findings:
            self.found.findings.append(finding)
            self.show(finding)

    def run(
        self, params: str, cores: int, gpus: int | None, jobs_per_gpu: int, seconds: float
    ) -> Checked:
        try:
            study = load_study(params)
            left = remaining(study)
            early = study_problems(study)
            sharing = self._sharing(cores, gpus, jobs_per_gpu)
        except KdstepsError as error:
            for sentence in error.sentences:
                self.say("problem", "settings", sentence)
            return self.found
        self._settings(study, left, early.problems)
        for sentence in early.doubts:
            self.say("note", "settings", sentence)
        self._version()
        if not left.left:
            self.found.forecast = self._forecast(study, None, left, sharing)
            return self.found
        self._places(left)
        with tempfile.TemporaryDirectory(prefix="kdsteps-check-") as folder:
            images, decoding = self._images(study, left, sharing)
            numbers = {dataset: found.counts["train"] for dataset, found in images.items()}
            shapes = {dataset: found.shape for dataset, found in images.items()}
            # also before images are prepared
            for problem in recipe_problems(study, numbers, shapes):
                self.say("problem", "settings", f"params.yaml: {problem}")
            for sentence in erasing(study, left.left, numbers):
                self.say("note", "methods", sentence)
            deadline = time.monotonic() + seconds
            rehearsal = Rehearsal(study, sharing, Path(folder), self.say, deadline, images)
            rehearse(rehearsal, left.left)
            costs = Costs(rehearsal, start_of_jobs(rehearsal, left.left), decoding)
            self._networks(rehearsal)
            self._space(costs, left)
            self.found.forecast = self._forecast(study, costs, left, sharing)
        return self.found

    def _settings(self, study: Study, left: Remaining, problems: Iterable[str]) -> None:
        for problem in problems:
            self.say("problem", "settings", problem)
        runs = sum(node.rule == "distil" for node in left.left)
        done = f", {left.done} of them done" if left.done else ""
        cached = f", {len(left.cached)} in the job cache" if left.cached else ""
        total = left.done + len(left.cached) + len(left.left)
        self.say(
            "ok",
            "settings",
            f"{plural(len(study.pairs), 'pair')}, {plural(len(study.methods), 'method')}, "
            f"{plural(len(study.seeds), 'seed')}: {plural(total, 'job')}{done}{cached}; "
            f"{plural(runs, 'student')} to train",
        )

    def _version(self) -> None:
        try:
            locked = locked_version()
        except KdstepsError as error:
            self.say("problem", "version", str(error))
            return
        if locked is not None and locked != installed_version():
            self.say(
                "problem",
                "version",
                f"{LOCK}: this study uses kdsteps {locked}, but {installed_version()} "
                "is installed; install that one, or run `kdsteps lock`",
            )

    def _places(self, left: Remaining) -> None:
        """Find a folder in which files, logs or records of jobs could not be written."""
        made = [
            graph.outputs(node.rule, node.names).values() for node in (*left.left, *left.cached)
        ]
        try:
            check_places([*map(Path, chain(*made)), Path("logs/log"), run_lock.LOCK])
            check_cache_folder()
        except KdstepsError as error:
            self.say("problem", "disk", str(error))

    def _sharing(self, cores: int, gpus: int | None, jobs_per_gpu: int) -> Sharing:
        there = gpus_there()
        sharing = Sharing(cores, min(there, 1 if gpus is None else gpus), jobs_per_gpu)
        if gpus is not None and gpus > there:
            self.say("problem", "device", f"--gpus is {gpus}; {there} can be used here")
        if sharing.gpus and (problem := doubt()):
            self.say("problem", "device", problem)
        device = "the CPU" if not sharing.gpus else f"{sharing.gpus} of {there} GPUs"
        self.say(
            "ok",
            "device",
            f"{device}; {plural(cores, 'core')} requested, {cores_there()} available; "
            f"{plural(cores // sharing.cores_of_one_of_many, 'student')} trained at a time",
        )
        busy, own = os.getloadavg()[0], cores_there()
        if run_lock.current_run() is not None or busy > _BUSY * own:
            competing = plural(round(busy), "process competes", "processes compete")
            cores_here = plural(own, "core")
            self.say(
                "note",
                "device",
                f"{competing} for {cores_here}: times are those of a busy machine",
            )
        return sharing

    def _images(
        self, study: Study, left: Remaining, sharing: Sharing
    ) -> tuple[dict[str, Images], dict[str, float]]:
        """The data sets that can be read, and the seconds to read one image of each."""
        unprepared = [node for node in (*left.left, *left.cached) if node.rule == "prepare"]
        preparing = {node.names["dataset"] for node in unprepared}
        found: dict[str, Images] = {}
        decoding: dict[str, float] = {}
        for dataset in study.used_datasets:
            what = f"data {dataset}"
            try:
                if dataset in preparing:
                    threads = min(sharing.cores, cores_there())
                    entry = study.datasets[dataset]
                    images = look_at_source(entry, study.params.prepare, threads)
                else:
                    images = look_at_prepared(dataset)
            except KdstepsError as error:
                self.say("problem", what, str(error))
                continue
            except Exception as error:  # of the user's own kind of data
                self.say("problem", what, failure(error))
                continue
            found[dataset], decoding[dataset] = images, images.sample.seconds
            self._look(study, what, images)
        return found, decoding

    def _look(self, study: Study, what: str, images: Images) -> None:
        channels, height, width = images.shape
        sample = images.sample
        number = len(sample.labels) + len(sample.broken)
        read = "prepared" if images.prepared else f"a sample of {number} can be read"
        if sample.broken:
            said = f"{len(sample.broken)} of a sample of {number} cannot be read, such as "
            skip = study.params.prepare.broken == "skip"
            remedy = "" if skip else "; remove such images, or set prepare.broken to `skip`"
            self.say("note" if skip else "problem", what, said + sample.broken[0] + remedy)
            read = f"the other {len(sample.labels)} of the sample can be read"
        kind = f"of {len(images.class_names)} classes" if images.labeled else "without labels"
        self.say(
            "ok",
            what,
            f"{images.number:,} images {kind}, {channels} x {height} x {width}; {read}",
        )
        doubt = doubt_of_bits(sample.modes, sample.pixels.mean() / 255) if sample.modes else None
        if doubt is not None:
            self.say("note", what, doubt)
        for split in ("train", "test") if images.labeled else ("train",):
            if not images.counts[split]:
                self.say("problem", what, f"there are no {split} images")

    def _networks(self, rehearsal: Rehearsal) -> None:
        """Say what worked, and what was not tried."""
        for key, trial in rehearsal.trials.items():
            if key[0] == "network":
                scale = rehearsal.scales[key]
                took = f"{scale.batch_size} images train in {_step(trial.epoch / scale.steps)}"
                self.say("ok", f"model {key[2]}", took if trial.epochs else "takes the images")
        runs = [key for key in rehearsal.trials if key[0] == "distil"]
        if runs:
            methods = ", ".join(dict.fromkeys(key[2] for key in runs))
            pairs = len({key[1] for key in runs})
            students = "the student" if pairs == 1 else f"students of {pairs} pairs"
            self.say("ok", "methods", f"{students} can be trained with {methods}")
        slow = [key for key in runs if not rehearsal.trials[key].epochs]
        if slow:
            self.say("note", "time", f"too slow to be timed: {', '.join(map(_label, slow))}")
        if rehearsal.blocked:
            why = "since what they need failed"
            self.say("note", "time", f"not tried, {why}: {_first(rehearsal.blocked)}")
        if rehearsal.skipped:
            left = _first(rehearsal.skipped)
            self.say("note", "time", f"not tried, for lack of time: {left}; raise --seconds")

    def _space(self, costs: Costs, left: Remaining) -> None:
        """Compare what is needed of memory and disk space with what is free."""
        training = [node for node in left.left if node.rule in ("train", "distil")]
        needs = [
            (costs.memory(node) * costs.side_by_side(node), costs.side_by_side(node))
            for node in training
        ]
        need, jobs = max(needs, default=(0, 0))
        if need and (free := free_memory()):
            text = f"{in_bytes(need)} for {plural(jobs, 'job')} at a time, {in_bytes(free)} free"
            self.say("problem" if need > free else "ok", "memory", text)
        jobs = costs.found.sharing.jobs_per_gpu
        on_gpu = jobs * max((costs.gpu_memory(node) for node in training), default=0)
        if on_gpu and (room := gpu_room()):
            text = f"{in_bytes(on_gpu)} for {plural(jobs, 'job')}, {in_bytes(room)} free"
            self.say("problem" if on_gpu > room else "ok", "GPU memory", text)
        disk, free = costs.disk(left.left), shutil.disk_usage(os.getcwd()).free
        text = f"about {in_bytes(disk)} for results and caches, {in_bytes(free)} free"
        self.say("problem" if disk > free else "ok", "disk", text)

    def _forecast(
        self, study: Study, costs: Costs | None, left: Remaining, sharing: Sharing
    ) -> Forecast:
        nodes = [*left.left, *left.cached]
        seconds = [] if costs is None else costs.seconds(left.left)
        seconds += [costs.start if costs else 0.0] * len(left.cached)
        stages: dict[str, float] = {}
        for node, each in zip(nodes, seconds, strict=True):
            stage = graph.stage_of(node.rule)
            stages[stage] = stages.get(stage, 0.0) + each
        runs = sum(node.rule == "distil" for node in left.left)
        total = wall_seconds(study, nodes, seconds, sharing)
        missing = [_NOT_COUNTED]
        if costs is not None and costs.guessed:
            untried = plural(len(costs.guessed), "job")
            missing.append(f"{untried} not tried: like others of that kind, or the start alone")
        found = Forecast(total, len(nodes), runs, stages, missing)
        if not nodes:
            self.say("ok", "time", "all results are up to date; there is nothing to do")
            return found
        self.say(
            "ok",
            "time",
            f"{plural(runs, 'run')}, {plural(len(nodes), 'job')}, about {duration(total)} on "
            f"this machine (not counted: {'; '.join(missing)})",
        )
        if costs is not None:
            listed = ", ".join(f"{stage} {duration(value)}" for stage, value in stages.items())
            self.say("note", "time", f"for all jobs of a stage, one after the other: {listed}")
        return found


def _first(keys: Iterable[tuple[str, ...]]) -> str:
    """The first few of some trials, and how many more there are."""
    names = list(dict.fromkeys(map(_label, keys)))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _label(key: tuple[str, ...]) -> str:
    """What a trial is about."""
    kind, first, second, *_ = key
    if kind == "network":
        return f"model {second}"
    return f"{first} with {second}" if kind == "distil" else f"{kind} of {second}"


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
