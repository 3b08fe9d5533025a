"""One run at a time in a study's folder, and no job that outlives its run.

A run is one process: Snakemake, or a command that works on results. It holds an exclusive lock on a
file until it ends, and the operating system releases the lock however that happens. A job of a run
looks every second whether the lock is still held; if not, it stops before its files are in place.
A job that was started by hand holds a shared lock, so that several may run side by side.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from socket import gethostname
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.atomic import check_places
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.snakemake_space import FOLDER, check_space

_log = logging.getLogger("kdsteps")

LOCK = FOLDER / "run.lock"
RUN = "KDSTEPS_RUN"  # environment variable: the run that a job belongs to
PATIENCE = 2.0  # seconds: a dry run, for instance, ends soon
PATIENCE_WITH_JOBS = 20.0  # for jobs of a killed run, which stop within a second or two
_LOOK_EVERY = 1.0
_GRACE = 30.0  # seconds that a job has to stop
_held: list[int] = []  # the open file of this process's run
_orphaned: list[int] = []  # the open file of a run that this job has outlived


def begin_run(sharing: Sharing | None = None) -> None:
    """Make this process the run of this folder, until it ends.

    Locks that Snakemake left when it was killed are removed.

    Args:
        sharing: Of the cores and GPUs that the run was given, for forecasts.

    Raises:
        KdstepsError: Another run has not ended, the disk is full, or the folder is read-only.
    """
    check_places([LOCK])
    if LOCK.exists() and not os.access(LOCK, os.W_OK):
        raise KdstepsError(f"{LOCK}: cannot be written; make it writable")
    with suppress(OSError):
        LOCK.parent.mkdir(exist_ok=True)
        check_space()
    handle = _opened(LOCK)
    if handle is None:
        return
    try:
        _acquire(handle, fcntl.LOCK_EX)
    except KdstepsError:
        os.close(handle)
        raise
    run = uuid.uuid4().hex
    os.ftruncate(handle, 0)
    content = {"run": run, "process": os.getpid(), "since": time.strftime("%H:%M")}
    content |= {"host": gethostname()} | ({} if sharing is None else asdict(sharing))
    os.pwrite(handle, json.dumps(content).encode(), 0)
    os.environ[RUN] = run
    shutil.rmtree(LOCK.with_name("locks"), ignore_errors=True)
    _held.append(handle)


def end_run() -> None:
    """Let go of what `begin_run` took, before this process ends."""
    os.environ.pop(RUN, None)
    while _held:
        os.close(_held.pop())


def current_run() -> dict[str, Any] | None:
    """What the run of this folder wrote about itself; None: no run.

    It has `process`, `since` and `host`, and of a run of the workflow what `Sharing` has.
    """
    try:
        handle = os.open(LOCK, os.O_RDONLY)  # whoever may read a folder may not write to it
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _holder(handle)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)


@contextmanager
def during_job(target: Path) -> Iterator[Callable[[], None]]:
    """Guard one job; yields a function to call before its files are put in place.

    The function raises KdstepsError if the run of the job is over.

    Args:
        target: A file that identifies the job.

    Raises:
        KdstepsError: It is started by hand during a run, or while it runs already.
    """
    if _held:
        yield _nothing
        return
    run = os.environ.get(RUN)
    if run is None:
        with _by_hand(target):
            yield _nothing
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(run, done), daemon=True)
    watch.start()
    try:
        yield lambda: _check(run)
    finally:
        done.set()


@contextmanager
def _by_hand(target: Path) -> Iterator[None]:
    with suppress(OSError):
        LOCK.parent.mkdir(exist_ok=True)
    shared, own = _opened(LOCK), _opened(LOCK.with_name("jobs.lock"))
    try:
        if shared is not None:
            _acquire(shared, fcntl.LOCK_SH)
        if own is not None:
            _acquire_job(own, target)
        yield
    finally:
        for handle in (shared, own):
            if handle is not None:
                os.close(handle)


def _acquire_job(handle: int, target: Path) -> None:
    """Lock the byte of a file that belongs to a job."""
    digest = blake2b(str(target.absolute()).encode(), digest_size=7).digest()
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int.from_bytes(digest))
    except (BlockingIOError, PermissionError) as error:
        raise KdstepsError(
            f"{target}: another process is making this file; wait until it ends, or stop it"
        ) from error
    except OSError:  # a file system without locks
        return


def _watch(run: str, done: threading.Event) -> None:
    """Stop this process when its run is over."""
    while not done.wait(_LOOK_EVERY):
        if _is_over(run):
            _log.error("the run that started this job has ended; stopping")
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in a shell's background
            os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)
            if not done.wait(_GRACE):
                os.kill(os.getpid(), signal.SIGKILL)
            return


def _check(run: str) -> None:
    if _is_over(run):
        raise KdstepsError("the run that started this job has ended; its result is discarded")


def _is_over(run: str) -> bool:
    """Whether a run has ended; False where that cannot be known.

    If nobody holds the lock, this process holds it from then on, so that no other run begins before
    it has stopped. On another machine than the run's, the lock may not be visible.
    """
    handle = _opened(LOCK) if LOCK.exists() else None
    if handle is None:
        return False
    holder = _holder(handle)
    if holder.get("run") == run and holder.get("host") == gethostname():
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # somebody holds it, or the file system has no locks
            pass
        else:
            _orphaned.append(handle)
            return True
    os.close(handle)
    return bool(holder.get("run", run) != run)


def _acquire(handle: int, kind: int) -> None:
    """Lock an open file; raise KdstepsError that says who has it."""
    started, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks
            return
        processes = _processes(handle)
        runs = _holder(handle).get("process") in processes
        if time.monotonic() - started > (PATIENCE if runs else PATIENCE_WITH_JOBS):
            raise KdstepsError(_busy(handle, processes, runs))
        if not runs and not said and time.monotonic() - started > 1:
            said = True
            _log.warning("waiting for jobs in this folder to stop (%s)", _named(processes))
        time.sleep(0.1)


def _busy(handle: int, processes: list[int], runs: bool) -> str:
    holder = _holder(handle)
    if runs or not processes:
        since = f" since {holder['since']}" if "since" in holder else ""
        process = f" (process {holder['process']}{since})" if "process" in holder else ""
        return f"another run is using this folder{process}; wait until it ends, or stop it"
    jobs = "jobs that were" if len(processes) > 1 else "a job that was"
    return (
        f"{jobs} started by hand or by a run that was killed still works in this folder "
        f"({_named(processes)}); wait until it ends, or stop it"
    )


def _named(processes: list[int]) -> str:
    numbers = ", ".join(map(str, processes))
    return f"process{'es' * (len(processes) > 1)} {numbers}" if numbers else "another process"


def _holder(handle: int) -> dict[str, Any]:
    """What the last run wrote about itself; nothing if it cannot be read."""
    with suppress(OSError, ValueError):
        content = json.loads(os.pread(handle, 4096, 0))
        if isinstance(content, dict):
            return content
    return {}


def _processes(handle: int) -> list[int]:
    """The processes that hold a lock on an open file, as far as the system says so (Linux)."""
    status = os.fstat(handle)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return [int(line[4]) for line in lines if "FLOCK" in line and line[5] == place]
    return []


def _opened(path: Path) -> int | None:
    """Open the file of a lock; to read it alone where it cannot be written, which a lock allows.

    Whoever may write to its folder may write to it as well.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)
        return None
    with suppress(OSError):  # it belongs to another user
        os.fchmod(handle, path.parent.stat().st_mode & 0o666)
    return handle


def _nothing() -> None:
    """There is nothing to check."""
