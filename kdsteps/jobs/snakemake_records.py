"""Guards around what Snakemake remembers of a results folder, called where a workflow begins.

Snakemake's records say from which values and files each result was made. They travel with the
results in DVC; without them an old result passes for a fresh one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from kdsteps.errors import KdstepsError

RECORDS = Path(".snakemake/metadata")
_INCOMPLETE = Path(".snakemake/incomplete")
_LOCKS = Path(".snakemake/locks")
_alive: list[int] = []  # the open file whose lock lives as long as this process


def check_records(results: str | Path = "results") -> None:
    """Refuse results that nothing is known of, and make records safe to rewrite in place.

    The folder results/report is left out, since some of its files are in git.

    Raises:
        KdstepsError: There are results and no records of how they were made.
    """
    _own_files(RECORDS)
    known = _holds_files(RECORDS) or _holds_files(_INCOMPLETE)
    if known or os.environ.get("KDSTEPS_TRUST_RESULTS") == "1":
        return
    found = next(_files(Path(results), skip=("report", "settings")), None)
    if found is not None:
        raise KdstepsError(
            f"{results}: has {found} but no records of how it was made; run `dvc checkout` or "
            f"`dvc pull`, or move {results} away (or set KDSTEPS_TRUST_RESULTS=1 to treat all as "
            "up to date)"
        )


def forget_dead_locks(folder: str | Path = ".snakemake") -> None:
    """Remove the locks of a run that was killed, so that nobody has to.

    Every run holds a shared lock while it lives, which the system releases however it ends.
    A run that gets the lock for itself is alone: what locks there are belong to the dead.
    """
    Path(folder).mkdir(exist_ok=True)
    try:
        handle = os.open(Path(folder, "alive"), os.O_RDWR | os.O_CREAT, 0o666)
        _alive.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            shutil.rmtree(Path(folder, _LOCKS.name), ignore_errors=True)
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        return  # a file system without such locks: Snakemake's own stay, `snakemake --unlock` helps


def use_this_python() -> None:
    """Let `python` in a rule be the one that runs the workflow, in an active environment or not."""
    folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", "").split(os.pathsep)
    if paths[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, *paths])


def _own_files(folder: Path) -> None:
    """Replace links into DVC's cache by files, since Snakemake rewrites records in place."""
    for file in _files(folder):
        if file.is_symlink() or file.stat().st_nlink > 1:
            copy = file.with_name(f"{file.name}.{os.getpid()}.part")
            shutil.copyfile(file, copy)
            os.replace(copy, file)


def _holds_files(folder: Path) -> bool:
    return next(_files(folder), None) is not None


def _files(folder: Path, skip: Collection[str] = ()) -> Iterator[Path]:
    """The finished files below a folder, outside its subfolders `skip`."""
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in skip]
        for name in names:
            if not name.endswith(".part") and name != ".gitignore":
                yield Path(place, name)
