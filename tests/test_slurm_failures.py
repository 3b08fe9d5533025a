"""Jobs that failed on Slurm are named with the reason, from the logs as the programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsteps.jobs.failed_jobs import failed_jobs, name_of
from kdsteps.jobs.slurm_failures import failures

KILLED = "slurmstepd-vm: error: *** STEP 4.0 ON vm CANCELLED AT 2026-11-26T03:49:19"
OUTPUTS = {
    "out of memory": (
        "slurmstepd-vm: error: StepId=4.0 exceeded memory limit (1090060288 > 1048576000), being "
        f"killed\n{KILLED} ***"
    ),
    "memory": "slurmstepd: error: Detected 1 oom_kill event in StepId=4.0.",
    "time limit": f"{KILLED} DUE TO TIME LIMIT ***",
    "another job": f"{KILLED} DUE TO PREEMPTION ***",
    "lost its node": f"{KILLED} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
    "was canceled": f"{KILLED} ***",
}

RULE = """
[Thu Nov 26 03:49:29 2026]
Error in rule train:
    message: SLURM-job '4' failed, SLURM status is: 'FAILED'.
    jobid: 2
    output: results/train/digits/big/teacher.safetensors
    log: logs/train/digits/big.txt, {outputs}/rule_train/digits_big/4.log (check log file(s))
    external_jobid: 4
Logfile logs/train/digits/big.txt:
================================================================================
Error in rule train:
    message: None
    jobid: 0
    output: results/train/digits/big/teacher.safetensors
    log: logs/train/digits/big.txt (check log file(s))
Finished jobid: 2 (Rule: other)
================================================================================
"""
GROUP = """
    message: Error in group run
    log: {outputs}/group_run_distil_evaluate/15.log (check log file(s))
    jobs:
        rule evaluate:
            jobid: 9
            output: results/evaluate/students/pair/kd/0/measures.json, results/other
            log: logs/evaluate/students/pair/kd/0.txt (check log file(s) for error details)
        rule distil:
            jobid: 5
            output: results/distil/pair/kd/0/student.safetensors
            log: logs/distil/pair/kd/0.txt (check log file(s) for error details)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(folder: Path, log: str, **outputs: str) -> list[str]:
    """What is said of a run with this log, where jobs left these outputs, by Slurm's number."""
    slurm = folder / ".snakemake" / "slurm_logs"
    for path in ("rule_train/digits_big/4.log", "group_run_distil_evaluate/15.log"):
        if (text := outputs.get(f"job{Path(path).stem}")) is not None:
            (slurm / path).parent.mkdir(parents=True)
            (slurm / path).write_text(text)
    file = folder / "snakemake.log"
    file.write_text(log.format(outputs=slurm))
    return failures(failed_jobs([file]))


@pytest.mark.parametrize("reason", OUTPUTS)
def test_a_job_that_slurm_ended_is_named_with_the_reason(tmp_path: Path, reason: str):
    (sentence,) = said(tmp_path, RULE, job4=OUTPUTS[reason])
    assert sentence.startswith("train digits big: Slurm job 4 ")
    assert reason in sentence


def test_for_a_job_that_slurm_did_not_end_its_output_is_named(tmp_path: Path):
    (sentence,) = said(tmp_path, RULE, job4="something else")
    assert "failed" in sentence and "rule_train/digits_big/4.log" in sentence


def test_a_job_that_never_began_has_no_output(tmp_path: Path):
    (sentence,) = said(tmp_path, RULE)
    assert "Slurm job 4 has no output" in sentence


def test_the_jobs_of_one_submission_are_named_together(tmp_path: Path):
    (sentence,) = said(tmp_path, GROUP, job15=OUTPUTS["time limit"])
    assert sentence.startswith("evaluate students pair kd 0 and distil pair kd 0: Slurm job 15 ")


def test_a_job_whose_retry_finished_is_not_named(tmp_path: Path):
    file = tmp_path / "results/train/digits/big/teacher.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert said(tmp_path, RULE, job4=OUTPUTS["memory"]) == []


def test_of_a_run_without_slurm_nothing_is_said(tmp_path: Path):
    local = RULE.replace(", {outputs}/rule_train/digits_big/4.log", "")
    assert said(tmp_path, local) == []


@pytest.mark.parametrize("folder", ["logs", "s3://bucket/study/logs"])
def test_a_job_is_named_in_full_whatever_its_names_are(folder: str):
    assert name_of(f"{folder}/distil/my-logs/kd/0.txt") == "distil my-logs kd 0"
    assert name_of(f"{folder}/distil/logs/kd/0.txt") == "distil logs kd 0"
