"""Digests of a job's files in one small file next to them, which shows whether they changed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from hashlib import blake2b
from pathlib import Path

from kdsteps.files.text import write_json

_BLOCK = 1 << 22  # bytes read at a time


def file_digest(path: Path) -> str:
    """The BLAKE2b digest of a file's bytes, 40 hexadecimal digits."""
    digest = blake2b(digest_size=20)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_if_any(path: str | Path) -> str:
    """As `file_digest`; empty if the file does not exist or cannot be read."""
    try:
        return file_digest(Path(path))
    except OSError:
        return ""


def folder_digest(folder: Path, leave_out: Collection[str] = ()) -> str:
    """A digest of all files below a folder, by path and content, 40 hexadecimal digits.

    Args:
        leave_out: Names of folders directly in it that do not count; bytecode never does.
    """
    digest = blake2b(digest_size=20)
    for place, folders, names in os.walk(folder):
        skipped = {"__pycache__", *(leave_out if place == str(folder) else ())}
        folders[:] = sorted(set(folders) - skipped)
        for name in sorted(names):
            path = Path(place, name)  # may be gone: editors write temporary files
            line = f"{path.relative_to(folder).as_posix()}\0{digest_if_any(path)}\n"
            digest.update(line.encode())
    return digest.hexdigest()


def write_digests(written: Mapping[str, Path], final: Mapping[str, Path]) -> None:
    """Write the output `digest` of a job: the digest of every other output by its file name.

    Args:
        written: Where the outputs are now.
        final: Where they will be.
    """
    names = [name for name in written if name != "digest"]
    content = {final[name].name: file_digest(written[name]) for name in names}
    write_json(written["digest"], content)
