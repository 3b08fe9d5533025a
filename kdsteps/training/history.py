"""What a training run measured: every loss term and validation metric of every epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Named numbers, one per epoch: the rows of `files.columns.HISTORY`."""

    epoch: list[int] = field(default_factory=list)
    name: list[str] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def add(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.epoch.append(epoch)
            self.name.append(name)
            self.value.append(value)

    def rows(self) -> dict[str, list[Any]]:
        return {"epoch": self.epoch, "name": self.name, "value": self.value}

    def of(self, name: str) -> list[float]:
        """The values of one name, by epoch."""
        return [value for there, value in zip(self.name, self.value, strict=True) if there == name]

    def summary(self, epoch: int) -> str:
        """The numbers of one epoch in one line."""
        rows = zip(self.epoch, self.name, self.value, strict=True)
        return ", ".join(f"{name} {value:.4g}" for there, name, value in rows if there == epoch)


def milestones(epochs: int) -> set[int]:
    """About ten evenly spaced epochs, each logged with a line."""
    return {round(epochs * tenth / 10) for tenth in range(1, 11)} | {1}
