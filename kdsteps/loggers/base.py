"""What every logger does with the epochs of one training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """The training that a logger is for.

    Attributes:
        job: Stage and names, such as `distil/pair/kd/0`; unique in the study, usable as a path.
        began: When its first epoch ended, in seconds since 1970. It stays the same when an
            interrupted training continues, and differs when the job is trained anew.
        epochs: How many there will be.
    """

    job: str
    began: float
    epochs: int


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured.

    Attributes:
        number: From 1.
        time: When it ended, in seconds since 1970.
        values: Loss terms, `total`, `learning_rate` and validation metrics by name; NaN or infinite
            where the training diverged.
    """

    number: int
    time: float
    values: Mapping[str, float]


class Logger(ABC):
    """Where the metrics of one training go while it runs.

    A logger runs in a process of its own, which nothing waits for, and may raise any exception. It
    is created when a job starts, again when an interrupted job continues, and again some time after
    it raised. Each time it gets all epochs of the training from the first one on, in order, so it
    overwrites or skips what is there already.

    Its other arguments, keyword-only, are the options in params.yaml.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    @abstractmethod
    def log(self, epoch: Epoch) -> None:
        """Write one epoch so that others see it now."""

    def close(self) -> None:  # noqa: B027 - not every logger has something to close
        """Release what is open; called after the last epoch, and after an exception."""
