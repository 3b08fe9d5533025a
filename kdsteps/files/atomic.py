"""Writing to a disk that may be full or closed: whole files or none, and sentences that say why."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdsteps.errors import KdstepsError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        KdstepsError: The disk is full, or the folder cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if path in _waiting:
            _waiting[path] = part
        else:
            os.replace(part, path)
    except BaseException as error:
        _remove(part)
        if isinstance(error, OSError):
            raise KdstepsError(_disk_sentence(path, error)) from error
        raise


@contextmanager
def together(paths: Iterable[Path]) -> Iterator[None]:
    """Files that are written in the block by `atomic` appear when it ends well, all or none.

    A job that fails after its first file leaves no new file beside old ones.
    """
    paths = list(paths)
    _waiting.update(dict.fromkeys(paths))
    try:
        yield
        for path in paths:
            if (part := _waiting[path]) is not None:
                os.replace(part, path)
    finally:
        for path in paths:
            if (part := _waiting.pop(path)) is not None:
                _remove(part)


_waiting: dict[Path, Path | None] = {}  # files of this process's job, and where they are so far


def _remove(part: Path) -> None:
    with suppress(OSError):  # it was renamed, or could never be written
        part.unlink()


def check_places(paths: Iterable[Path]) -> None:
    """Find out before the work whether files can be written afterwards; nothing is written.

    Raises:
        KdstepsError: A folder may not be written, or something else lies in a file's or folder's
            place.
    """
    for path in paths:
        there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if path.is_dir():
            raise KdstepsError(_disk_sentence(path, IsADirectoryError(errno.EISDIR, "")))
        if not there.is_dir():
            raise KdstepsError(_disk_sentence(path, NotADirectoryError(errno.ENOTDIR, "")))
        if not os.access(there, os.W_OK | os.X_OK):
            raise KdstepsError(f"{path}: cannot be written; make the folder {there} writable")


def damage(error: Exception, kind: str) -> str:
    """What is wrong with a file that does not read as its kind."""
    if isinstance(error, FileNotFoundError):
        return "is not there; run the stage that writes it"
    if isinstance(error, PermissionError):
        return "may not be read; ask its owner to allow it"
    reason = " ".join(str(error).split()).rstrip(".")
    return f"is no whole {kind} ({reason}); delete it and run the stage that writes it again"


def _disk_sentence(path: Path, error: OSError) -> str:
    if error.errno in DISK_FULL:
        return f"{path}: the disk is full; free some space and run again, finished results are kept"
    if error.errno == errno.EFBIG:
        return f"{path}: is larger than files may be here; raise the limit (`ulimit -f`)"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path}: a file lies where its folder {path.parent} should be; move it away"
    if error.errno == errno.EISDIR:
        return f"{path}: a folder lies where the file should be; move it away"
    return f"{path}: cannot be written ({error.strerror}); make {path.parent} writable"
