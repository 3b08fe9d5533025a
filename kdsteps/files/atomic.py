"""Write files completely or not at all, with error messages for full or read-only disks."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kdsteps.errors import KdstepsError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path that is renamed to `path` when the block succeeds, and removed when not.

    Raises:
        KdstepsError: The disk is full, or the folder is read-only.
    """
    path = Path(path)
    draft = _draft(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, path)
    except BaseException as error:
        _remove(draft)
        if isinstance(error, OSError):
            raise KdstepsError(_disk_sentence(path, error)) from error
        raise


@contextmanager
def all_or_none(
    outputs: Mapping[str, Path], optional: Collection[str] = ()
) -> Iterator[dict[str, Path]]:
    """Temporary paths for several files, by name; all are renamed when the block succeeds.

    A job that fails after its first file leaves no mixture of new and old files. Temporary files of
    killed jobs are removed.

    Args:
        optional: Names of files that the block need not write; an old one is removed then.

    Raises:
        FileNotFoundError: The block did not write one of them.
        KdstepsError: The disk is full, or a folder is read-only.
    """
    drafts = {name: _draft(path) for name, path in outputs.items()}
    for path in outputs.values():
        remove_stale_drafts(path.parent, path.name)
    try:
        yield drafts
        lacking = {name for name in optional if not drafts[name].exists()}
        for name in drafts.keys() - lacking:
            drafts[name].stat()
        for name, path in outputs.items():
            _remove(path) if name in lacking else _rename(drafts[name], path)
    except KdstepsError as error:
        message = str(error)
        for name, path in outputs.items():
            message = message.replace(str(drafts[name]), str(path))
        raise KdstepsError(message) from error
    finally:
        for draft in drafts.values():
            _remove(draft)


def _rename(draft: Path, path: Path) -> None:
    try:
        os.replace(draft, path)
    except OSError as error:
        raise KdstepsError(_disk_sentence(path, error)) from error


def _draft(path: Path) -> Path:
    """The temporary path of a file; it includes the process ID, so that two never collide."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_stale_drafts(folder: Path, name: str = "", *, below: bool = False) -> None:
    """Remove temporary files in a folder whose processes no longer exist on this machine.

    Args:
        name: Of the file to which they belong; by default any.
        below: Whether the folders below are searched as well.
    """
    pattern = f".*{name}.*.part" if name else ".*.part"
    for draft in (folder.rglob if below else folder.glob)(pattern):
        process = re.search(r"\.(\d+)\.part$", draft.name)
        if process and not _alive(int(process[1])):
            _remove(draft)


def replace_by_copy(path: Path) -> None:
    """Replace a link, or a file of another user, by a copy that this user may write to.

    Raises:
        KdstepsError: The disk is full, or the file cannot be read.
    """
    draft = path.with_name(f".{os.getpid()}.part")  # the name may be as long as names can be
    try:
        shutil.copyfile(path, draft)
        os.replace(draft, path)
    except OSError as error:
        _remove(draft)
        raise KdstepsError(_disk_sentence(path, error)) from error


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


def _remove(draft: Path) -> None:
    with suppress(OSError):  # it was renamed, or could never be written
        draft.unlink()


def check_places(paths: Iterable[Path]) -> None:
    """Check before a job runs whether its files can be written; write nothing.

    Raises:
        KdstepsError: A folder is read-only, or a folder or file has the name of the other.
    """
    for path in paths:
        check_kind(path)
        there = nearest_folder(path.parent)
        if not there.is_dir():
            raise KdstepsError(_disk_sentence(path, NotADirectoryError(errno.ENOTDIR, "")))
        if not may_write_into(there):
            raise KdstepsError(
                f"{path}: cannot be written; make the folder {there.absolute()} writable"
            )


def nearest_folder(folder: Path) -> Path:
    """A folder, or the nearest one above it if it does not exist."""
    if os.path.lexists(folder):
        return folder
    return next(above for above in folder.absolute().parents if os.path.lexists(above))


def may_write_into(folder: Path) -> bool:
    """Whether this user may create and replace files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def check_kind(path: Path) -> None:
    """Check that a path is one of a regular file, or that nothing is there.

    Raises:
        KdstepsError: A folder, a pipe or the like has its name, or a file that of its folder.
    """
    try:
        mode = path.stat().st_mode
    except NotADirectoryError as error:
        raise KdstepsError(_disk_sentence(path, error)) from error
    except OSError:  # nothing is there, or writing says what is wrong
        return
    if stat.S_ISDIR(mode):
        raise KdstepsError(_disk_sentence(path, IsADirectoryError(errno.EISDIR, "")))
    if not stat.S_ISREG(mode):
        raise KdstepsError(f"{path}: is not a regular file; move it away")


def damage(error: Exception, kind: str) -> str:
    """Describe why a file cannot be read as its kind."""
    if isinstance(error, FileNotFoundError):
        return "not found; run the stage that writes it"
    if isinstance(error, PermissionError):
        return "cannot be read; make it readable"
    reason = " ".join(str(error).split()).rstrip(".")
    return f"is not a complete {kind} ({reason}); delete it and run the stage that writes it again"


def _disk_sentence(path: Path, error: OSError) -> str:
    if error.errno in DISK_FULL:
        return (
            f"{path}: the disk is full; free some space and run again (finished results are safe)"
        )
    if error.errno == errno.EFBIG:
        return f"{path}: exceeds the limit on file sizes; raise it (`ulimit -f`)"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        folder = next((each for each in path.parents if each.is_file()), path.parent)
        return f"{path}: a file has the name of its folder {folder}; move it away"
    if error.errno == errno.EISDIR:
        return f"{path}: a folder has this name; move it away"
    there = next((folder for folder in path.parents if folder.is_dir()), path.parent)
    return f"{path}: cannot be written ({error.strerror}); make {there} writable"
