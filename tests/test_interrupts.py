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
if config["interrupts"] == "while planning":
    %s

rule result:
    output: "result.txt"
    shell: "touch result.txt; for each in {config[interrupts]}; do "
        "kill -INT $(cat main.txt); sleep 1; done"
"""


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", ["while planning", "1", "1 2"])
def test_an_interrupt_ends_snakemake_without_a_traceback(tmp_path: Path, interrupts: str):
    workflow = WORKFLOW % INTERRUPT.format(process="os.getpid()")
    Path(tmp_path, "Snakefile").write_text(workflow)
    config = ["--config", f"interrupts={interrupts}"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *config]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as run:
        Path(tmp_path, "main.txt").write_text(str(run.pid))
        _, said = run.communicate(timeout=60)
    assert run.returncode == (130 if interrupts == "while planning" else 1)
    assert "Traceback" not in said


def interruptible() -> None:
    """Undo that the tests themselves may run where interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ended(program: str) -> tuple[int, str]:
    """The status of a program that an interrupt ends, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-uc", program],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=interruptible,
    )
    return done.returncode, done.stdout


def test_an_interrupt_long_after_the_first_ends_at_once():
    interrupt = INTERRUPT.format(process="os.getpid()")
    program = (
        "import contextlib, time; from kdsteps.jobs import interrupts\n"
        "interrupts.PATIENCE = 1; interrupts.end_at_interrupt()\n"
        f"with contextlib.suppress(SystemExit): {interrupt}; time.sleep(9)\n"
        f"{interrupt}; print('goes on'); time.sleep(1.1)\n"
        f"{interrupt}; print('still there')"
    )
    assert ended(program) == (130, "goes on\n")


def test_an_interrupt_while_python_waits_for_threads_is_no_traceback():
    program = (
        "import os, signal, threading, time\n"
        "from kdsteps.jobs.interrupts import end_at_interrupt; end_at_interrupt()\n"
        "def late(): time.sleep(0.5); os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n"
        "threading.Thread(target=late).start()"
    )
    assert ended(program) == (130, "")


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
