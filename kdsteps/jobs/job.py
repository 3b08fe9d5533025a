"""What a stage receives: typed settings, its files, and the resources it may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from kdsteps.errors import KdstepsError
from kdsteps.jobs.planned_code import PlannedCode

S = TypeVar("S", covariant=True)


class Files(dict[str, Path]):
    """Files by name; a missing name is reported to the user."""

    def __init__(self, files: Mapping[str, str | Path], option: str) -> None:
        super().__init__({name: Path(path) for name, path in files.items()})
        self._option = option

    def __missing__(self, name: str) -> NoReturn:
        raise KdstepsError(
            f"{self._option}: {name!r} is missing; `--help` lists what the stage reads and writes"
        )


@dataclass(frozen=True)
class Job(Generic[S]):
    """One job of one stage.

    Attributes:
        settings: What the job reads from params.yaml.
        inputs: Files to read, by name.
        outputs: Files to write, by name.
        final: Where the outputs end up once all are written; the same paths unless they are
            written elsewhere first.
        lists: Lists of files to read, by name; only the report has them.
        code: That it was planned with.
        threads: Cores it may use.
        gpus: GPUs it may use.
        jobs_per_gpu: Jobs that may share each of its GPUs, this one included.
        checkpoint_seconds: Time between two saves of a training run.
        keep: Whether a teacher's logits are cached for training: "auto", "always" or "never".
        passes: Passes over the training images, in all runs of the study, that would use them.
        budget_mib: Largest size of a file of cached features or logits.
    """

    settings: S
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    final: Mapping[str, Path] = field(default_factory=dict)
    lists: Mapping[str, list[Path]] = field(default_factory=dict)
    code: PlannedCode = field(default_factory=lambda: PlannedCode({}, None), compare=False)
    threads: int = 1
    gpus: int = 0
    jobs_per_gpu: int = 1
    checkpoint_seconds: int = 600
    keep: str = "auto"
    passes: int = 0
    budget_mib: int = 4096

    @property
    def target(self) -> Path:
        """The job's first output in its final place, which identifies the job."""
        return next(iter((self.final or self.outputs).values()))
