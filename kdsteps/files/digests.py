"""Digests of a job's files in one small file next to them, which shows whether they changed."""

from __future__ import annotations

from collections.abc import Mapping
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


def write_digests(written: Mapping[str, Path], final: Mapping[str, Path]) -> None:
    """Write the output `digest` of a job: the digest of every other output by its file name.

    Args:
        written: Where the outputs are now.
        final: Where they will be.
    """
    names = [name for name in written if name != "digest"]
    content = {final[name].name: file_digest(written[name]) for name in names}
    write_json(written["digest"], content)
