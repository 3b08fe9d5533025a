"""Jobs that failed on this machine are named with the reason, from Snakemake's log and theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdsteps.jobs import failures as ends
from kdsteps.jobs.failed_jobs import failed_jobs
from kdsteps.jobs.local_failures import failures

BLOCK = """
RuleException:
CalledProcessError in file "rules/student.smk", line 60:
Command 'exec python -m kdsteps distil >{log} 2>&1' {how}
[Thu Nov 26 03:49:29 2026]
Error in rule distil:
    message: None
    jobid: 2
    output: results/{names}/student.safetensors, results/{names}/history.parquet
    log: {log} (check log file(s) for error details)
"""
STATUS = "returned non-zero exit status {}."
SIGNAL = "died with <Signals.{}>."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def block(names: str, how: str, log: str | None) -> str:
    """What Snakemake writes of a failed job, which left this log."""
    path = Path(f"logs/{names}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    if log is not None:
        path.write_text(log)
    return BLOCK.format(names=names, log=path, how=how)


def said(*blocks: str) -> list[str]:
    Path("snakemake.log").write_text("\n".join(blocks))
    return failures(failed_jobs(["snakemake.log"]))


@pytest.mark.parametrize(
    ("how", "log", "sentence"),
    [
        (
            STATUS.format(2),
            "a\nkdsteps distil: seed: is x; write 3\n",
            "failed: seed: is x; write 3",
        ),
        (
            STATUS.format(1),
            "Traceback:\n  File\nValueError: no\n",
            "failed: ValueError: no (more in logs/distil/pair/kd/0.txt)",
        ),
        (STATUS.format(1), "", "failed; its log logs/distil/pair/kd/0.txt is empty"),
        (STATUS.format(1), None, "failed; its log logs/distil/pair/kd/0.txt is empty"),
        (STATUS.format(137), "epoch 3 of 9\n", "was killed; its log logs/distil/pair/kd/0.txt has"),
        (SIGNAL.format("SIGKILL: 9"), "epoch 3 of 9\n", "was killed; its log logs/distil"),
    ],
)
def test_a_failed_job_is_named_with_what_it_said_last(how: str, log: str | None, sentence: str):
    (found,) = said(block("distil/pair/kd/0", how, log))
    assert found.startswith(f"distil pair kd 0 {sentence}")


def test_an_empty_log_on_a_full_disk_is_explained(monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=0))
    (found,) = said(block("distil/pair/kd/0", STATUS.format(1), ""))
    assert found == (
        "distil pair kd 0 failed; its log logs/distil/pair/kd/0.txt is empty, since its disk is "
        "full; free some space and run again"
    )


@pytest.mark.parametrize("how", [STATUS.format(143), SIGNAL.format("SIGTERM: 15")])
def test_jobs_that_were_stopped_are_counted_after_those_that_failed(how: str):
    stopped = [block(f"distil/pair/kd/{seed}", how, "stopped by SIGTERM\n") for seed in (0, 1)]
    (found,) = said(*stopped)
    assert found.startswith("2 jobs stopped; run the same command again, and training continues")
    failed, again = said(stopped[0], block("distil/pair/kd/2", STATUS.format(1), "no\n"))
    assert failed.startswith("distil pair kd 2 failed")
    assert again.startswith("1 job stopped")


def test_a_job_whose_retry_finished_is_not_named_and_others_are():
    blocks = [block(f"distil/pair/kd/{seed}", STATUS.format(1), "no\n") for seed in (0, 1, 1)]
    Path("results/distil/pair/kd/0").mkdir(parents=True)
    Path("results/distil/pair/kd/0/student.safetensors").touch()
    (found,) = said(*blocks)
    assert found.startswith("distil pair kd 1 failed")


def test_how_one_job_ended_is_not_said_of_the_next():
    killed = block("distil/pair/kd/0", SIGNAL.format("SIGKILL: 9"), "no\n")
    other = block("distil/pair/kd/1", "", "no\n")
    assert ["killed" in sentence for sentence in said(killed, other)] == [True, False]


def test_of_many_failed_jobs_the_first_are_named(capsys):
    blocks = [block(f"distil/pair/kd/{seed}", STATUS.format(1), "no\n") for seed in range(25)]
    Path("snakemake.log").write_text("\n".join(blocks))
    ends._name_failures(lambda: ["snakemake.log"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 5 more; `kdsteps status` names them"


def test_a_run_without_logs_says_nothing():
    assert failures(failed_jobs([])) == failures(failed_jobs(["nowhere.log"])) == []
