"""Files of JSON lines that grow while a job works, each line with a digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any


def journal_line(content: Any) -> str:
    """A line for `read_journal`."""
    text = json.dumps(content)
    return f"{_digest(text.encode())} {text}\n"


def read_journal(path: Path) -> Iterator[Any]:
    """The contents of all lines before the first one that is damaged or was not written to its end.

    Raises:
        OSError: The file cannot be read.
    """
    for line in path.read_bytes().split(b"\n"):
        digest, _, text = line.partition(b" ")
        if digest != _digest(text).encode():
            return
        yield json.loads(text)


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=16).hexdigest()
