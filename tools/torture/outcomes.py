"""What the trials show: how many were tried of each kind, and what went wrong in which."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class Failed(Exception):
    """A trial ended in another way than with one sentence, or was not healed."""


class SilentlyWrong(Exception):
    """A trial changed a result, and nothing said so."""


class NotTried(Exception):
    """There was nothing to break; the trial does not count."""


@dataclass
class Row:
    """The trials of one kind.

    Attributes:
        failed, silent: What happened in each trial that failed, or went wrong unnoticed.
        skipped: Why there were no trials.
    """

    kind: str
    tried: int = 0
    survived: int = 0
    failed: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


class Outcomes:
    """A row for each kind, in the order of their first trials."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def trial(self, kind: str, name: str) -> Trial:
        """A context for one trial: `Failed`, `SilentlyWrong` and any other error are counted."""
        return Trial(self.rows.setdefault(kind, Row(kind)), name)

    def skip(self, kind: str, reason: str) -> None:
        self.rows.setdefault(kind, Row(kind)).skipped = reason

    @property
    def clean(self) -> bool:
        return not any(row.failed or row.silent for row in self.rows.values())

    def table(self) -> str:
        lines = ["| kind | tried | survived | failed | silently wrong | seconds |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in self.rows.values():
            counts = [row.tried, row.survived, len(row.failed), len(row.silent)]
            cells = [row.kind, *map(str, counts), f"{row.seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def details(self) -> str:
        """One line for each trial that did not survive, and for each kind that was skipped."""
        lines = []
        for row in self.rows.values():
            lines += [f"{row.kind}: skipped: {row.skipped}"] * bool(row.skipped)
            lines += [f"{row.kind}: failed: {said}" for said in row.failed]
            lines += [f"{row.kind}: silently wrong: {said}" for said in row.silent]
        return "\n".join(lines)

    def content(self, **known: Any) -> Mapping[str, Any]:
        return {**known, "rows": [asdict(row) for row in self.rows.values()]}


class Trial:
    """One trial; see `Outcomes.trial`."""

    def __init__(self, row: Row, name: str) -> None:
        self.row, self.name = row, name

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> bool:
        if kind is not None and not issubclass(kind, Exception):
            return False
        if kind is not None and issubclass(kind, NotTried):
            return True
        self.row.tried += 1
        self.row.seconds += time.monotonic() - self.started
        said = shortened(f"{self.name}: {error}")
        if kind is None:
            self.row.survived += 1
        elif issubclass(kind, SilentlyWrong):
            self.row.silent.append(said)
        else:
            self.row.failed.append(
                said if issubclass(kind, Failed) else f"{said} ({kind.__name__})"
            )
        if kind is not None:
            print(f"  {self.row.kind}: {said}", file=sys.stderr, flush=True)
        return True


def shortened(text: str, longest: int = 400) -> str:
    """A text on one line, without its middle if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 3 :]}"
