"""What a check of a study finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "problem", "note"]


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        what: What it is about, such as "model large".
        text: One sentence.
    """

    status: Status
    what: str
    text: str
