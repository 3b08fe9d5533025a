"""Cross-entropy without a teacher: the baseline for every other method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdsteps.methods._tensors import cross_entropy
from kdsteps.methods.base import Batch, Method, Task
from kdsteps.models.chain import Chain


class Labels(Method):
    """Cross-entropy with the labels.

    Source: the "student" rows of every distillation benchmark.
    """

    wants = "nothing"
    capturable = True
    compares_images = False

    def __init__(
        self,
        teacher: Chain | None,
        student: Chain,
        task: Task,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        """Args:
        label_smoothing: Probability that is spread evenly over all classes.
        """
        super().__init__(None, student, task)
        self.label_smoothing = label_smoothing

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student_logits(batch)
        loss = cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        return {"labels": loss}
