"""What a stage is given: its settings, its files, and the device it shall use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One job of one stage.

    Attributes:
        settings: What `kdsteps.jobs.graph.settings` gives for it.
        inputs: Files to read, by name; the report has lists of files.
        outputs: Files to write, by name.
        threads: Cores it may use, at most those there are.
        gpus: How many GPUs it may use.
        checkpoint_seconds: Between two saves of a training run to resume from.
        keep: Whether a teacher's answers are kept for training: "auto", "always" or "never".
        passes: Over the training images, in all runs of the study, that would use them.
        budget_mib: What a file of kept features or answers may take.
    """

    settings: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Path]
    threads: int = 1
    gpus: int = 0
    checkpoint_seconds: int = 600
    keep: str = "auto"
    passes: int = 0
    budget_mib: int = 4096
