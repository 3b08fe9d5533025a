"""A study on a real Slurm of one node, with the profile as it is shipped.

Only the waits between two looks at the jobs are shorter, and there are no GPUs (`gpu=0`).
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _slurm
import pytest
from _study import TINY, Study, clean_environment

pytestmark = [
    pytest.mark.stories,
    pytest.mark.slow,
    pytest.mark.skipif(_slurm.missing() is not None, reason=str(_slurm.missing())),
]

PROFILE = ("--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "2")
RESOURCES = ("--resources", "gpu=0")
LIMITS = {"cores": 800, "gpus": 0, "max_threads": 8, "jobs": 100}  # of both
STUDENT = "results/distil/pair/labels/0/student.safetensors"
LOG = "logs/distil/pair/labels/0.txt"


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with _slurm.slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str]:
    """A study that ran on Slurm from nothing to its report, and what Snakemake said."""
    study = Study.new(tmp_path_factory.mktemp("finished") / "study", study_of("labels", "kd"))
    return study, on_slurm(study)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Prepared images for a run that takes some seconds."""
    long = study_of("labels", seeds=1, distil={"epochs": 120, "batch_size": 256})
    study = Study.new(tmp_path_factory.mktemp("prepared") / "study", long)
    study.snakemake("prepare_all")
    return study


def study_of(*methods: str, seeds: int = 2, **sections: Any) -> dict[str, Any]:
    content = copy.deepcopy(TINY) | sections
    return content | {"methods": {name: {} for name in methods}, "seeds": list(range(seeds))}


def snakemake(*arguments: str) -> list[str]:
    return ["snakemake", *arguments, *PROFILE, *RESOURCES]


def on_slurm(study: Study, *arguments: str, status: int = 0) -> str:
    return study.run(snakemake(*arguments), status, **plugin())


def plugin() -> dict[str, str]:
    """The environment in which Snakemake finds its plugin, where that is not in this one's."""
    folder = os.environ.get(_slurm.FOLDER)
    return {"PYTHONPATH": folder} if folder else {}


def submissions(said: str) -> int:
    return len(re.findall(r"has been submitted with SLURM jobid", said))


def wait(done: Callable[[], bool], run: subprocess.Popen[str], seconds: float = 180) -> None:
    """Wait until something has happened in a run that goes on."""
    end = time.monotonic() + seconds
    while not done():
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < end, f"nothing happened for {seconds:.0f} seconds"
        time.sleep(0.5)


def test_a_study_runs_from_start_to_report_and_a_run_and_its_evaluation_are_one_submission(
    finished: tuple[Study, str],
):
    study, said = finished
    assert (study.path / "results/report/index.html").is_file()
    jobs = study.executed()
    assert len([name for name in jobs if name.startswith("distil/")]) == 4
    assert submissions(said) == len(jobs) - 4


def test_no_profile_recomputes_what_the_other_made(finished: tuple[Study, str]):
    study, _ = finished
    assert study.planned() == Counter()
    assert "Nothing to be done" in on_slurm(study, "--dry-run")
    (study.path / "results/report/index.html").unlink()
    study.snakemake()
    assert set(study.executed()) == {"report"}
    assert "Nothing to be done" in on_slurm(study, "--dry-run")


def test_many_evaluations_are_one_submission(finished: tuple[Study, str], tmp_path: Path):
    study = finished[0].copy(tmp_path / "study")
    study.run(["rm", "-r", "results/evaluate/students", ".jobcache"])
    said = on_slurm(study, "evaluate_all", "--group-components", "run=50")
    assert submissions(said) == 1
    assert {name.partition("/")[0] for name in study.executed()} == {"evaluate"}


def test_dvc_repro_submits_and_records_the_result(finished: tuple[Study, str], tmp_path: Path):
    study = finished[0].copy(tmp_path / "study")
    study.run(["rm", "-r", "results/prepare"])
    options = " ".join([*PROFILE, *RESOURCES])
    said = study.dvc("repro", "prepare", **plugin(), SNAKEMAKE_ARGS=options)
    assert submissions(said) == 1
    assert "results/prepare" in (study.path / "dvc.lock").read_text()


def test_a_canceled_job_is_noticed_within_a_minute_and_its_retry_continues(
    prepared: Study, tmp_path: Path
):
    study = prepared.copy(tmp_path / "study")
    log, said = study.path / LOG, tmp_path / "said.txt"
    environment = clean_environment() | plugin()
    with (
        said.open("w") as file,
        subprocess.Popen(
            snakemake(STUDENT, "--set-threads", "distil=1"),
            cwd=study.path,
            env=environment,
            stdout=file,
            stderr=file,
        ) as run,
    ):
        try:
            wait(lambda: log.is_file() and "epoch 1 of" in log.read_text(), run)
            status = json.loads(study.run(["python", "-m", "kdsteps", "status", "--json"]))
            assert LIMITS.items() <= status["run"].items()
            subprocess.run(["scancel", "--partition=main"], check=True)
            wait(lambda: "Trying to restart" in said.read_text(), run, seconds=60)
            assert run.wait(timeout=300) == 0, said.read_text()
        finally:
            run.kill()
    assert "resuming in epoch" in log.read_text()  # so the state had been saved
    assert (study.path / STUDENT).is_file()


MODULE = """
module study:
    snakefile: "workflow/Snakefile"
use rule * from study
"""


@pytest.mark.parametrize("snakefile", [None, MODULE], ids=["own", "module"])
def test_a_job_that_needs_more_memory_than_it_requested_is_named(
    prepared: Study, tmp_path: Path, snakefile: str | None
):
    study = prepared.copy(tmp_path / "study")
    if snakefile is not None:  # as in a study outside of a clone
        (study.path / "Snakefile").write_text(snakefile)
    options = ("--retries", "0", "--set-resources", "distil:mem_mb=200")
    said = on_slurm(study, STUDENT, *options, status=1)
    assert re.search(r"^distil pair labels 0: Slurm job \d+ ran out of memory", said, re.MULTILINE)


def test_a_job_uses_the_gpu_that_slurm_gave_it_and_nothing_else(prepared: Study, tmp_path: Path):
    """Slurm gives a GPU that is none: the job says so and does not run on the CPU."""
    study = prepared.copy(tmp_path / "study")
    command = ["snakemake", STUDENT, *PROFILE, "--retries", "0"]
    study.attempt(command, **plugin())
    log = (study.path / LOG).read_text()
    assert re.match(r"on (?!the CPU)|kdsteps distil: --gpus: ", log), log
