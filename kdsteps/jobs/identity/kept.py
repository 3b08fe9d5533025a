"""Digests of kdsteps' own code, kept in .kdsteps/code.json for as long as no file of it changes.

Following the code takes half a second of CPU time, in every job and at every start of Snakemake.
The digests of roots in the package depend on the files of the package alone, so they are kept with
a digest of these. The user's own code is followed each time, since what it means also depends on
what else can be imported. If the file is missing or damaged, all code is followed again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Set
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import folder_digest
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.identity.digests import Code
from kdsteps.places import study_folder

FILE = Path(".kdsteps/code.json")  # in the study's folder


class KeptDigests:
    """The digests that the study's folder has of a package as it is now.

    Args:
        package: The folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self._package, self._state = package, folder_digest(package)
        content = self._read()
        self._digests: dict[str, str] = content.get("digests", {})
        self._followed: list[str] = content.get("files", [])
        self._used = self._added = False

    @property
    def files(self) -> Set[Path]:
        """The files of the package that were read for the digests that `find` returned."""
        return {self._package / name for name in self._followed} if self._used else set()

    def find(self, roots: tuple[str, ...]) -> str | None:
        """The digest of some roots of the package; None if it is not known."""
        found = self._digests.get(json.dumps(roots))
        self._used |= found is not None
        return found

    def add(self, roots: tuple[str, ...], digest: str) -> None:
        """Keep a digest; `save` writes it."""
        self._digests[json.dumps(roots)], self._added = digest, True

    def save(self, code: Code) -> None:
        """Write what was added into the study's folder, unless a file has changed meanwhile.

        Args:
            code: Which found the digests that were added.
        """
        if not self._added or self.is_outdated() or code.is_outdated():
            return
        package = self._package
        read = {str(f.relative_to(package)) for f in code.files if f.is_relative_to(package)}
        content = {"digests": self._digests, "files": sorted({*self._followed, *read})}
        with suppress(KdstepsError):  # a folder that cannot be written costs time, nothing else
            write_json(study_folder() / FILE, {"seal": self._seal(content), **content})
            self._added = False

    def is_outdated(self) -> bool:
        """Whether a file of the package has other contents than when this was made."""
        return folder_digest(self._package) != self._state

    def _read(self) -> dict[str, Any]:
        """What is kept; empty if it is of other code, or damaged."""
        try:
            content = read_json(study_folder() / FILE)
            if content.pop("seal") == self._seal(content):
                return content
        except (KdstepsError, KeyError):
            pass
        return {}

    def _seal(self, content: dict[str, Any]) -> str:
        """A digest of what is kept, and of what it was made with."""
        text = json.dumps([sys.version, self._state, content], sort_keys=True)
        return blake2b(text.encode(), digest_size=20).hexdigest()
