"""An interrupt of Snakemake is not a traceback, whether it plans or runs jobs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from _machines import REPOSITORY
from snakemake.scheduling.job_scheduler import JobScheduler

from kdsteps.jobs.interrupts import end_at_every_sigterm

INTERRUPT = "import os, signal; os.kill({process}, signal.SIGINT)"
WORKFLOW = """
from kdsteps.jobs.interrupts import end_at_interrupt

end_at_interrupt()
if config:
    %s

rule result:
    output: "result.txt"
    shell: "touch result.txt; kill -INT $(cat main.txt); sleep 1"
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while planning", "during a job"])
def test_an_interrupt_ends_snakemake_without_a_traceback(tmp_path: Path, moment: str):
    workflow = WORKFLOW % INTERRUPT.format(process="os.getpid()")
    Path(tmp_path, "Snakefile").write_text(workflow)
    config = ["--config", "now=1"] if moment == "while planning" else []
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *config]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as run:
        Path(tmp_path, "main.txt").write_text(str(run.pid))
        _, said = run.communicate(timeout=60)
    assert run.returncode == (130 if moment == "while planning" else 1)
    assert "Traceback" not in said


def interruptible() -> None:
    """Undo that the tests themselves may run where interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ignored_interrupts_stay_ignored():
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from kdsteps.jobs.interrupts import end_at_interrupt; end_at_interrupt()\n"
        + INTERRUPT.format(process="os.getpid()")
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


def test_the_workflow_begins_with_it():
    lines = Path(REPOSITORY, "workflow/Snakefile").read_text().splitlines()
    calls = [line for line in lines if line.endswith(")") and "import" not in line]
    assert calls[0] == "end_at_interrupt()"


def test_a_sigterm_does_not_wait_for_the_lock_that_its_own_thread_holds(monkeypatch):
    monkeypatch.setattr(JobScheduler, "exit_gracefully", JobScheduler.exit_gracefully)
    end_at_every_sigterm(JobScheduler)
    scheduler = SimpleNamespace(_lock=threading.Lock(), _open_jobs=threading.Semaphore(0))
    with scheduler._lock:  # as in the main thread, when the signal comes
        handler = threading.Thread(
            target=JobScheduler.exit_gracefully, args=(scheduler, signal.SIGTERM), daemon=True
        )
        handler.start()
        handler.join(timeout=10)
        assert not handler.is_alive()
    assert scheduler._open_jobs.acquire(timeout=10), "the scheduler goes on"
    assert scheduler._user_kill == "graceful"
