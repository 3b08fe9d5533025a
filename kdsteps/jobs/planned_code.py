"""Whether the code that a job runs is the code that it was planned with, the user's and kdsteps'.

Its result is recorded as one of the planned code. If it had run other code, the result would count
as up to date as soon as the planned code is back. Contents are compared: times of files do not show
that a file was replaced by one that is older.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kdsteps.errors import KdstepsError
from kdsteps.jobs import code_identity


class PlannedCode:
    """The code that a job was planned with.

    Python imports code once, when it is first needed, so what is edited later does not matter.

    Args:
        expected: By root of the user's code, its digest; by all roots of the job, as a JSON list,
            anything. Other names are skipped.
        code: The digest of all roots together; None: unknown.
    """

    def __init__(self, expected: Mapping[str, list[str]], code: str | None) -> None:
        self._planned: list[tuple[str, tuple[str, ...], str]] = []
        for root, digests in expected.items():
            if root.startswith("["):
                if code is not None:
                    self._planned.append(("the code of kdsteps", tuple(json.loads(root)), code))
            elif ":" in root:  # else it is the name of an input
                self._planned.append((f"{root}:", (root,), digests[0]))
        self._compared: set[str] | None = None  # what was imported when all was as planned

    def check_before(self) -> None:
        """Refuse code that has changed before a job begins; importing it says if it is gone.

        Raises:
            KdstepsError: It is not what was planned.
        """
        with suppress(ValueError, SyntaxError):
            self._compare()

    def check(self) -> None:
        """Refuse code that may have changed before it was imported.

        Raises:
            KdstepsError: It is not what was planned, and was imported after the last check.
        """
        imported = _imported()
        if self._compared is not None and not code_identity.followed(imported - self._compared):
            return
        try:
            self._compare()
        except (ValueError, SyntaxError) as error:  # gone, or half written
            raise KdstepsError(_changed("the code of this job")) from error
        self._compared = imported

    def digest(self, roots: tuple[str, ...]) -> str:
        """The digest of some code, for the name of what a job saves and a later one uses.

        Raises:
            KdstepsError: The code that was imported for it may be another.
        """
        self.check()
        return code_identity.digest(roots)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compared": None}  # another process imports all code again

    def _compare(self) -> None:
        """Refuse code that is not what was planned; of what is not valid Python, raise the error.

        Raises:
            KdstepsError: Its digest is not the planned one.
        """
        code_identity.reread()
        for what, roots, planned in self._planned:
            if code_identity.digest(roots) != planned:
                raise KdstepsError(_changed(what))


def _changed(what: str) -> str:
    return (
        f"{what} was changed after this run began; run snakemake again, which uses the changed code"
    )


def _imported() -> set[str]:
    """The source files of all imported modules, without links in their paths."""
    files = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    return {os.path.realpath(file) for file in files if file and file.endswith(".py")}
